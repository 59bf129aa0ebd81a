"""`decgan topology`, called in-process: what it prints, draws and refuses."""

import argparse
import re

import matplotlib.image
import networkx as nx
import numpy as np
import pytest
from matplotlib.axes import Axes

from lightning_decgan.cli.plots import layout, plot_topology
from lightning_decgan.cli.topology import add_parser, main
from lightning_decgan.topology import (
    TOPOLOGIES,
    Complete,
    Exponential,
    GraphTopology,
    Hypercube,
    MatrixTopology,
    RandomRing,
    Ring,
    Torus,
    build_topology,
)


def facts(out):
    """The lines 'name   value' at the end of a report."""
    return dict(
        re.split(r"\s{2,}", line, maxsplit=1) for line in out.splitlines() if re.match(r"[a-z].*\S\s{2,}\S", line)
    )


def test_a_ring_of_eight_is_told_completely(capsys):
    assert main(["ring", "--workers", "8", "--megabytes", "11"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "ring, 8 workers, the same in every round"
    assert "worker 3  2 4" in out
    assert out.count("0.333") == 24
    found = facts(out)
    assert float(found["spectral gap"]) == pytest.approx(Ring(8).spectral_gap(), rel=1e-5)
    assert found["consensus rate"] == "0.804738 a round"
    assert found["rounds to 0.01"] == "22"
    assert found["messages a step"] == "2 a worker"
    assert found["bytes a step"].startswith("22.00 MB sent by a worker")
    assert found["all-reduce for comparison"] == "19.25 MB sent by a worker"


def test_rounds_multiply_messages_and_divide_steps(capsys):
    assert main(["ring", "--workers", "8", "--rounds", "3", "--parameters", "1000", "--dtype-bytes", "2"]) == 0
    found = facts(capsys.readouterr().out)
    assert found["rounds to 0.01"] == "22"
    assert found["steps to 0.01"] == "8 (3 rounds a step)"
    assert found["messages a step"] == "6 a worker"
    assert found["bytes a step"] == "12.00 kB sent by a worker, as many received (a message is 2.00 kB)"


def test_a_schedule_shows_a_column_and_a_matrix_for_each_round(capsys):
    assert main(["one_peer_exponential", "--workers", "6"]) == 0
    out = capsys.readouterr().out
    assert "a schedule of 3 rounds" in out
    assert re.search(r"worker 2 +3 +0 +-\n", out)
    assert out.count("mixing matrix W, round") == 3
    # 6, 4 and 4 of six workers swap in rounds 0, 1 and 2
    assert facts(out)["messages a step"] == "0.7778 a worker on average, 0 to 1"


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 7])
def test_messages_are_counted_over_all_steps_of_a_schedule(rounds, capsys):
    assert main(["one_peer_exponential", "--workers", "5", "--rounds", str(rounds)]) == 0
    topology = build_topology("one_peer_exponential", 5)
    counts = [
        sum(topology.degree(worker, step * rounds + extra) for extra in range(rounds))
        for step in range(3)
        for worker in range(5)
    ]
    expected = f"{np.mean(counts):.4g} a worker on average, {min(counts)} to {max(counts)}"
    assert facts(capsys.readouterr().out)["messages a step"] == expected


def test_the_seed_reaches_the_draw(capsys):
    outputs = []
    for seed in ("1", "1", "2"):
        assert main(["random_ring", "--workers", "9", "--seed", seed]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]
    assert "root mean square over the draws" in outputs[0]


@pytest.mark.parametrize("name", list(TOPOLOGIES))
@pytest.mark.parametrize("workers", [1, 2, 4, 64])
def test_every_topology_reports(name, workers, capsys):
    assert main([name, "--workers", str(workers)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{name}, {workers} worker")
    assert captured.err == ""


def test_many_workers_are_shortened_not_printed(capsys):
    assert main(["complete", "--workers", "300"]) == 0
    out = capsys.readouterr().out
    assert "... and 236 more" in out
    assert "300 x 300, too large to print" in out
    assert max(map(len, out.splitlines())) < 140


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rign", "--workers", "8"], "found 'rign'; did you mean 'ring'?"),
        (["hypercube", "--workers", "6"], "the nearest are 4 and 8"),
        (["ring"], "the following arguments are required: --workers"),
        (["ring", "--workers", "eight"], "argument --workers: invalid int value: 'eight'"),
        (["ring", "--workers", "0"], "--workers must be an integer from 1 to 100000, found 0"),
        (["ring", "--workers", "1000000"], "--workers must be an integer from 1 to 100000, found 1000000"),
        (["ring", "--workers", "4", "--rounds", "0"], "--rounds must be an integer >= 1, found 0"),
        (["ring", "--workers", "4", "--seed", "-1"], "seed must be an integer >= 0, found -1"),
        (["ring", "--workers", "4", "--parameters", "0"], "--parameters must be an integer >= 1, found 0"),
        (["ring", "--workers", "4", "--megabytes", "nan"], "--megabytes must be a positive number, found nan"),
        (["ring", "--workers", "4", "--dtype-bytes", "0"], "--dtype-bytes must be an integer >= 1, found 0"),
        (["ring", "--workers", "4", "--parameters", "5", "--megabytes", "1"], "not allowed with argument"),
        (["ring", "--workers", "4", "--colour"], "unrecognized arguments: --colour"),
        (["ring", "--workers", "4", "--plot", "/nowhere/ring.png"], "in a folder that exists, found /nowhere"),
        (["ring", "--workers", "4", "--plot", "ring.docx"], "path must end in one of "),
        (["ring", "--workers", "600", "--plot", "ring.png"], "workers must be at most 512 for a picture, found 600"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_on_stderr_and_exit_status_two(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("decgan topology: error: ")
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


def test_help_lists_the_names(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "one_peer_exponential" in capsys.readouterr().out


def test_the_command_can_be_one_of_several(capsys):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["topology", "ring", "--workers", "2"])
    assert arguments.run(arguments) == 0
    assert capsys.readouterr().out.startswith("ring, 2 workers")


def test_plot_writes_a_picture_and_says_where(capsys, tmp_path):
    path = tmp_path / "ring.png"
    assert main(["ring", "--workers", "8", "--plot", str(path)]) == 0
    assert str(path) in capsys.readouterr().out
    picture = matplotlib.image.imread(path)
    assert min(picture.shape[:2]) > 500
    ink = (picture[..., :3] < 0.5).any(axis=2).mean()
    assert 0.005 < ink < 0.3


@pytest.mark.parametrize(
    "topology",
    [
        Ring(1),
        Ring(2),
        Torus(12),
        Torus(6),
        Hypercube(16),
        Exponential(100),
        GraphTopology(nx.star_graph(5)),
        MatrixTopology([[0.8, 0.2, 0.0], [0.2, 0.5, 0.3], [0.0, 0.3, 0.7]]),
    ],
    ids=lambda topology: f"{topology.name}{topology.workers}",
)
def test_every_shape_can_be_drawn_with_nobody_on_top_of_another(topology, tmp_path):
    places = np.array([layout(topology)[worker] for worker in range(topology.workers)])
    assert np.abs(places).max() <= 1 + 1e-9
    if topology.workers > 1:
        apart = np.linalg.norm(places[:, None] - places[None, :], axis=2) + 9 * np.eye(topology.workers)
        assert apart.min() > 0.05
    path = plot_topology(topology, tmp_path / "picture.png")
    assert matplotlib.image.imread(path).std() > 0.01


def words(path):
    """The texts of an SVG, which matplotlib repeats in comments (those with an outline excepted)."""
    return re.findall(r"<!-- (.*?) -->", path.read_text())


@pytest.fixture
def written(monkeypatch):
    """Every text that is put into a panel."""
    texts = []
    write = Axes.text
    monkeypatch.setattr(Axes, "text", lambda self, x, y, s, **k: texts.append(s) or write(self, x, y, s, **k))
    return texts


def test_weights_stand_on_the_edges_as_fractions_where_they_are_some(written, tmp_path):
    plot_topology(Ring(5), tmp_path / "ring.png")
    assert sorted(written) == sorted(["1/3"] * 5 + list("01234"))
    written.clear()
    plot_topology(MatrixTopology([[0.8, 0.2, 0.0], [0.2, 0.5, 0.3], [0.0, 0.3, 0.7]]), tmp_path / "matrix.png")
    assert sorted(written) == sorted(["1/5", "0.3", "0", "1", "2"])


def test_a_weight_that_all_edges_share_stands_above_a_crowded_picture(tmp_path):
    assert any("every edge 1/16" in text for text in words(plot_topology(Complete(16), tmp_path / "complete.svg")))


def test_a_schedule_has_a_panel_a_round(tmp_path):
    titles = words(plot_topology(RandomRing(6), tmp_path / "four.svg"))
    assert [title for title in titles if title.startswith("round ")] == ["round 0", "round 1", "round 2", "round 3"]
    titles = words(plot_topology(RandomRing(6), tmp_path / "six.svg", rounds=6))
    assert "round 5" in titles
    titles = words(plot_topology(build_topology("one_peer_exponential", 5), tmp_path / "three.svg"))
    assert [title for title in titles if title.startswith("round ")] == ["round 0", "round 1", "round 2"]
    assert any("hollow: sits the round out" in title for title in titles)
    for rounds in (0, 13):
        with pytest.raises(ValueError, match=rf"rounds must be in 1\.\.12 for a picture, found {rounds}"):
            plot_topology(Ring(4), tmp_path / "none.png", rounds=rounds)


def test_drawing_leaves_pyplot_alone(tmp_path):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    plot_topology(Ring(4), tmp_path / "ring.png")
    assert plt.get_fignums() == before
