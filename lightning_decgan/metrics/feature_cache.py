"""Cached tensors on disk: where they lie, how a file is written whole, and how a damaged one is told apart.

Two kinds of files share the format: trained feature networks (here) and features of real images (real_images.py).
A file holds tensors and plain values, read with ``weights_only=True``; nothing is ever unpickled. Its name and its
content carry the digest of what determined the tensors, its content also a SHA-256 of them, because a flipped byte in a
tensor would otherwise load silently.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_decgan.files import write_bytes_atomically

CACHE_VARIABLE = "DECGAN_CACHE_DIR"
"""The environment variable that names the cache folder."""

_MAXIMUM_OVERHEAD_BYTES = 2**20
_LOCK_TIMEOUT_SECONDS = 900.0
_LOCK_POLL_SECONDS = 0.1


def default_cache_dir() -> Path:
    """Return the folder of cached networks and features.

    That is ``$DECGAN_CACHE_DIR``, if it is set; else ``lightning_decgan/features`` in the user's cache folder, which is
    ``$XDG_CACHE_HOME`` if that is an absolute path, else ``~/.cache``.

    Example:
        >>> default_cache_dir().is_absolute()
        True

    Source:
        XDG Base Directory Specification 0.8 (a relative path must be passed over).
    """
    own = os.environ.get(CACHE_VARIABLE, "")
    if own:
        return Path(own).expanduser().absolute()
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = named if named.is_absolute() else Path.home() / ".cache"
    return base / "lightning_decgan" / "features"


def cache_key(**determinants: object) -> str:
    """Digest of everything that determines cached tensors: equal keys mean equal tensors.

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
        descriptor = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        deadline = time.monotonic() + _LOCK_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_LOCK_POLL_SECONDS)
    except OSError:
        pass  # whoever writes the file says so if the folder cannot be written
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)  # which releases the lock, as does the end of the process


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: names, shapes, dtypes and every byte.

    Example:
        >>> tensors_digest({"a": torch.zeros(2)}) == tensors_digest({"a": torch.zeros(2, 1)})
        False
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        # as bytes: NumPy does not know every dtype
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_tensors(path: Path, key: str, field: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read a cache file and check all of it.

    Args:
        path: The file.
        key: What :func:`cache_key` gave for the tensors wanted.
        field: The entry that holds the tensors.
        shapes: The names and shapes that they must have.

    Returns:
        The content, ``content[field]`` being the tensors.

    Raises:
        FileNotFoundError, NotADirectoryError: If there is no such file.
        ValueError: If it is damaged, or holds other tensors than those wanted; anything else that damaged bytes make
            torch raise is passed on.
    """
    with path.open("rb") as file:
        most = sum(8 * math.prod(shape) for shape in shapes.values()) + _MAXIMUM_OVERHEAD_BYTES
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"{size} bytes, at most {most} belong to these {field}")
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's own text would advise weights_only=False
            raise ValueError(f"not a whole file of plain tensors, {type(error).__name__}") from error
    tensors = content[field]
    if content["key"] != key:
        raise ValueError(f"it holds {field} of another origin")
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != {
        name: tuple(shape) for name, shape in shapes.items()
    }:
        raise ValueError(f"its {field} have other names or shapes")
    if content["sha256"] != tensors_digest(tensors):
        raise ValueError(f"its {field} do not have the recorded SHA-256")
    return dict(content)


def write_tensors(path: Path, key: str, field: str, tensors: Mapping[str, Tensor], **values: Any) -> None:
    """Write a cache file so that it appears whole or not at all.

    Args:
        path: The file; its folder is made.
        key: What determined the tensors, see :func:`cache_key`.
        field: The entry that holds the tensors.
        tensors: By name.
        **values: Further entries, plain values.

    Raises:
        OSError: If it cannot be written.
    """
    kept = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    content = {"key": key, **values, field: kept, "sha256": tensors_digest(kept)}
    whole = io.BytesIO()  # torch answers a full disk with an error of its own kind
    torch.save(content, whole)
    write_bytes_atomically(path, whole.getbuffer())


def load_weights(path: Path, key: str, network: nn.Module) -> float | None:
    """Load a cached network's weights into ``network`` and return its accuracy, or ``None`` if it must be trained.

    ``network`` is changed only by a file that is whole, carries ``key`` and fits; any other file brings a warning.
    """
    try:
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        content = read_tensors(path, key, "weights", shapes)
        accuracy = content["accuracy"]
        if not isinstance(accuracy, float) or not 0.0 <= accuracy <= 1.0:
            raise ValueError(f"its accuracy is {accuracy!r}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    # Damaged bytes can raise anything in zip and tensor readers; whichever it is, the network is trained again.
    except Exception as error:
        warnings.warn(f"cached feature network {path} is not usable ({error}); training it again", stacklevel=3)
        return None
    network.load_state_dict(content["weights"])
    return accuracy


def save_weights(path: Path, key: str, network: nn.Module, accuracy: float) -> None:
    """Write a network's weights so that the file appears whole or not at all; a failure is a warning."""
    try:
        write_tensors(path, key, "weights", network.state_dict(), accuracy=accuracy)
    except OSError as error:
        warnings.warn(f"the feature network could not be cached in {path.parent} ({error})", stacklevel=3)
