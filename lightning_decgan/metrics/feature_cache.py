"""Trained feature networks on disk: where they lie, how one is written whole, and how a damaged one is told apart.

A file holds tensors and plain values, read with ``weights_only=True``; nothing is ever unpickled. Its name and its
content carry the digest of what determined the network, its content also a SHA-256 of the weights, because a flipped
byte in a tensor would otherwise load silently.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

_MAXIMUM_OVERHEAD_BYTES = 2**20
_LOCK_TIMEOUT_SECONDS = 900.0
_LOCK_POLL_SECONDS = 0.1


def default_cache_dir() -> Path:
    """Return the folder of cached networks: ``lightning_decgan/features`` in the user's cache folder.

    That is ``$XDG_CACHE_HOME`` if it is an absolute path, else ``~/.cache``.

    Example:
        >>> default_cache_dir().parts[-2:]
        ('lightning_decgan', 'features')

    Source:
        XDG Base Directory Specification 0.8 (a relative path must be passed over).
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = named if named.is_absolute() else Path.home() / ".cache"
    return base / "lightning_decgan" / "features"


def cache_key(**determinants: object) -> str:
    """Digest of everything that determines a network: equal keys mean equal networks.

    Example:
        >>> cache_key(seed=0, epochs=3) == cache_key(epochs=3, seed=0) != cache_key(epochs=4, seed=0)
        True
    """
    return hashlib.sha256(repr(sorted(determinants.items())).encode()).hexdigest()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock beside ``path``, so that of several processes one trains and the others find its file.

    Where no lock can be had (a file system without them, a folder that cannot be written, a holder that takes longer
    than 15 minutes) it goes on without: every file is renamed into place, so the worst is work done twice.
    """
    descriptor = -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + _LOCK_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_LOCK_POLL_SECONDS)
    except OSError:
        pass  # save_weights says so if the folder cannot be written
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)  # which releases the lock, as does the end of the process


def _weights_digest(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_weights(path: Path, key: str, network: nn.Module) -> float | None:
    """Load a cached network's weights into ``network`` and return its accuracy, or ``None`` if it must be trained.

    ``network`` is changed only by a file that is whole, carries ``key`` and fits; any other file brings a warning.
    """
    try:
        with path.open("rb") as file:
            expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
            most = sum(8 * math.prod(shape) for shape in expected.values()) + _MAXIMUM_OVERHEAD_BYTES
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise ValueError(f"{size} bytes, at most {most} belong to this network")
            try:
                content = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # torch's own text would advise weights_only=False
                raise ValueError(f"not a whole file of plain tensors, {type(error).__name__}") from error
        weights, accuracy = content["weights"], content["accuracy"]
        if content["key"] != key or not isinstance(accuracy, float) or not 0.0 <= accuracy <= 1.0:
            raise ValueError("it belongs to another network")
        if {name: tensor.shape for name, tensor in weights.items()} != expected:
            raise ValueError("its weights have other names or shapes")
        if content["sha256"] != _weights_digest(weights):
            raise ValueError("its weights do not have the recorded SHA-256")
    except (FileNotFoundError, NotADirectoryError):
        return None
    # Damaged bytes can raise anything in zip and tensor readers; whichever it is, the network is trained again.
    except Exception as error:
        warnings.warn(f"cached feature network {path} is not usable ({error}); training it again", stacklevel=3)
        return None
    network.load_state_dict(weights)
    return accuracy


def save_weights(path: Path, key: str, network: nn.Module, accuracy: float) -> None:
    """Write a network's weights so that the file appears whole or not at all; a failure is a warning."""
    weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    content = {"key": key, "accuracy": accuracy, "weights": weights, "sha256": _weights_digest(weights)}
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}-", delete=False) as file:
            temporary = file.name
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        warnings.warn(f"the feature network could not be cached in {path.parent} ({error})", stacklevel=3)
