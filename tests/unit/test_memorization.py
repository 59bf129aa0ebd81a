"""Nearest neighbours and the rank test equal independent references; copies are told from new images."""

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import torch

from lightning_decgan.metrics import check_memorization
from lightning_decgan.metrics.memorization import nearest_neighbors, rank_test


def draw(count: int, seed: int, dimension: int = 6, shift: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1.0, (count, dimension))).float()


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_neighbours_are_those_of_the_full_distance_matrix(monkeypatch, count, offset):
    monkeypatch.setattr("lightning_decgan.metrics.memorization._QUERY_ROWS", 7)
    monkeypatch.setattr("lightning_decgan.metrics.memorization._REFERENCE_ROWS", 11)
    queries, references = draw(30, 1) + offset, draw(40, 2) + offset
    full = scipy.spatial.distance.cdist(queries.double().numpy(), references.double().numpy())
    distances, rows = nearest_neighbors(queries, references, count)
    np.testing.assert_allclose(distances.numpy(), np.sort(full, axis=1)[:, :count], rtol=1e-12)
    np.testing.assert_array_equal(rows.numpy(), np.argsort(full, axis=1)[:, :count])


def test_an_exact_copy_is_at_distance_zero_and_not_nearly():
    references = draw(500, 3) * 100
    distances, rows = nearest_neighbors(references[123:130], references)
    assert distances.flatten().tolist() == [0.0] * 7
    assert rows.flatten().tolist() == list(range(123, 130))


@pytest.mark.parametrize(("rounded", "shift"), [(False, 0.0), (False, 0.7), (True, 0.3)])
def test_the_rank_test_is_scipys(rounded, shift):
    rng = np.random.default_rng(4)
    first, second = rng.normal(shift, 1, 80), rng.normal(0, 1, 130)
    if rounded:  # many ties
        first, second = first.round(), second.round()
    below, z = rank_test(torch.from_numpy(first), torch.from_numpy(second))
    expected = scipy.stats.mannwhitneyu(first, second, method="asymptotic", use_continuity=False)
    assert 2 * scipy.stats.norm.sf(abs(z)) == pytest.approx(expected.pvalue, rel=1e-9)
    assert 1 - below == pytest.approx(expected.statistic / (80 * 130), rel=1e-12)


def test_numbers_that_are_all_equal_say_nothing():
    assert rank_test(torch.ones(5), torch.ones(9)) == (0.5, 0.0)


def test_new_images_copies_and_strange_images_are_told_apart():
    training, held_out = draw(400, 5), draw(200, 6)
    new = check_memorization(draw(300, 7), training, held_out).numbers
    assert abs(new["z"]) < 3
    assert new["ratio"] == pytest.approx(1.0, abs=0.1)
    assert new["nearer"] == pytest.approx(0.5, abs=0.1)
    assert new["share_below_1_percent"] < 0.05
    blurred = check_memorization(training[:300] + 0.05 * draw(300, 8), training, held_out).numbers
    assert blurred["z"] < -10
    assert blurred["ratio"] < 0.2
    assert blurred["share_below_1_percent"] > 0.99
    strange = check_memorization(draw(300, 9, shift=3.0), training, held_out).numbers
    assert strange["z"] > 10
    assert strange["ratio"] > 1.5


def test_a_few_copies_among_many_new_images_are_found_by_name():
    training, held_out = draw(400, 5), draw(200, 6)
    generated = torch.cat([draw(100, 7), training[[17, 250]]])
    found = check_memorization(generated, training, held_out)
    copies = (found.distances[:, 0] == 0).nonzero().flatten().tolist()
    assert copies == [100, 101]
    assert found.neighbors[copies, 0].tolist() == [17, 250]


def test_copies_are_counted_where_held_out_images_are_copies_too():
    training = draw(300, 5)
    held_out = torch.cat([draw(97, 6), training[:3]])
    found = check_memorization(torch.cat([training[100:150], draw(50, 8)]), training, held_out).numbers
    assert found["share_below_1_percent"] == 0.5


def test_as_many_held_out_images_as_generated_ones_are_drawn_by_the_seed():
    training, held_out, generated = draw(50, 1), draw(40, 2), draw(10, 3)
    first, again, other = (check_memorization(generated, training, held_out, seed=seed) for seed in (0, 0, 1))
    assert len(first.held_out_rows) == first.numbers["held_out_images"] == 10
    assert torch.equal(first.held_out_rows, again.held_out_rows)
    assert not torch.equal(first.held_out_rows, other.held_out_rows)
    distances, _ = nearest_neighbors(held_out[first.held_out_rows], training, 3)
    assert torch.equal(distances, first.held_out_distances)
    few = check_memorization(draw(60, 3), training, held_out)
    assert few.held_out_rows.tolist() == list(range(40))


def test_bad_input_is_named():
    features = draw(10, 1)
    with pytest.raises(ValueError, match="generated must hold features of at least one image"):
        check_memorization(features[:0], features, features)
    with pytest.raises(ValueError, match=r"generated must be finite.*diverged"):
        check_memorization(features * float("nan"), features, features)
    with pytest.raises(ValueError, match="neighbors must be an integer from 1 to 10, found 11"):
        check_memorization(features, features, features, neighbors=11)
    with pytest.raises(ValueError, match=r"found \(10, 6\) and \(10, 5\)"):
        nearest_neighbors(features, features[:, :5])
    with pytest.raises(ValueError, match="found 0 and 3"):
        rank_test(torch.ones(0), torch.ones(3))
