"""A strict reader of idx files, the format of MNIST and its relatives, plain or gzipped.

It checks every announcement of the header against the length of the file before it takes memory, reads at most one
byte more than was announced, and never returns an array that was not wholly there. It never writes, guesses or repairs.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

_GZIP_MAGIC = b"\x1f\x8b"
_MAXIMUM_DEFLATE_RATIO = 1032  # deflate spends at least one bit on 129 bytes: the most that a gz file can grow
_PIECE_BYTES = 2**20
_DTYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_MAXIMUM_DIMENSIONS = 8


class IdxError(ValueError):
    """An idx file that is not what it says: the message names the file and what was found."""


def read_idx(path: str | os.PathLike[str], *, maximum_bytes: int = 2**30) -> np.ndarray:
    """Read an idx file.

    The layout, all numbers big-endian: two zero bytes, a byte for the type of the values, a byte for the number of
    dimensions d, d sizes of four bytes, the values in C order, and nothing after them.

    Args:
        path: A file, plain or gzipped (told by its first two bytes, not by its name).
        maximum_bytes: The most that the values may take, unpacked; more is refused before it is read.

    Returns:
        A writable array of the announced shape in native byte order.

    Raises:
        FileNotFoundError: If there is no such file.
        IdxError: If the header is not that of an idx file, if the values are fewer or more than announced or take
            more than ``maximum_bytes``, or if the gzip stream is damaged (its checksum is verified).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "three-idx1-ubyte")
        ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 5, 6, 7]))
        ...     read_idx(path)
        array([5, 6, 7], dtype=uint8)

    Source:
        Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits", section "File formats".
    """
    path = Path(path)
    with path.open("rb") as file:
        file_bytes = os.fstat(file.fileno()).st_size
        gzipped = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if not gzipped:
            return _read(path, file, maximum_bytes, available_bytes=file_bytes, exact=True)
        with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
            try:
                return _read(
                    path, cast(IO[bytes], unpacked), maximum_bytes, file_bytes * _MAXIMUM_DEFLATE_RATIO, exact=False
                )
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise IdxError(f"{path}: the gzip stream is damaged or cut short ({error})") from error


def _read(path: Path, stream: IO[bytes], maximum_bytes: int, available_bytes: int, *, exact: bool) -> np.ndarray:
    """Read header and values; ``available_bytes`` is what the file can hold: exactly that, or at most that."""
    magic = _take(path, stream, 4)
    zeros, code, dimensions = magic[:2], magic[2], magic[3]
    if zeros != b"\0\0" or code not in _DTYPES:
        known = ", ".join(f"0x{valid:02x}" for valid in _DTYPES)
        raise IdxError(f"{path}: not an idx file: it begins with {magic.hex(' ')}, valid is 00 00, one of {known}, d")
    if not 1 <= dimensions <= _MAXIMUM_DIMENSIONS:
        raise IdxError(f"{path}: {dimensions} dimensions announced, valid is 1 to {_MAXIMUM_DIMENSIONS}")
    shape = struct.unpack(f">{dimensions}I", _take(path, stream, 4 * dimensions))
    dtype = _DTYPES[code]
    announced = math.prod(shape) * dtype.itemsize  # Python integers: nothing overflows
    room = available_bytes - 4 - 4 * dimensions
    if announced > room or (exact and announced != room):
        raise IdxError(
            f"{path}: shape {shape} of {dtype.name} announces {announced} bytes of values, "
            f"the file holds {'exactly' if exact else 'at most'} {room}"
        )
    if announced > maximum_bytes:
        raise IdxError(f"{path}: shape {shape} of {dtype.name} takes {announced} bytes, allowed are {maximum_bytes}")
    values = _take(path, stream, announced)
    if stream.read(1):  # also what makes gzip compare its checksum: that stands after the last byte
        raise IdxError(f"{path}: more values than the {announced} bytes that shape {shape} announces")
    return np.frombuffer(values, dtype=dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _take(path: Path, stream: IO[bytes], count: int) -> bytearray:
    """Read exactly ``count`` bytes."""
    taken = bytearray()
    while len(taken) < count:  # in pieces, so that memory grows with what is there and not with what is announced
        piece = stream.read(min(count - len(taken), _PIECE_BYTES))
        if not piece:
            raise IdxError(f"{path}: cut short: {count} bytes announced at this place, {len(taken)} found")
        taken += piece
    return taken
