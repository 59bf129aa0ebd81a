"""Partitions as statements about sets and frequencies, checked in plain Python."""

import itertools
import random
import statistics
from collections import Counter

import numpy as np
import pytest
import torch

from lightning_decgan.data.partition import (
    PARTITIONS,
    check_partition,
    class_histogram,
    dirichlet_shards,
    epoch_images,
    make_shards,
    shards_by_label,
)


def some_labels(count, classes, seed=0):
    """Labels in no order, every class at least three times, some oftener than others."""
    chooser = random.Random(seed)
    labels = [label for label in range(classes) for _ in range(3)]
    labels += [min(int(chooser.expovariate(0.4)), classes - 1) for _ in range(count - len(labels))]
    chooser.shuffle(labels)
    return labels


def positions(shards):
    return [shard.tolist() for shard in shards]


@pytest.mark.parametrize("partition", [name for name in PARTITIONS if name != "iid"])
@pytest.mark.parametrize(("classes", "workers"), [(10, 1), (10, 4), (10, 10), (10, 16), (3, 8), (1, 3), (2, 2)])
@pytest.mark.parametrize("alpha", [0.05, 5.0])
def test_every_image_goes_to_one_worker_and_no_worker_goes_without(partition, classes, workers, alpha):
    labels = some_labels(211, classes)
    shards = positions(make_shards(partition, labels, workers, seed=5, alpha=alpha))
    assert len(shards) == workers
    assert all(shards)
    assert sorted(itertools.chain(*shards)) == list(range(len(labels)))
    assert all(shard == sorted(shard) for shard in shards)


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7, 10])
def test_classes_are_dealt_out_whole_while_there_are_enough_of_them(workers):
    labels = some_labels(300, 10)
    classes = [{labels[i] for i in shard} for shard in positions(shards_by_label(labels, workers, seed=1))]
    assert sorted(itertools.chain(*classes)) == list(range(10)), "no class is in two shards"
    assert {len(own) for own in classes} <= {10 // workers, -(-10 // workers)}


@pytest.mark.parametrize("workers", [5, 6, 7, 11])
def test_more_workers_than_classes_share_a_class_equally(workers):
    labels = some_labels(200, 4)
    shards = positions(shards_by_label(labels, workers, seed=2))
    owned = [Counter(labels[i] for i in shard) for shard in shards]
    assert all(len(counts) == 1 for counts in owned)
    sharers = Counter(label for counts in owned for label in counts)
    assert max(sharers.values()) - min(sharers.values()) <= 1
    for label in range(4):
        sizes = [counts[label] for counts in owned if label in counts]
        assert max(sizes) - min(sizes) <= 1


def test_which_classes_a_worker_gets_is_drawn():
    labels = [0, 1, 2, 3]
    together = sum({0, 1} in map(set, positions(shards_by_label(labels, 2, seed))) for seed in range(300))
    assert together / 300 == pytest.approx(1 / 3, abs=0.09)  # three ways to pair four classes; 0.09 is 3 deviations


def test_classes_may_have_any_numbers():
    labels = [70, -2, 70, 5, -2, 5]
    named = [{labels[i] for i in shard} for shard in positions(shards_by_label(labels, 3, seed=0))]
    assert sorted(map(tuple, named)) == [(-2,), (5,), (70,)]


@pytest.mark.parametrize("partition", ["by_label", "dirichlet"])
def test_the_seed_is_all_there_is_to_it(partition):
    labels = some_labels(150, 6)
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first = positions(make_shards(partition, labels, 4, seed=7))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    assert positions(make_shards(partition, torch.tensor(labels), 4, seed=7)) == first
    assert positions(make_shards(partition, labels, 4, seed=8)) != first


ALPHA, WORKERS, CLASSES, IMAGES = 0.7, 4, 400, 500


@pytest.fixture(scope="module")
def shares():
    """For each class, each worker's share of it: 400 independent draws from one Dirichlet distribution."""
    labels = [label for label in range(CLASSES) for _ in range(IMAGES)]
    shards = dirichlet_shards(labels, WORKERS, seed=11, alpha=ALPHA)
    counts = [Counter(labels[i] for i in shard) for shard in positions(shards)]
    return [[count[label] / IMAGES for label in range(CLASSES)] for count in counts]


def test_shares_have_the_mean_and_the_variance_of_the_dirichlet_distribution(shares):
    mean, variance = 1 / WORKERS, (1 / WORKERS) * (1 - 1 / WORKERS) / (WORKERS * ALPHA + 1)
    deviation_of_a_mean = (variance / CLASSES) ** 0.5
    for own in shares:
        assert statistics.fmean(own) == pytest.approx(mean, abs=4 * deviation_of_a_mean)
    assert statistics.fmean(map(statistics.variance, shares)) == pytest.approx(variance, rel=0.12)


def test_a_share_is_as_skew_as_its_beta_distribution(shares):
    a, b = ALPHA, (WORKERS - 1) * ALPHA
    skewness = 2 * (b - a) * (a + b + 1) ** 0.5 / ((a + b + 2) * (a * b) ** 0.5)
    together = [share for own in shares for share in own]
    mean, deviation = statistics.fmean(together), statistics.pstdev(together)
    found = statistics.fmean(((share - mean) / deviation) ** 3 for share in together)
    assert found == pytest.approx(skewness, rel=0.15)


def test_each_class_has_a_draw_of_its_own(shares):
    for own in shares:
        assert abs(statistics.correlation(own[:-1], own[1:])) < 0.2


def test_alpha_goes_from_a_class_for_one_worker_to_equal_parts():
    labels = [label for label in range(50) for _ in range(40)]
    apart = dirichlet_shards(labels, 4, seed=0, alpha=1e-6)
    assert sum(len({labels[i] for i in shard}) for shard in positions(apart)) == 50
    alike = dirichlet_shards(labels, 4, seed=0, alpha=1e6)
    assert {count for shard in positions(alike) for count in Counter(labels[i] for i in shard).values()} == {10}


def test_images_of_a_class_are_mixed_before_they_are_dealt():
    """Neighbouring images, as of one film or one day, do not go to the same worker."""
    (first, _) = positions(dirichlet_shards([0] * 1000, 2, seed=0, alpha=1e6))
    assert sum(position < 500 for position in first) == pytest.approx(250, abs=50)


def test_who_is_left_without_images_gets_one_from_the_richest():
    shards = positions(dirichlet_shards([0] * 20, 6, seed=0, alpha=1e-6))
    assert sorted(map(len, shards)) == [1, 1, 1, 1, 1, 15]
    assert sorted(map(len, positions(dirichlet_shards([0] * 6, 6, seed=0, alpha=1e-6)))) == [1] * 6


def test_counts_by_class():
    assert class_histogram([2, 0, 2, 2], 4) == [1, 0, 3, 0]
    assert class_histogram([], 2) == [0, 0]
    for labels in ([0, 3], [-1, 0]):
        with pytest.raises(ValueError, match=r"labels must be from 0 to 2, found"):
            class_histogram(labels, 3)


def test_an_epoch_is_as_long_as_the_mean_shard():
    assert epoch_images([range(7), range(1), range(1)]) == 3
    assert epoch_images([range(8), range(1), range(1)]) == 4


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: check_partition("random", 0.5), ValueError, "partition must be one of 'iid', 'by_label', 'dirichlet'"),
        (lambda: check_partition(None, 0.5), ValueError, "found None"),
        (lambda: check_partition("iid", 0), ValueError, r"alpha must be a number from 1e-06 to 1e\+06, found 0"),
        (lambda: check_partition("iid", float("nan")), ValueError, "alpha must be .* found nan"),
        (lambda: check_partition("iid", float("inf")), ValueError, "alpha must be .* found inf"),
        (lambda: check_partition("iid", "0.5"), TypeError, "alpha must be .* found '0.5'"),
        (lambda: check_partition("iid", True), TypeError, "alpha must be .* found True"),
        (lambda: dirichlet_shards([0, 1], 2, 0, alpha=-1.0), ValueError, "alpha must be .* found -1.0"),
        (lambda: make_shards("iid", [0, 1], 2, 0), ValueError, "'by_label' or 'dirichlet' to have shards, found 'iid'"),
        (lambda: shards_by_label([0, 1], 0, 0), ValueError, "workers must be an integer >= 1, found 0"),
        (lambda: shards_by_label([0, 1], 1.5, 0), TypeError, "workers must be an integer >= 1, found 1.5"),
        (lambda: dirichlet_shards([0, 1], 2, -1), ValueError, "seed must be an integer >= 0, found -1"),
        (lambda: dirichlet_shards([0, 1], 2, None), TypeError, "seed must be an integer >= 0, found None"),
        (lambda: shards_by_label([], 1, 0), ValueError, r"labels must be a vector .* found the shape \(0,\)"),
        (lambda: shards_by_label([[0, 1]], 1, 0), ValueError, r"labels must be a vector .* found the shape \(1, 2\)"),
        (lambda: shards_by_label([0.0, 1.0], 1, 0), TypeError, "labels must be integers, found float64"),
        (
            lambda: dirichlet_shards([0, 1], 3, 0),
            ValueError,
            "found 2 images for 3 workers; .* at most 2 workers",
        ),
        (
            lambda: shards_by_label([0, 0, 0, 1], 4, 0),
            ValueError,
            r"2 of 4 workers would share class 1, which has 1 training image\(s\); valid would be fewer workers",
        ),
    ],
)
def test_what_cannot_be_dealt_out_is_said(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
