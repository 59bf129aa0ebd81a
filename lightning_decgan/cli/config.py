"""Where the configuration files are, and how to compose them from Python as `decgan train` does.

The files live in conf/ at the top of a checkout and in lightning_decgan/conf of an installed package. This module reads
them; what the values mean is said there, and what they do is done by the classes that they name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONFIG_NAME = "train"


def config_dir() -> Path:
    """The folder of the configuration groups.

    Returns:
        `lightning_decgan/conf` of an installed package, or `conf` beside the package in a checkout.

    Raises:
        FileNotFoundError: if neither holds `train.yaml`.

    Example:
        >>> (config_dir() / "topology" / "ring.yaml").is_file()
        True
    """
    package = Path(__file__).resolve().parents[1]
    candidates = [package / "conf", package.parent / "conf"]
    for folder in candidates:
        if (folder / f"{CONFIG_NAME}.yaml").is_file():
            return folder
    raise FileNotFoundError(f"{CONFIG_NAME}.yaml was found neither in {candidates[0]} nor in {candidates[1]}")


def options(group: str) -> list[str]:
    """The options of a configuration group, by name.

    Args:
        group: a group, such as "topology".

    Returns:
        Names, sorted; empty for a group that does not exist.

    Example:
        >>> options("logger")
        ['csv', 'default', 'none', 'tensorboard']
    """
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def compose(overrides: Sequence[str] = (), run_dir: str | Path = "outputs") -> DictConfig:
    """The configuration of `decgan train OVERRIDES`, outside of a Hydra run.

    Args:
        overrides: as on the command line: `["topology=complete", "steps=100"]`.
        run_dir: where the results go.

    Returns:
        The configuration, not yet resolved; `lightning_decgan.cli.train.train` takes it.

    Raises:
        hydra.errors.HydraException: if there is no such group, option or key.

    Example:
        >>> compose(["topology=complete", "workers=8"]).topology._target_
        'lightning_decgan.topology.Complete'
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        config = hydra_compose(CONFIG_NAME, overrides=list(overrides))
    config.run_dir = str(Path(run_dir).absolute())
    return config
