"""Inception as torch-fidelity ships it: the network of the published FID, where its weights can be had.

The weights are one file of some 90 MiB that torch-fidelity's releases hold. It is looked for where torch keeps such
files, and fetched there when it is missing and the network allows; if it cannot be had, the error says how to bring it
by hand. It is checked by its digest and read as plain tensors before torch-fidelity, which would unpickle it, gets to
see it.
"""

from __future__ import annotations

import hashlib
import importlib
import socket
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from lightning_decgan.metrics.extractors import ExtractorFeatures, require_torch_fidelity

INCEPTION = "inception-v3-compat"
"""The name under which torch-fidelity has registered it."""

PUBLISHED_DIGEST = "6726825d"
"""How the SHA-256 of the published file begins; by torch.hub's custom it is part of the file's name."""

WEIGHTS_FILE = f"weights-inception-2015-12-05-{PUBLISHED_DIGEST}.pth"

_FEATURE_LAYER = "2048"
_SILENCE_SECONDS = 30.0


def inception_features(weights: str | Path | None = None) -> ExtractorFeatures:
    """Inception v3 of 2015-12-05 as a feature network: 2,048 features and, for the inception score, 1,008 logits.

    Args:
        weights: A file of weights; None takes torch-fidelity's published file from ``$TORCH_HOME/hub/checkpoints``
            (by default below ``~/.cache/torch``), into which it is fetched if it is not there.

    Returns:
        The network. With the published weights its ``name`` is ``inception-v3-compat`` and ``is_inception`` is true;
        with any others the name carries the beginning of their SHA-256, and a distance over them is no FID.

    Raises:
        MissingExtraError: If torch-fidelity is not installed.
        FileNotFoundError: If the weights cannot be had: names the file, where it is looked for, and how to bring it.
        ValueError: If the file is damaged, is no file of plain tensors, or does not fit the network.

    Example:
        >>> inception_features().name  # doctest: +SKIP
        'inception-v3-compat'

    Source:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016; the weights are those of
        the TensorFlow graph of Heusel et al., NeurIPS 2017, converted by torch-fidelity; its inception score uses the
        logits without bias.
    """
    require_torch_fidelity()
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    path = published_weights(module.URL_INCEPTION_V3) if weights is None else Path(weights).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"weights of {INCEPTION}: {path} does not exist")
    digest = file_digest(path)
    published = digest.startswith(PUBLISHED_DIGEST)
    if weights is None and not published:
        raise ValueError(
            f"{path} is damaged: its SHA-256 begins with {digest[:8]} instead of {PUBLISHED_DIGEST}; remove it"
        )
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own text would advise weights_only=False
        raise ValueError(f"{path} is not a file of plain tensors, {type(error).__name__}") from error
    try:
        extractor = module.FeatureExtractorInceptionV3(
            INCEPTION, [_FEATURE_LAYER], feature_extractor_weights_path=str(path)
        )
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold the weights of {INCEPTION}: {error}") from error
    head = nn.Linear(extractor.fc.in_features, extractor.fc.out_features, bias=False).requires_grad_(False)
    head.weight = extractor.fc.weight
    name = INCEPTION if published else f"{INCEPTION}-{digest[:8]}"
    return ExtractorFeatures(extractor, name, head, is_inception=published)


def published_weights(url: str) -> Path:
    """The published file in torch's folder of downloads, fetched if it is not there.

    Args:
        url: Where it is published.

    Raises:
        FileNotFoundError: If it is not there and cannot be fetched.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_FILE
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _deadline(_SILENCE_SECONDS):
            torch.hub.download_url_to_file(url, str(path), hash_prefix=PUBLISHED_DIGEST, progress=False)
    # no network, no such address, a proxy's page instead of the file, a folder that cannot be written
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{WEIGHTS_FILE}, the weights of {INCEPTION}, is not in {path.parent} and could not be fetched "
            f"({type(error).__name__}: {error}). Bring {url} to that folder by hand, or name another place of the "
            f"file: `decgan evaluate --weights FILE`, `decgan train callbacks.fidelity.features.weights=FILE`, "
            f"inception_features(FILE)"
        ) from error
    return path


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """How long a connection may be silent before it is given up: torch's download sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a")
        ...     _ = path.write_bytes(b"abc")
        ...     file_digest(path)[:8]
        'ba7816bf'
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
