"""Maps of guest memory: right bytes, never beyond the file, an error where that has shrunk."""

import mmap
import os
import subprocess
import tempfile
from itertools import pairwise

import numpy as np
import pytest
from guest import AWKWARD, Guest
from yard import mapped

from vhostfast.core.memory import GuestMemory, Log
from vhostfast.errors import MemoryVanished, ProtocolError


def punch(fd: int, offset: int, size: int) -> None:
    """Give back the pages of [offset, offset + size): fallocate(2), FALLOC_FL_PUNCH_HOLE."""
    command = ["fallocate", "-p", "-o", str(offset), "-l", str(size), f"/proc/self/fd/{fd}"]
    subprocess.run(command, check=True, pass_fds=[fd])


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
            copy = memory.read(gpa, size)
            assert copy[:5].tobytes() + copy[-4:].tobytes() == b"firstlast"
            memory.write(gpa + 1, b"\x5a")
            assert guest.memory.read(gpa, 3) == b"f\x5ar"


def test_a_copy_is_private_and_needs_no_map():
    with Guest(((0, 8192),)) as guest:
        before = map_count()
        memory = mapped(guest)
        copy = memory.read(4096, 4096)
        assert (map_count(), copy.shape, copy.dtype) == (before + 1, (4096,), np.uint8)
        copy[:] = 7
        assert not memory.read(4096, 4096).any()
        del memory
        assert map_count() == before


@pytest.mark.parametrize("size", [0, 1])
def test_nothing_is_nowhere(size):
    with Guest(((0, 8192),)) as guest:
        memory = mapped(guest)
        memory.write(8191, bytes(size))
        assert memory.read(8191, size).shape == (size,)


@pytest.mark.parametrize("size", [1, 4096, 8192])
def test_memory_that_has_gone_is_an_error(size):
    """The file is cut short after it was mapped: what is left can be read, the rest says so."""
    with Guest(((0, 12288),), sealed=False) as guest:
        memory = mapped(guest)
        os.ftruncate(guest.memory.fds[0], 4096)
        for _ in range(2):
            with pytest.raises(MemoryVanished, match="guest memory: a page is gone"):
                memory.read(12288 - size, size)
            with pytest.raises(MemoryVanished):
                memory.write(12288 - size, bytes(size))
            assert memory.read(0, 4096).shape == (4096,)


def test_a_hole_is_zeros():
    """Punching takes the pages, and the next access makes new ones."""
    with Guest(((0, 8192),)) as guest:
        memory = mapped(guest)
        memory.write(0, b"x" * 8192)
        punch(guest.memory.fds[0], 0, 4096)
        assert memory.read(0, 8192).tobytes() == bytes(4096) + b"x" * 4096


def test_a_log_that_has_gone_is_an_error():
    fd = os.memfd_create("log")
    os.ftruncate(fd, 8192)
    log = Log(fd, 8192, 0)
    log.mark(0, 1)
    os.ftruncate(fd, 0)
    with pytest.raises(MemoryVanished, match="migration log: a page is gone"):
        log.mark(0, 1)
    os.close(fd)


@pytest.mark.parametrize(("gpa", "size"), [(0, 8193), (8191, 2), (8192, 1), (2**64 - 1, 1)])
def test_a_copy_outside_of_memory_is_refused(gpa, size):
    with (
        Guest(((0, 8192),)) as guest,
        pytest.raises(ValueError, match="of guest memory in one region"),
    ):
        mapped(guest).read(gpa, size)


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


def filled(size: int, byte: int) -> int:
    fd = os.memfd_create("guest-memory")
    os.write(fd, bytes([byte]) * size)
    return fd


def addresses() -> list[str]:
    """All of ours, for whatever they are."""
    with open("/proc/self/maps") as maps:
        return [line.split()[0] for line in maps]


@pytest.mark.parametrize("into", [0, 512])
def test_regions_that_adjoin_at_a_page_are_one(into):
    """Of whatever files: DIMMs are one each. A byte into its page the first may begin."""
    files = [filled(16384, 1), filled(8192, 2), filled(16384, 3)]
    told = [
        (into, 8192 - into, 1 << 40, 4096 + into, files[0]),
        (8192, 8192, 0, 0, files[1]),
        (16384, 100, 1 << 41, 8192, files[2]),
    ]
    memory = GuestMemory(reversed(told))
    assert memory.regions == tuple(region[:3] for region in told)
    assert [(gpa, size) for gpa, size, *_ in memory.maps] == [region[:2] for region in told]
    assert memory.read(into, 16484 - into).tobytes() == (
        b"\1" * (8192 - into) + b"\2" * 8192 + b"\3" * 100
    )
    memory.write(8190, b"abcd")
    assert os.pread(files[0], 2, 12286) + os.pread(files[1], 2, 0) == b"abcd"
    with pytest.raises(ValueError, match="in one region"):
        memory.read(16484, 1)
    os.ftruncate(files[1], 0)
    with pytest.raises(MemoryVanished):
        memory.read(8192, 1)
    assert memory.read(8191, 1).tobytes() == b"b"
    assert memory.read(16384, 1).tobytes() == b"\3"
    for fd in files:
        os.close(fd)


@pytest.mark.parametrize("into", [0, 512])
def test_regions_of_a_file_that_goes_on_are_one_wherever_they_are_cut(into):
    """Each page of it is mapped at one address, though it is told in two or three pieces."""
    fd = os.memfd_create("guest-memory")
    data = np.random.default_rng(1).integers(0, 256, 20480, np.uint8).tobytes()
    os.write(fd, data)
    cuts = 0, 5000, 5001, 9000, 12288, 16000 - into
    told = [(at, end - at, 1 << 40, into + at, fd) for at, end in pairwise(cuts)]
    memory = GuestMemory(told)
    assert [start - memory.maps[0][2] for _, _, start, _ in memory.maps] == list(cuts[:-1])
    assert memory.read(0, 16000 - into).tobytes() == data[into:16000]
    memory.write(4999, b"abcd")
    assert os.pread(fd, 4, 4999 + into) == b"abcd"
    with pytest.raises(ValueError, match="in one region"):
        memory.read(16000 - into, 1)
    del memory
    assert map_count() == 0
    os.close(fd)


def test_regions_of_files_that_are_cut_alike_are_two():
    files = filled(8192, 1), filled(8192, 2)
    memory = GuestMemory([(0, 5000, 0, 0, files[0]), (5000, 3192, 0, 5000, files[1])])
    with pytest.raises(ValueError, match="in one region"):
        memory.read(4999, 2)
    assert memory.read(4999, 1).tobytes() + memory.read(5000, 1).tobytes() == b"\1\2"
    for fd in files:
        os.close(fd)


@pytest.mark.parametrize(
    ("gpa", "offset", "size"),
    [(4096, 4096, 4095), (4096, 100, 4096), (8192, 4096, 4096)],
    ids=["ends within its page", "begins within its page", "a page further"],
)
def test_regions_that_do_not_are_two(gpa, offset, size):
    fd = filled(16384, 1)
    start = gpa - size if gpa == 4096 else 0
    memory = GuestMemory([(start, size, 0, 0, fd), (gpa, 4096, 0, offset, fd)])
    with pytest.raises(ValueError, match="in one region"):
        memory.read(gpa - 1, 2)
    assert memory.read(gpa, 4096).tobytes() == b"\1" * 4096
    os.close(fd)


def test_regions_that_adjoin_over_all_addresses_are_refused():
    """Their size, rounded up to whole pages, is none: two of them had been put over other maps."""
    fd = os.memfd_create("guest-memory")
    os.ftruncate(fd, (1 << 63) - 1)
    ends = 0, 4096, 8192, 1 << 63, (1 << 64) - 1
    regions = [(begin, end - begin, begin, 0, fd) for begin, end in pairwise(ends)]
    with pytest.raises(ProtocolError, match="side by side"):
        GuestMemory(regions)
    assert map_count() == 0
    os.close(fd)


def test_regions_that_adjoin_leave_nothing_behind():
    fds = [filled(4096, 1), os.open("/proc/self/exe", os.O_RDONLY)]
    before = addresses()
    GuestMemory([(0, 4096, 0, 0, fds[0]), (4096, 4096, 0, 0, fds[0])])
    assert addresses() == before
    with pytest.raises(ProtocolError, match="Permission denied"):  # half of it is mapped then
        GuestMemory([(0, 4096, 0, 0, fds[0]), (4096, 4096, 0, 0, fds[1])])
    assert addresses() == before
    for fd in fds:
        os.close(fd)


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
