"""`decgan sample` and `decgan evaluate` on a small checkpoint, and what they refuse to make of a file."""

import json
import pickle
import shutil

import pytest
import torch
from PIL import Image

from lightning_decgan.cli.checkpoint import load_trained
from lightning_decgan.cli.errors import UsageError
from lightning_decgan.cli.main import main
from tests.checkpoints import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def altered(checkpoint, tmp_path):
    """Writes the checkpoint anew with another configuration in it."""

    def write(change):
        content = torch.load(checkpoint, weights_only=True)
        content["decgan"] = change(content["decgan"])
        torch.save(content, tmp_path / "altered.ckpt")
        return tmp_path / "altered.ckpt"

    return write


def fails(capsys, *words):
    """The one line that `decgan WORDS` ends with."""
    assert main([str(word) for word in words]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    return line


def test_samples_need_the_file_alone_wherever_it_is(checkpoint, tmp_path, monkeypatch, capsys):
    shutil.copy(checkpoint, tmp_path / "moved.ckpt")
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "moved.ckpt", "-n", "6", "--columns", "3"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'samples.png'}\n", "beside the checkpoint"
    with Image.open("samples.png") as image:
        assert image.size == (3 * 50 + 2, 2 * 50 + 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved.ckpt", "samples.png"]


def test_a_seed_stands_for_its_images(checkpoint, tmp_path, capsys):
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        assert main(["sample", str(checkpoint), "-n", "4", "--seed", str(seed), "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes() != (tmp_path / "c.png").read_bytes()


def test_the_model_made_of_a_checkpoint_has_its_weights(checkpoint):
    trained = load_trained(checkpoint)
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(value, weights[name]) for name, value in trained.model.state_dict().items())
    assert not trained.model.training
    assert trained.config["data"]["batch_size"] == 16


def test_scores_are_printed_with_the_name_of_their_features_and_written_as_json(
    checkpoint, tmp_path, capsys, feature_cache
):
    cache = ["--cache-dir", str(feature_cache)]
    assert main(["evaluate", str(checkpoint), "--samples", "200", "--json", str(tmp_path / "s.json"), *cache]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "s.json").read_text())
    assert result["features"] == "digits_cnn"
    assert "features: digits_cnn; against 359 validation images of digits" in " ".join(printed.split())
    assert result["scores"]["frechet_distance"] > 10, "two batches of training teach nothing"
    assert f"{result['scores']['frechet_distance']:.5g}" in printed
    assert main(["evaluate", str(checkpoint), "--samples", "200", "--json", str(tmp_path / "t.json"), *cache]) == 0
    assert json.loads((tmp_path / "t.json").read_text()) == result, "the same every time"


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "lightning_decgan.gan.module.torch.load",
        "lightning_decgan.gan.DecentralizedGANModule.load_from_checkpoint",
        "lightning_decgan.data.fashion_mnist.Path",
        "lightning_decgan.ganx.Thing",
        "torch.optim.lr_scheduler.warnings.warn",
        "torch.load",
    ],
)
@pytest.mark.parametrize("replaced", ["lightning_decgan.gan.DCGANGenerator", "lightning_decgan.data.DigitsDataModule"])
def test_code_of_other_packages_is_not_run_for_a_checkpoint(altered, capsys, target, replaced):
    path = altered(lambda text: text.replace(replaced, target))
    line = fails(capsys, "sample", path)
    assert f"asks to call '{target}'" in line
    assert line.endswith("add --trust-targets")


def test_a_user_who_trusts_a_file_gets_what_it_names(altered, tmp_path, capsys):
    path = altered(lambda text: text.replace("lightning_decgan.gan.DCGANGenerator", "pathlib.PurePath"))
    line = fails(capsys, "sample", path, "--trust-targets", "-o", tmp_path / "x.png")
    assert "no model can be made of" in line, "it was called now, and refused its arguments"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("image_size: 8", "image_size: ${oc.env:HOME}"), "must be resolved"),
        (lambda text: "model: [", "is not valid YAML"),
        (lambda text: "model: {}", "must have the sections 'model' and 'data'"),
        (lambda text: text.replace("width: 4", "width: 8"), "no model can be made of"),
        (lambda text: text.replace("width: 4", "widht: 4"), "unexpected keyword argument 'widht'"),
        (lambda text: None, "it was not written by decgan train"),
    ],
)
def test_a_configuration_that_is_none_is_refused_by_name(altered, capsys, change, message):
    assert message in fails(capsys, "sample", altered(change))


def test_a_file_that_is_no_checkpoint_is_refused_and_nothing_in_it_is_run(checkpoint, tmp_path, capsys):
    assert "does not exist" in fails(capsys, "sample", tmp_path / "none.ckpt")
    assert "is not a file" in fails(capsys, "evaluate", tmp_path)
    (tmp_path / "text.ckpt").write_text("hello")
    assert "cannot be read as a checkpoint" in fails(capsys, "sample", tmp_path / "text.ckpt")
    for opcode in ("seed: 0", "run"):  # text that pickle takes for instructions
        (tmp_path / "text.ckpt").write_text(opcode)
        assert "cannot be read as a checkpoint" in fails(capsys, "sample", tmp_path / "text.ckpt")
    (tmp_path / "half.ckpt").write_bytes(checkpoint.read_bytes()[:5000])
    assert "cannot be read as a checkpoint" in fails(capsys, "sample", tmp_path / "half.ckpt")

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    with (tmp_path / "bomb.ckpt").open("wb") as file:
        pickle.dump({"state_dict": Bomb()}, file)
    assert "cannot be read as a checkpoint" in fails(capsys, "sample", tmp_path / "bomb.ckpt")
    torch.save({"decgan": "", "state_dict": Bomb()}, tmp_path / "bomb.ckpt")
    assert "cannot be read as a checkpoint" in fails(capsys, "sample", tmp_path / "bomb.ckpt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sample", "CKPT", "-n", "0"), "samples must be an integer from 1 to 10000, found 0"),
        (("sample", "CKPT", "-n", "20000"), "samples must be an integer from 1 to 10000, found 20000"),
        (("sample", "CKPT", "--columns", "-1"), "columns must be an integer from 1 to 10000, found -1"),
        (("sample", "CKPT", "--seed", "-1"), "seed must be an integer from 0"),
        (("sample", "CKPT", "-o", "/proc/x.png"), "output /proc/x.png cannot be written"),
        (("evaluate", "CKPT", "--samples", "1"), "samples must be an integer from 2"),
        (("evaluate", "CKPT", "--data-root", "/nowhere"), "unexpected keyword argument 'root'"),
    ],
)
def test_words_that_cannot_be_used_are_answered_in_one_line(checkpoint, capsys, words, message):
    line = fails(capsys, *(checkpoint if word == "CKPT" else word for word in words))
    assert line.startswith(f"decgan {words[0]}: error: ")
    assert message in line


def test_too_few_images_for_a_score_is_an_error_that_says_how_many_it_takes(checkpoint, capsys, feature_cache):
    # The feature network is there by then, whatever ran before: training it shows its progress.
    assert main(["evaluate", str(checkpoint), "--samples", "100", "--cache-dir", str(feature_cache)]) == 0
    capsys.readouterr()
    line = fails(capsys, "evaluate", checkpoint, "--samples", "10", "--cache-dir", feature_cache)
    assert "found 359 real and 10 generated" in line


def test_load_trained_raises_where_the_command_prints(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load_trained(tmp_path / "none.ckpt")
