"""The pictures that `decgan` draws of checkpoints and runs, and the mathematics of the walks."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_decgan.cli.checkpoint import load_trained
from lightning_decgan.cli.curves import draw_curves, panels_of, read_metrics, running_mean
from lightning_decgan.cli.errors import UsageError
from lightning_decgan.cli.interpolate import slerp, walk
from lightning_decgan.cli.main import main
from lightning_decgan.cli.pictures import save_animation
from lightning_decgan.cli.sample import distance_from
from tests.checkpoints import tiny_checkpoint, with_shards


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("conditional"), "num_classes=10")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that has logged and drawn, as far as these commands look into it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "csv").mkdir()
    lines = ["d_loss,g_loss,step,epoch,fidelity/digits_cnn/frechet_distance,gossip/relative_consensus_distance"]
    lines += [f"{1 / (1 + step)},nan,{step},0,," for step in range(100)]
    lines += [",,49,0,90.0,0.1", ",,99,0,30.0,0.05", "0.5,0."]
    (folder / "csv" / "metrics.csv").write_text("\n".join(lines))
    (folder / "samples").mkdir()
    for step in (900, 1000, 0):
        Image.new("L", (20, 10), step // 4).save(folder / "samples" / f"step-{step:06d}-consensus.png")
    Image.new("L", (5, 5)).save(folder / "samples" / "step-000500-worker-0.png")
    return folder


def refused(capsys, *words):
    """The one line that `decgan WORDS` ends with."""
    assert main([str(word) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


# Walks


def test_slerp_moves_at_a_constant_angle_and_keeps_the_length():
    a, b = np.random.default_rng(0).standard_normal((2, 5, 32))
    b *= np.linalg.norm(a, axis=1, keepdims=True) / np.linalg.norm(b, axis=1, keepdims=True)
    whole = np.arccos((a * b).sum(1) / np.linalg.norm(a, axis=1) ** 2)
    for fraction in (0.0, 0.25, 0.7, 1.0):
        point = slerp(torch.from_numpy(a), torch.from_numpy(b), fraction).numpy()
        np.testing.assert_allclose(np.linalg.norm(point, axis=1), np.linalg.norm(a, axis=1), rtol=1e-12)
        cosine = (a * point).sum(1) / np.linalg.norm(a, axis=1) ** 2
        np.testing.assert_allclose(np.arccos(np.clip(cosine, -1, 1)), fraction * whole, atol=1e-7)


def test_slerp_of_parallel_latents_is_the_straight_line():
    a = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(slerp(a, 2 * a, 0.5), 1.5 * a)
    torch.testing.assert_close(slerp(a, a, 0.3), a)


def test_a_walk_passes_through_its_points_and_a_closed_one_comes_back():
    points = torch.randn(4, 2, 16)
    there, round_trip = walk(points, 5, closed=False), walk(points, 5, closed=True)
    assert (len(there), len(round_trip)) == (16, 20)
    torch.testing.assert_close(there[::5], points)
    torch.testing.assert_close(round_trip[::5], points)
    torch.testing.assert_close(round_trip[16], slerp(points[3], points[0], 0.2))


# Commands on checkpoints


def test_a_strip_goes_into_the_runs_folder_and_its_ends_are_samples(checkpoint, capsys):
    assert main(["interpolate", str(checkpoint), "--walks", "3", "--steps", "4", "--seed", "7"]) == 0
    path = checkpoint.parent / "interpolation.png"
    assert capsys.readouterr().out == f"{path}\n"
    with Image.open(path) as image:
        assert image.size == (5 * 50 + 2, 3 * 50 + 2)
        strip = np.array(image)
    model = load_trained(checkpoint).model
    torch.manual_seed(7)
    first = model.render(model.sample_latent(6))[0, 0].add(1).mul(127.5).round().clamp(0, 255).numpy()
    np.testing.assert_array_equal(strip[2:50:6, 2:50:6], first.astype(np.uint8))


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_an_animation_of_walks(checkpoint, tmp_path, ending):
    path = tmp_path / f"walk.{ending}"
    words = ["--walks", "4", "--points", "3", "--steps", "2", "-o", str(path)]
    assert main(["interpolate", str(checkpoint), *words]) == 0
    with Image.open(path) as image:
        assert image.size == (2 * 50 + 2, 2 * 50 + 2)
        assert image.n_frames == 6 or ending == "webp", "WebP makes one frame of two that can hardly be told apart"


@pytest.mark.parametrize("ending", ["gif", "webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_has_all_frames_and_begins_again_for_ever(tmp_path, ending, channels):
    frames = [torch.full((channels, 8, 12), shade, dtype=torch.uint8) for shade in (10, 120, 250)]
    path = save_animation(frames, tmp_path / f"shades.{ending}", 70)
    with Image.open(path) as image:
        assert (image.n_frames, image.info["loop"], image.size) == (3, 0, (12, 8))
        shades = []
        for number in range(3):
            image.seek(number)
            shades.append(image.convert("L").getpixel((5, 5)))
    assert shades == pytest.approx([10, 120, 250], abs=3)


def test_a_row_for_each_class(conditional, tmp_path, capsys):
    assert main(["sample", str(conditional), "--by-class", "--columns", "3"]) == 0
    path = conditional.parent / "classes.png"
    assert capsys.readouterr().out == f"{path}\n"
    with Image.open(path) as image:
        assert image.height > 10 * 48, "ten rows that can be seen"


def test_workers_side_by_side_say_how_far_they_are_from_the_consensus(checkpoint, tmp_path, capsys):
    path = with_shards(checkpoint, tmp_path / "sharded.ckpt", [1.0, 1.2])
    assert main(["sample", str(path), "--per-worker", "--columns", "4"]) == 0
    first, second, drawn = capsys.readouterr().out.splitlines()
    assert first.startswith("worker 0: 0.000 x as far from the consensus")
    assert 0 < float(second.split()[2]) < 10
    assert drawn == str(tmp_path / "workers.png")
    with Image.open(drawn) as image:
        image.verify()


def test_the_distance_of_a_worker_is_measured_in_distances_between_samples():
    consensus = torch.randn(6, 1, 4, 4)
    assert distance_from(consensus, consensus) == 0
    assert distance_from(consensus, consensus.roll(1, 0)) == pytest.approx(1)
    assert math.isnan(distance_from(torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)))


# Commands on runs


def test_the_curves_of_a_run(run, capsys):
    assert main(["curves", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'curves.png'}\n"
    with Image.open(run / "curves.png") as image:
        image.verify()


def test_metrics_are_read_by_batches_and_without_what_is_not_finite_or_half_written(run):
    series = read_metrics(run / "csv" / "metrics.csv")
    assert "g_loss" not in series
    assert series["fidelity/digits_cnn/frechet_distance"] == ([50, 100], [90.0, 30.0])
    steps, losses = series["d_loss"]
    assert (len(losses), steps[-1]) == (100, 100)
    titles = [title for title, _ in panels_of(series)]
    assert titles == [
        "losses",
        "frechet_distance (features: digits_cnn)",
        "distance of the workers from their mean, relative",
    ]


def test_the_running_mean_is_that_of_numpy():
    values = np.random.default_rng(0).standard_normal(50)
    expected = [values[max(0, place - 6) : place + 1].mean() for place in range(50)]
    np.testing.assert_allclose(running_mean(values.tolist(), 7), expected, atol=1e-12)
    assert running_mean([1.0, 1e20, 1.0, 1.0, 1.0], 2)[3:] == [1.0, 1.0]


def test_half_a_number_is_no_number_and_a_feature_network_may_have_a_slash_in_its_name(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,d_loss\n9,1.0\n1234,2.0\n12")
    assert read_metrics(tmp_path / "metrics.csv") == {"d_loss": ([10, 1235], [1.0, 2.0])}
    ((title, _),) = panels_of({"fidelity/org/net/frechet_distance": ([1], [9.0])})
    assert title == "frechet_distance (features: org/net)"


def test_metrics_that_nobody_draws_are_named(tmp_path):
    with pytest.raises(UsageError, match="none of the metrics logged has a curve: other"):
        draw_curves({"other": ([1], [1.0])}, tmp_path / "x.png")


def test_the_timeline_shows_the_consensus_in_the_order_of_steps(run, capsys):
    assert main(["timeline", str(run), "-o", str(run / "t.gif")]) == 0
    with Image.open(run / "t.gif") as image:
        shades = []
        for frame in range(image.n_frames):
            image.seek(frame)
            shades.append(image.convert("L").getpixel((0, 0)))
    assert shades == [0, 225, 250], "equal frames at the end become one that lasts longer"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sample", "CKPT", "--by-class"), "by-class needs a conditional GAN, found one without classes"),
        (("sample", "CKPT", "--per-worker"), "knows no workers"),
        (("sample", "CKPT", "--per-worker", "-n", 3), "samples belong to a plain grid"),
        (("sample", "CKPT", "-o", "x.jpg"), "output must end in .png, found x.jpg"),
        (("interpolate", "CKPT", "-o", "x.mp4"), "output must end in .png or .gif or .webp, found x.mp4"),
        (("interpolate", "CKPT", "--points", 1), "points must be an integer from 2"),
        (("interpolate", "CKPT", "--points", 500, "--steps", 500), "points * steps must be an integer from 2 to 1000"),
        (("interpolate", "CKPT", "--walks", 0), "walks must be an integer from 1 to 256, found 0"),
        (("interpolate", "CKPT", "-o", "/proc/x.png"), "output /proc/x.png cannot be written"),
        (("curves", "/nowhere"), "run has no /nowhere/csv/metrics.csv"),
        (("timeline", "/nowhere"), "run /nowhere has no sample grids"),
        (("timeline", "/nowhere", "-o", "x.png"), "output must end in .gif or .webp"),
    ],
)
def test_words_that_cannot_be_used_are_answered_in_one_line(checkpoint, capsys, words, message):
    assert message in refused(capsys, *(checkpoint if word == "CKPT" else word for word in words))


def test_a_run_that_has_logged_nothing_yet_says_so(tmp_path, capsys):
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "metrics.csv").write_text("d_loss,step\n")
    assert "holds no metrics yet" in refused(capsys, "curves", tmp_path)


def test_grids_of_different_sizes_are_refused(tmp_path, capsys):
    (tmp_path / "samples").mkdir()
    for step, size in ((1, 4), (2, 8)):
        Image.new("L", (size, size)).save(tmp_path / "samples" / f"step-{step:06d}-model.png")
    assert "grids of different sizes: step-000001-model.png and step-000002-model.png" in refused(
        capsys, "timeline", tmp_path
    )
