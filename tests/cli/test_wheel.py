"""The wheel holds everything that an installation needs, conf/ included."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which a freshly built wheel, and nothing else, has been installed."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=200)
    (wheel,) = folder.glob("*.whl")
    install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder / "site"),
        str(wheel),
    ]
    subprocess.run([sys.executable, *install], check=True, capture_output=True, timeout=200)
    names = zipfile.ZipFile(wheel).namelist()
    assert "lightning_decgan/conf/train.yaml" in names
    assert "lightning_decgan/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "conf/"))]
    return folder / "site"


def _run(site: Path, code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=site.parent, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_installed_package_is_the_wheels_and_finds_its_configuration(site: Path) -> None:
    code = (
        "import lightning_decgan; print(lightning_decgan.__file__)\n"
        "from lightning_decgan.cli.config import config_dir; print(config_dir())"
    )
    for path in _run(site, code).split():
        assert path.startswith(str(site))


def test_a_trainer_knows_the_strategy_without_an_import(site: Path) -> None:
    code = (
        "from lightning.pytorch import Trainer\n"
        "t = Trainer(strategy='decentralized_gossip', accelerator='cpu', devices=3, logger=False)\n"
        "print(t.strategy.topology.describe())"
    )
    assert "one_peer_exponential(workers=3)" in _run(site, code)


def test_the_command_works_from_the_wheel(site: Path) -> None:
    code = "from lightning_decgan.cli.main import main; raise SystemExit(main(['train', '--cfg', 'job']))"
    assert "DigitsDataModule" in _run(site, code)
