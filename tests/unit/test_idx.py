"""The idx reader returns what a file holds, or an error that names the file; never anything else."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from lightning_decgan.data import IdxError, read_idx


def idx_bytes(values: np.ndarray, code: int) -> bytes:
    big_endian = values.astype(values.dtype.newbyteorder(">"))
    return bytes([0, 0, code, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + big_endian.tobytes()


@pytest.mark.parametrize(
    ("dtype", "code"),
    [("uint8", 0x08), ("int8", 0x09), ("int16", 0x0B), ("int32", 0x0C), ("float32", 0x0D), ("float64", 0x0E)],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_every_type_comes_back_with_its_shape_and_native_byte_order(tmp_path, dtype, code, pack):
    values = np.arange(2 * 3 * 4, dtype=dtype).reshape(2, 3, 4)
    path = tmp_path / "values"
    path.write_bytes(pack(idx_bytes(values, code)))
    read = read_idx(path)
    assert read.dtype == np.dtype(dtype)
    assert read.dtype.isnative
    assert read.flags.writeable
    np.testing.assert_array_equal(read, values)


def test_gzip_is_told_by_content_and_not_by_name(tmp_path):
    (tmp_path / "plain.gz").write_bytes(idx_bytes(np.array([1, 2], dtype=np.uint8), 8))
    assert read_idx(tmp_path / "plain.gz").tolist() == [1, 2]


GOOD = idx_bytes(np.arange(100, dtype=np.uint8), 8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short"),
        (b"\0\0\x08", "cut short"),
        (b"\0\0\x08\x02\0\0\0\x01", "cut short"),
        (b"\x89PNG" + GOOD, "not an idx file"),
        (b"\0\0\x07" + GOOD[3:], "not an idx file"),
        (b"\0\0\x08\0" + GOOD[4:], "0 dimensions"),
        (b"\0\0\x08\xff" + GOOD[4:], "255 dimensions"),
        (GOOD[:-1], r"announces 100 bytes of values, the file holds exactly 99"),
        (GOOD + b"x", r"announces 100 bytes of values, the file holds exactly 101"),
        (gzip.compress(GOOD[:-1]), "cut short: 100 bytes announced"),
        (gzip.compress(GOOD + b"x"), "more values than the 100 bytes"),
        (gzip.compress(GOOD)[:-12], "damaged or cut short"),
        (gzip.compress(GOOD)[:-8] + b"\0\0\0\0" + gzip.compress(GOOD)[-4:], "damaged or cut short"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_an_error_naming_it(tmp_path, content, message):
    path = tmp_path / "broken-idx"
    path.write_bytes(content)
    with pytest.raises(IdxError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_a_header_that_announces_terabytes_costs_no_memory(tmp_path, pack):
    path = tmp_path / "liar"
    path.write_bytes(pack(b"\0\0\x0e\x03" + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(1000)))
    tracemalloc.start()
    with pytest.raises(IdxError, match="announces"):
        read_idx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_gzip_bomb_stops_at_what_is_allowed_and_at_what_is_announced(tmp_path):
    honest = idx_bytes(np.zeros(32 * 2**20, dtype=np.uint8), 8)
    (tmp_path / "honest").write_bytes(gzip.compress(honest))
    with pytest.raises(IdxError, match="takes 33554432 bytes, allowed are 1048576"):
        read_idx(tmp_path / "honest", maximum_bytes=2**20)
    (tmp_path / "liar").write_bytes(gzip.compress(honest[:4] + struct.pack(">I", 10) + bytes(32 * 2**20)))
    tracemalloc.start()
    with pytest.raises(IdxError, match="more values than the 10 bytes"):
        read_idx(tmp_path / "liar")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx(tmp_path / "nowhere")
