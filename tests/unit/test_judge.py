"""What is fit to be added: the same verdict at both ends."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from lightning_decgan.gossip.header import HEADER_BYTES, Header
from lightning_decgan.gossip.judge import Judge


def _header(number: int = 0, turn: int = 0, norm: float = 1.0, void: bool = False) -> Header:
    return Header(number, turn, norm, void)


CASES = [
    (_header(), None, 0.1, "without a header"),
    (_header(3), _header(4), 0.1, "a message of round 4 in round 3"),
    (_header(turn=0), _header(turn=1), 0.1, "a message of round"),
    (_header(void=True), _header(), 0.1, "not finite and were not published"),
    (_header(), _header(void=True), 0.1, "not finite and were not published"),
    (_header(), _header(), math.nan, "values that are not finite"),
    (_header(), _header(), math.inf, "values that are not finite"),
]


@pytest.mark.parametrize(("mine", "its", "distance", "reason"), CASES)
def test_what_is_rejected_at_once(mine: Header, its: Header | None, distance: float, reason: str) -> None:
    verdict = Judge().verdict(mine, its, distance)
    assert verdict is not None
    assert reason in verdict


NORMS = [(1.0, 1.0), (0.1, 50.0), (3.0, 0.0)]


@pytest.mark.parametrize(("norms", "distance"), list(itertools.product(NORMS, [0.05, 4.0, 99.0])))
def test_both_ends_come_to_the_same_verdict(norms: tuple[float, float], distance: float) -> None:
    one, other = Judge(), Judge()
    a, b = _header(norm=norms[0]), _header(norm=norms[1])
    for usual in (0.01, 0.02, 0.015, 0.01, 0.01, 0.02, 0.03, 0.01):
        assert one.verdict(a, b, usual) is other.verdict(b, a, usual) is None
    assert (one.verdict(a, b, distance) is None) == (other.verdict(b, a, distance) is None)


def test_growth_from_nearly_nothing_is_no_outlier() -> None:
    """All workers start equal: distances grow by large factors in the first steps."""
    judge, distance = Judge(), 1e-12
    for _ in range(12):
        assert judge.verdict(_header(), _header(), distance) is None
        distance *= 8.0


def test_three_in_a_row_are_counted_and_one_good_one_forgives() -> None:
    judge = Judge()
    judge.verdict(_header(), _header(), math.nan)
    judge.verdict(_header(), _header(), math.nan)
    assert judge.in_a_row == 2
    judge.verdict(_header(), _header(), 0.1)
    assert judge.in_a_row == 0
    for _ in range(3):
        judge.verdict(_header(), _header(), math.nan)
    assert judge.in_a_row == judge.PATIENCE


def test_the_memory_survives_a_checkpoint() -> None:
    judge, restored = Judge(), Judge()
    for _ in range(10):
        judge.verdict(_header(), _header(), 0.01)
    restored.load_state_dict(judge.state_dict())
    assert restored.verdict(_header(), _header(), 9.0) == judge.verdict(_header(), _header(), 9.0) is not None


def test_a_header_survives_the_wire_and_rubbish_is_no_header() -> None:
    message = torch.randint(0, 256, (128,), dtype=torch.uint8)
    header = Header(number=2**40, turn=3, norm=1.5e300, void=True)
    header.write(message)
    assert Header.read(message) == header
    message[-HEADER_BYTES] += 1
    assert Header.read(message) is None
