"""Maps of guest memory: right bytes, never beyond the file, kept while a view lives."""

import mmap
import os
import tempfile

import numpy as np
import pytest
from guest import AWKWARD, Guest
from yard import mapped

from vhostfast.core.memory import GuestMemory, Log
from vhostfast.errors import ProtocolError


def map_count() -> int:
    with open("/proc/self/maps") as maps:
        return sum("guest-memory" in line for line in maps)


@pytest.mark.parametrize("separate", [False, True])
def test_each_region_shows_its_part_of_its_file(separate):
    with Guest(separate=separate) as guest:
        memory = mapped(guest)
        assert memory.regions == tuple((r.gpa, r.size, r.uva) for r in guest.memory.regions)
        for gpa, size in AWKWARD:
            guest.memory.write(gpa, b"first")
            guest.memory.write(gpa + size - 4, b"last")
            view = memory.view(gpa, size)
            assert view[:5].tobytes() + view[-4:].tobytes() == b"firstlast"
            view[1] = 0x5A
            assert guest.memory.read(gpa, 3) == b"f\x5ar"


def test_a_view_keeps_its_map_and_the_last_one_lets_go():
    with Guest(((0, 8192),)) as guest:
        before = map_count()
        view = mapped(guest).view(4096, 4096)
        assert (map_count(), view.shape, view.dtype) == (before + 1, (4096,), np.uint8)
        view[:] = 7
        del view
        assert map_count() == before


@pytest.mark.parametrize(("gpa", "size"), [(0, 8193), (8191, 2), (8192, 1), (2**64 - 1, 1)])
def test_a_view_outside_of_memory_is_refused(gpa, size):
    with (
        Guest(((0, 8192),)) as guest,
        pytest.raises(ValueError, match="of guest memory in one region"),
    ):
        mapped(guest).view(gpa, size)


@pytest.mark.parametrize(("size", "offset"), [(8193, 0), (1, 8192), (4096, 4097), (2**40, 0)])
def test_a_region_beyond_its_file_is_refused_with_the_size(size, offset):
    with Guest(((0, 8192),)) as guest, pytest.raises(ProtocolError, match="file's size, 8192"):
        GuestMemory([(0, size, 0, offset, guest.memory.fds[0])])


def test_a_refusal_leaves_no_map_behind():
    with Guest(((0, 8192),)) as guest:
        before = map_count()
        fd = guest.memory.fds[0]
        with pytest.raises(ProtocolError):
            GuestMemory([(0, 4096, 0, 0, fd), (4096, 8192, 4096, 4096, fd)])
        assert map_count() == before


def opened(kind: str) -> int:
    if kind == "pipe":
        read, write = os.pipe()
        os.close(write)
        return read
    return {
        "folder": lambda: os.open("/tmp", os.O_RDONLY),
        "device": lambda: os.open("/dev/null", os.O_RDWR),
        "eventfd": lambda: os.eventfd(0),
    }[kind]()


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "eventfd"])
def test_what_is_not_memory_is_refused_by_its_kind(kind):
    fd = opened(kind)
    try:
        with pytest.raises(ProtocolError, match="share=on"):
            GuestMemory([(0, 4096, 0, 0, fd)])
    finally:
        os.close(fd)


def test_a_file_that_may_only_be_read_is_refused():
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(4096)
        fd = os.open(file.name, os.O_RDONLY)
        try:
            with pytest.raises(ProtocolError, match="Permission denied"):
                GuestMemory([(0, 4096, 0, 0, fd)])
        finally:
            os.close(fd)


def test_too_many_regions_are_refused():
    with Guest(((0, 8192),)) as guest, pytest.raises(ProtocolError, match="at most 509"):
        GuestMemory((n * 16, 16, n * 16, 0, guest.memory.fds[0]) for n in range(510))


def test_a_log_begins_at_its_offset_once():
    fd = os.memfd_create("log")
    try:
        os.ftruncate(fd, 3 * mmap.PAGESIZE)
        assert Log(fd, 4096, 4096).page_count == 4096 * 8
        with pytest.raises(ProtocolError, match="file's size"):
            Log(fd, 3 * 4096, 4096)
    finally:
        os.close(fd)
