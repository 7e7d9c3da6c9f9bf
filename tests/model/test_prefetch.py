"""Files are in the page cache after a prefetch, as far as memory allows it."""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest

from dist.model.prefetch import prefetch

SIZE = 8 << 20


def in_cache(path) -> int:
    """How many bytes of a file are in the page cache; to look does not bring them there."""
    libc = ctypes.CDLL(None, use_errno=True)
    reported = (ctypes.c_ubyte * (SIZE // mmap.PAGESIZE))()
    with path.open("rb") as file, mmap.mmap(file.fileno(), SIZE, access=mmap.ACCESS_COPY) as view:
        start = ctypes.c_char.from_buffer(view)
        code = libc.mincore(ctypes.byref(start), ctypes.c_size_t(SIZE), reported)
        del start
    if code:
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(page & 1 for page in reported) * mmap.PAGESIZE


@pytest.fixture
def files(tmp_path):
    """Two files of SIZE bytes that are on the disk only."""
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        path.write_bytes(os.urandom(SIZE))
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
    if any(map(in_cache, paths)):
        pytest.skip("this file system keeps its files in memory")
    return paths


def test_files_are_in_the_page_cache_afterwards(files):
    prefetch(files).join(60)
    assert [in_cache(path) for path in files] == [SIZE, SIZE]


def test_half_of_the_free_memory_is_left_alone(files, monkeypatch):
    monkeypatch.setattr("dist.model.prefetch.host_free", lambda: 4 << 20)
    monkeypatch.setattr("dist.model.prefetch.CALL_BYTES", 1 << 20)
    prefetch(files).join(60)
    # The system itself reads further in the file.
    assert in_cache(files[0]) >= 2 << 20
    assert in_cache(files[1]) == 0


def test_what_cannot_be_read_is_left_to_those_who_need_it(files):
    thread = prefetch([files[0].with_name("absent"), files[1]])
    thread.join(60)
    assert not thread.is_alive()
    assert in_cache(files[1]) == 0
