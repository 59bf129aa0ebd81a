"""The scores equal independent NumPy formulas, alone and over processes, and leave global random numbers alone."""

import multiprocessing
import pickle
import traceback
from datetime import timedelta

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from lightning_decgan.metrics import ClassifierFeatures, Fidelity

SIDE = 2


class Pixels(nn.Module):
    """Features that are the pixels themselves, and logits that are ten times the first three of them."""

    name = "pixels"
    num_features = SIDE * SIDE

    def __init__(self, gap: float = 10.0) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(gap * torch.eye(3, 4))

    def forward(self, images):
        return images.flatten(1)


def as_images(features: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(features).reshape(-1, 1, SIDE, SIDE).float()


def draw(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(4, 4)) * 0.1
    return np.clip(rng.normal(size=(count, 4)) @ mixing + shift, -1, 1).astype(np.float32).astype(np.float64)


def numpy_frechet(real: np.ndarray, fake: np.ndarray) -> float:
    cov_real, cov_fake = np.cov(real.T), np.cov(fake.T)
    root = scipy.linalg.sqrtm(cov_real)
    cross = scipy.linalg.sqrtm(root @ cov_fake @ root)  # the symmetric form, unlike torchmetrics' eigenvalues
    return float(((real.mean(0) - fake.mean(0)) ** 2).sum() + np.trace(cov_real + cov_fake - 2 * cross.real))


def numpy_kernel_distance(real: np.ndarray, fake: np.ndarray) -> float:
    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    count = len(real)
    off_diagonal = ~np.eye(count, dtype=bool)
    within = kernel(real, real)[off_diagonal].sum() + kernel(fake, fake)[off_diagonal].sum()
    return float(within / (count * (count - 1)) - 2 * kernel(real, fake).mean())


def numpy_inception_score(logits: np.ndarray) -> float:
    probabilities = np.exp(logits - scipy.special.logsumexp(logits, axis=1, keepdims=True))
    marginal = probabilities.mean(0)
    return float(np.exp((probabilities * np.log(probabilities / marginal)).sum(1).mean()))


def fidelity(**options) -> Fidelity:
    return Fidelity(Pixels(), **{"kernel_subsets": 3, "kernel_subset_size": 20, **options})


def scores(real: np.ndarray, fake: np.ndarray, **options) -> dict[str, float]:
    metric = fidelity(**options)
    for batch in as_images(real).split(17):
        metric.update(batch, real=True)
    for batch in as_images(fake).split(23):
        metric.update(batch, real=False)
    return metric.compute()


def test_frechet_distance_equals_the_formula():
    real, fake = draw(300, 1), draw(200, 2, shift=0.2)
    assert scores(real, fake)["frechet_distance"] == pytest.approx(numpy_frechet(real, fake), rel=1e-9)


def test_frechet_distance_of_two_known_gaussians_is_the_closed_form():
    # Points that have exactly mean m and covariance s^2 I: m +- s sqrt((n - 1) / 2) e_i, n = 8, d = 4.
    def cross(mean: float, deviation: float) -> np.ndarray:
        return mean + deviation * np.sqrt(7 / 2) * np.concatenate([np.eye(4), -np.eye(4)])

    found = scores(cross(0.1, 0.2), cross(-0.1, 0.4), kernel_subset_size=8)["frechet_distance"]
    assert found == pytest.approx(4 * 0.2**2 + 4 * (0.4 - 0.2) ** 2, rel=1e-6)  # pixels are float32


def test_kernel_distance_of_one_subset_with_everything_equals_the_formula():
    real, fake = draw(60, 3), draw(60, 4, shift=0.1)
    found = scores(real, fake, kernel_subsets=1, kernel_subset_size=60)["kernel_distance"]
    assert found == pytest.approx(numpy_kernel_distance(real, fake), rel=1e-9)


def test_inception_score_equals_the_formula_on_the_heads_logits():
    real, fake = draw(50, 5), draw(90, 6)
    assert scores(real, fake)["inception_score"] == pytest.approx(numpy_inception_score(10 * fake[:, :3]), rel=1e-6)


def test_sure_and_balanced_classes_score_their_number_and_a_single_class_scores_one():
    one_hot = np.tile(np.eye(4)[:3], (20, 1))
    metric = Fidelity(Pixels(gap=5000.0), kernel_subset_size=20)  # probabilities that are 0 in double precision
    metric.update(as_images(one_hot), real=True)
    metric.update(as_images(one_hot), real=False)
    assert metric.compute()["inception_score"] == pytest.approx(3.0, rel=1e-12)
    metric.reset()
    metric.update(as_images(one_hot), real=True)
    metric.update(as_images(one_hot[::3]), real=False)
    assert metric.compute()["inception_score"] == pytest.approx(1.0, rel=1e-12)


def test_equal_sets_are_at_no_distance_also_with_fewer_images_than_features():
    network = ClassifierFeatures(1, 8, 10, name="untrained").freeze()
    metric = Fidelity(network, kernel_subsets=1, kernel_subset_size=30)
    images = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    metric.update(images, real=True)
    metric.update(images.flip(0), real=False)
    found = metric.compute()
    assert 0.0 <= found["frechet_distance"] < 1e-5
    # The unbiased estimate leaves out k(x, x) within the sets but not across: equal sets come out a little negative.
    features = network(images).double().numpy()
    assert found["kernel_distance"] == pytest.approx(numpy_kernel_distance(features, features), rel=1e-9)


def test_worse_images_are_farther_away():
    real = draw(200, 7)
    near, far = scores(real, draw(200, 8, shift=0.05)), scores(real, draw(200, 8, shift=0.4))
    assert near["frechet_distance"] < far["frechet_distance"]
    assert near["kernel_distance"] < far["kernel_distance"]


def test_the_same_images_give_the_same_numbers_and_the_global_random_numbers_stay():
    metric = fidelity(inception_splits=4)
    metric.update(as_images(draw(90, 9)), real=True)
    metric.update(as_images(draw(90, 10)), real=False)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(metric.compute())
        assert torch.equal(before, torch.get_rng_state())
    assert found[0] == found[1]
    assert scores(draw(90, 9), draw(90, 10), seed=1)["kernel_distance"] != found[0]["kernel_distance"]


def test_small_differences_are_not_rounded_to_256_levels():
    real = draw(100, 11)
    found = scores(real, np.clip(real + 1e-3, -1, 1))["frechet_distance"]
    assert found == pytest.approx(4e-6, rel=1e-2)


def test_computing_twice_and_updating_between_scores_the_union():
    metric = fidelity()
    real, fake = draw(80, 12), draw(80, 13)
    metric.update(as_images(real), real=True)
    metric.update(as_images(fake[:40]), real=False)
    metric.compute()
    metric(as_images(fake[40:]), real=False)  # calling it is updating it
    assert metric.compute() == scores(real, fake)


def test_real_features_are_kept_across_resets_only_if_asked_for():
    real, fake = draw(60, 14), draw(60, 15)
    kept = fidelity(reset_real_features=False)
    kept.update(as_images(real), real=True)
    for seed in (16, 15):
        kept.reset()
        kept.update(as_images(draw(60, seed)), real=False)
        found = kept.compute()
    assert found == scores(real, fake)
    forgotten = fidelity()
    forgotten.update(as_images(real), real=True)
    forgotten.reset()
    forgotten.update(as_images(fake), real=False)
    with pytest.raises(ValueError, match="found 0 real and 60 generated"):
        forgotten.compute()


def test_too_few_images_are_an_error_that_says_how_many():
    metric = fidelity(kernel_subset_size=50)
    metric.update(as_images(draw(60, 1)), real=True)
    metric.update(as_images(draw(49, 2)), real=False)
    with pytest.raises(ValueError, match=r"kernel_subset_size=50 needs .* found 60 real and 49 generated"):
        metric.compute()
    metric.update(as_images(draw(1, 3)), real=False)
    assert np.isfinite(list(metric.compute().values())).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_generator_scores_nan_and_bad_real_images_are_an_error(value):
    images = as_images(draw(30, 1))
    broken = images.clone()
    broken[7, 0, 0, 0] = value
    metric = fidelity()
    metric.update(images, real=True)
    metric.update(broken, real=False)
    assert np.isnan(list(metric.compute().values())).all()
    with pytest.raises(ValueError, match="real images must be finite and in"):
        metric.update(broken, real=True)


def test_wrong_images_are_named():
    metric = fidelity()
    with pytest.raises(ValueError, match=r"real images must be finite and in \[-1, 1\], found values from 0 to 255"):
        metric.update(torch.tensor([0.0, 1.0, 2.0, 255.0]).reshape(1, 1, 2, 2), real=True)
    with pytest.raises(TypeError, match=r"floating-point tensor in \[-1, 1\], found torch.uint8"):
        metric.update(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), real=True)
    with pytest.raises(ValueError, match=r"images must be \(n, c, h, w\)"):
        metric.update(torch.zeros(4, 4), real=False)


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match=r"features must be a torch\.nn.Module with an integer num_features"):
        Fidelity(nn.Identity())
    with pytest.raises(ValueError, match="kernel_subset_size must be an integer >= 2, found 1"):
        fidelity(kernel_subset_size=1)
    with pytest.raises(TypeError, match="reset_real_features must be True or False, found 'no'"):
        fidelity(reset_real_features="no")


def test_features_of_another_width_than_announced_are_an_error():
    network = Pixels()
    network.num_features = 5
    with pytest.raises(ValueError, match=r"'pixels' must give \(20, 5\) features, found \(20, 4\)"):
        Fidelity(network).update(as_images(draw(20, 1)), real=True)


def test_a_network_without_a_head_has_no_inception_score():
    network = Pixels()
    del network.head
    metric = Fidelity(network, kernel_subset_size=20)
    for real in (True, False):
        metric.update(as_images(draw(20, 1)), real=real)
    assert sorted(metric.compute()) == ["frechet_distance", "kernel_distance"]


def test_the_network_never_trains_and_the_table_names_it():
    network = ClassifierFeatures(1, 8, 10, name="digits_cnn")
    network.accuracy = 0.9876
    metric = Fidelity(network)
    nn.ModuleList([metric]).train()
    assert not network.training
    text = metric.table({"frechet_distance": 1.5, "kernel_distance": -0.001, "inception_score": 9.25})
    assert text.splitlines()[0] == "features of digits_cnn (98.8 % accuracy)"
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["frechet_distance", "1.5000"], ["kernel_distance", "-0.0010"], ["inception_score", "9.2500"],
    ]  # fmt: skip
    assert "FID" not in text
    assert metric.features_name == "digits_cnn"


def test_half_precision_images_autocast_and_inference_mode_change_nothing():
    network = ClassifierFeatures(1, 8, 10).freeze()
    images = (torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1).bfloat16()

    def run(one: torch.Tensor) -> dict[str, float]:
        metric = Fidelity(network, kernel_subset_size=20)
        metric.update(one, real=True)
        metric.update(one * 0.5, real=False)
        return metric.compute()

    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run(images)
    assert inside == run(images.float())


def test_it_survives_pickling_with_what_it_has_seen():
    metric = fidelity()
    metric.update(as_images(draw(30, 1)), real=True)
    metric.update(as_images(draw(30, 2)), real=False)
    assert pickle.loads(pickle.dumps(metric)).compute() == metric.compute()


def one_of_two(rank: int, folder: str, results) -> None:
    """A worker with its share of the images: rank 0 has no real ones, and fewer batches of generated ones."""
    try:
        torch.set_num_threads(1)  # a forked process must not use the pool of threads that stayed behind
        store = torch.distributed.FileStore(f"{folder}/store", 2)
        torch.distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60)
        )
        real, fake = draw(90, 20), draw(70, 21)
        shares = {0: (real[:0], fake[:20]), 1: (real, fake[20:])}
        metric = fidelity()
        found = []
        try:
            metric.compute()
        except ValueError as error:
            found.append(str(error))  # on every worker alike: nobody is left waiting
        for batch in as_images(shares[rank][0]).split(13):
            metric.update(batch, real=True)
        for batch in as_images(shares[rank][1]).split(13):
            metric.update(batch, real=False)
        found.append(metric.compute())
        if rank == 1:
            metric.update(as_images(draw(5, 22)), real=False)  # the other has nothing new, and still takes part
        found.append(metric.compute())
        results.put((rank, found))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    except BaseException:
        results.put((rank, traceback.format_exc()))
        raise


@pytest.mark.processes
def test_two_processes_with_unequal_shares_score_the_union_alike(tmp_path):
    context = multiprocessing.get_context("fork")  # importing everything anew would take many seconds
    results = context.Queue()
    workers = [context.Process(target=one_of_two, args=(rank, str(tmp_path), results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    try:
        found = dict(results.get(timeout=60) for _ in workers)
        for worker in workers:
            worker.join(timeout=30)
    finally:
        for worker in workers:
            worker.kill()
    assert found[0] == found[1], found
    message, union, later = found[0]
    assert "found 0 real and 0 generated" in message
    # The order of images is that of the workers, as in one process; sums of sums may differ in the last bits.
    assert union == pytest.approx(scores(draw(90, 20), draw(70, 21)), rel=1e-9)
    assert later["frechet_distance"] != union["frechet_distance"]
