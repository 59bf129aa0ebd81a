"""A checkpoint of a decentralized run: one ordinary file with the consensus, and beside it one shard a worker.

`x.ckpt` loads anywhere. `x.ckpt.workers/` holds what each worker needs to go on bit for bit. Shards are named by their
own SHA-256 and listed, with sizes and sums, inside `x.ckpt`: they are complete before that one file appears by a
rename, so a checkpoint is there whole or not at all, also when it replaces an older one of the same name. Nothing is
unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pickle import UnpicklingError
from typing import IO, Any, BinaryIO, cast

import torch
from fsspec.core import url_to_fs
from torch import Tensor

from lightning_decgan.gossip import world

__all__ = [
    "MANIFEST_KEY",
    "CheckpointError",
    "digest",
    "nothing_unpickled",
    "open_shard",
    "read_shard",
    "remove_shards",
    "verify",
    "write_shards",
]

MANIFEST_KEY = "decentralized_gossip"
_FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint is incomplete or has been altered."""


def shard_directory(path: str | os.PathLike) -> str:
    """The folder of the shards that belong to a checkpoint file."""
    return f"{os.fspath(path)}.workers"


def digest(state_dict: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and raw values of all tensors of a state dict.

    Example:
        >>> a, b = {"w": torch.zeros(2)}, {"w": torch.tensor([0.0, 1e-30])}
        >>> digest(a) == digest({"w": torch.zeros(2)}), digest(a) == digest(b)
        (True, False)
    """
    total = hashlib.sha256()
    for name, value in sorted(state_dict.items()):
        if isinstance(value, Tensor):
            total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def write_shards(
    path: str | os.PathLike,
    worker: int,
    make_shard: Callable[[], Mapping[str, Any]],
    consensus: Mapping[str, Any],
    gather: Callable[[bytes], list[bytes]] = world.gather_bytes,
) -> dict[str, Any]:
    """Write this worker's shard; every worker must call this. Returns the manifest to be stored inside the checkpoint.

    Args:
        path: the checkpoint file the shards belong to; it is not written here.
        worker: this worker's number, which stays when lower ones are lost.
        make_shard: gives what to store; must be loadable with `weights_only=True`. Called here, so that all workers
            hear of it when it fails.
        consensus: the state dict that the checkpoint file will hold.
        gather: brings everybody's bytes together, by rank.

    Raises:
        CheckpointError: on every worker, when one could not write its shard.
    """
    entry: dict[str, Any]
    try:
        entry = {"worker": worker, **_write_shard(path, worker, make_shard())}
    except Exception as error:
        # Whatever went wrong here, the others are about to wait for this worker and have to hear of it.
        entry = {"worker": worker, "error": f"{type(error).__name__}: {error}"}
    entries = [json.loads(other) for other in gather(json.dumps(entry).encode())]
    failed = [f"worker {other['worker']}: {other['error']}" for other in entries if "error" in other]
    if failed:
        raise CheckpointError(f"checkpoint {os.fspath(path)} was not written: " + "; ".join(failed))
    return {"format": _FORMAT, "workers": len(entries), "shards": entries, "consensus_sha256": digest(consensus)}


def read_shard(path: str | os.PathLike, manifest: Mapping[str, Any], worker: int) -> dict[str, Any]:
    """Check and load this worker's shard; every worker must call this.

    Raises:
        CheckpointError: on every worker, when a shard is missing, truncated or altered; the message says whose.
    """
    shard: dict[str, Any] = {}
    problem = ""
    try:
        shard = open_shard(path, manifest["shards"][worker])
    except (CheckpointError, OSError, LookupError) as error:
        problem = f"{error}" if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
    problems = [text.decode() for text in world.gather_bytes(problem.encode())]
    if any(problems):
        listed = "; ".join(f"worker {rank}: {text}" for rank, text in enumerate(problems) if text)
        raise CheckpointError(
            f"checkpoint {os.fspath(path)} cannot be resumed by its {manifest['workers']} workers: {listed}. To start"
            " from its consensus instead, load the module with load_from_checkpoint and call trainer.fit without"
            " ckpt_path."
        )
    return shard


def verify(path: str | os.PathLike, checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Check a loaded checkpoint against its own manifest and return that, or `None` for any other checkpoint.

    Raises:
        CheckpointError: the consensus is not the one that was saved, or the manifest is of another format.
    """
    manifest = checkpoint.get(MANIFEST_KEY)
    if manifest is None:
        return None
    if manifest.get("format") != _FORMAT:
        raise CheckpointError(
            f"checkpoint {os.fspath(path)} has shards of format {manifest.get('format')}; this version reads {_FORMAT}"
        )
    found = digest(checkpoint["state_dict"])
    if found != manifest["consensus_sha256"]:
        raise CheckpointError(
            f"checkpoint {os.fspath(path)} has been altered: the SHA-256 of its weights is {found}, and was"
            f" {manifest['consensus_sha256']} when it was saved"
        )
    return dict(manifest)


def remove_shards(path: str | os.PathLike, keep: Mapping[str, Any] | None = None) -> None:
    """Remove the shards of a checkpoint, or only those that a manifest does not list (left by an older save)."""
    fs, directory = url_to_fs(shard_directory(path))
    if not fs.exists(directory):
        return
    # Several machines may share the folder, and each of them removes: what is gone is gone.
    with contextlib.suppress(FileNotFoundError):
        if keep is None:
            fs.rm(directory, recursive=True)
            return
        kept = {entry["file"] for entry in keep["shards"]}
        for file in fs.ls(directory, detail=False):
            if os.path.basename(file) not in kept:
                with contextlib.suppress(FileNotFoundError):
                    fs.rm_file(file)


@contextlib.contextmanager
def nothing_unpickled(path: str | os.PathLike) -> Iterator[None]:
    """Turn torch's refusal to unpickle, which advises `weights_only=False`, into what can be done about it.

    Raises:
        CheckpointError: what was read within the block holds something else than plain values and tensors.
    """
    try:
        yield
    except UnpicklingError as error:
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines()[0]
        raise CheckpointError(
            f"checkpoint {os.fspath(path)} holds something that would have to be unpickled, which this strategy never"
            f" does: {reason} Keep plain values and tensors in hyperparameters and on_save_checkpoint: str(path) for a"
            " path, a dict for a configuration."
        ) from error


class _HashingFile:
    """A file being written, and the sum and size of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sum, self.size_bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self._sum.update(data)
        self.size_bytes += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._sum.hexdigest()


def _write_shard(path: str | os.PathLike, worker: int, shard: Mapping[str, Any]) -> dict[str, Any]:
    fs, directory = url_to_fs(shard_directory(path))
    fs.makedirs(directory, exist_ok=True)
    unfinished = f"{directory}/.worker-{worker}.{uuid.uuid4().hex}.unfinished"
    try:
        with fs.open(unfinished, "wb") as file:
            hashing = _HashingFile(file)
            torch.save(dict(shard), cast(IO[bytes], hashing))
        name = f"worker-{worker}.{hashing.hexdigest()[:16]}.pt"
        fs.mv(unfinished, f"{directory}/{name}")
    except BaseException:
        with contextlib.suppress(OSError):
            fs.rm_file(unfinished)
        raise
    return {"file": name, "bytes": hashing.size_bytes, "sha256": hashing.hexdigest()}


def open_shard(path: str | os.PathLike, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Check and load one shard, whoever's it is; unlike :func:`read_shard` this is no collective.

    Args:
        path: the checkpoint file the shard belongs to.
        entry: of the manifest's list `"shards"`, which is in the order of the workers' ranks.

    Raises:
        CheckpointError: the shard is missing, truncated or altered.
    """
    fs, checkpoint = url_to_fs(os.fspath(path))
    if os.path.islink(checkpoint):  # ModelCheckpoint(save_last="link") links the file, not its shards
        checkpoint = os.path.realpath(checkpoint)
    file = f"{shard_directory(checkpoint)}/{os.path.basename(entry['file'])}"
    if not fs.exists(file):
        raise CheckpointError(f"its shard {file} is missing")
    size_bytes = fs.size(file)
    if size_bytes != entry["bytes"]:
        raise CheckpointError(f"its shard {file} has {size_bytes} bytes instead of {entry['bytes']}")
    found = hashlib.sha256()
    with fs.open(file, "rb") as opened:
        while block := opened.read(1 << 22):
            found.update(block)
        if found.hexdigest() != entry["sha256"]:
            raise CheckpointError(
                f"its shard {file} has been altered: SHA-256 {found.hexdigest()} instead of {entry['sha256']}"
            )
        opened.seek(0)
        with nothing_unpickled(file):
            return dict(torch.load(opened, map_location="cpu", weights_only=True))
