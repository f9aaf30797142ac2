import mmap
import os

import pytest
from guest import AWKWARD

from vhostfast.driver import GuestMemory
from vhostfast.errors import EnvironmentLacks
from vhostfast.protocol.message import Region


def seen_by_backend(fd: int, region: Region) -> bytes:
    """The region's bytes, mapped anew as a back-end does: from the file's beginning."""
    with mmap.mmap(fd, region.mmap_offset + region.size) as whole:
        return whole[region.mmap_offset :]


@pytest.mark.parametrize("separate", [False, True])
def test_what_the_guest_writes_is_where_the_table_says(separate: bool) -> None:
    with GuestMemory(AWKWARD, separate=separate) as memory:
        for number, (gpa, size) in enumerate(AWKWARD):
            memory.write(gpa, bytes([number + 1]) * size)
        assert [(r.gpa, r.size) for r in memory.table.regions] == list(AWKWARD)
        for number, (region, fd) in enumerate(zip(memory.regions, memory.fds, strict=True)):
            assert seen_by_backend(fd, region) == bytes([number + 1]) * region.size
        assert len(set(memory.fds)) == (len(AWKWARD) if separate else 1)


def test_adjacent_regions_are_one_piece_but_a_hole_is_not() -> None:
    with GuestMemory(AWKWARD) as memory:
        memory.write(0x1230, b"0123456789")
        assert memory.read(0x1235, 5) == b"56789"
        with pytest.raises(ValueError, match="not in one piece"):
            memory.view(0xAFFF, 2)
    with GuestMemory(AWKWARD, separate=True) as memory, pytest.raises(ValueError, match="piece"):
        memory.view(0x1230, 10)


def test_uvas_are_claimed_and_not_ours() -> None:
    with GuestMemory(AWKWARD) as memory, GuestMemory(AWKWARD, uva_offset=0) as plain:
        assert memory.uva(0x40010) - memory.uva(0x1234) == 0x40010 - 0x1234
        assert memory.view(0x40010, 1).ctypes.data != memory.uva(0x40010)
        assert plain.uva(0x40010) == 0x40010
        with pytest.raises(ValueError, match="0x20000 is not in guest memory"):
            memory.uva(0x20000)


def test_memory_is_taken_once_and_over_the_hole() -> None:
    with GuestMemory(((0x100, 0x300), (0x1000, 0x1000))) as memory:
        assert [memory.take(0x41), memory.take(0x10), memory.take(1, align=1)] == [
            0x100, 0x180, 0x190,
        ]  # fmt: skip
        before = memory.position
        assert memory.take(0x300) == 0x1000
        with pytest.raises(ValueError, match="no 3392 bytes left"):
            memory.take(0xD40)
        memory.position = before
        assert memory.take(0x1000) == 0x1000


def test_views_outlive_the_memory_and_fds_do_not() -> None:
    before = os.listdir("/proc/self/fd")
    memory = GuestMemory()
    view = memory.view(0, 4)
    memory.close()
    memory.close()
    view[:] = 7
    assert os.listdir("/proc/self/fd") == before


def test_no_back_end_can_cut_the_memory_short() -> None:
    """It has the fd, and our next access would be the end of the process."""
    with GuestMemory(AWKWARD) as memory, GuestMemory(AWKWARD, sealed=False) as open_to_all:
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fds[0], 0)
        with open(f"/proc/self/fd/{memory.fds[0]}", "r+b") as again, pytest.raises(PermissionError):
            again.truncate(0)
        memory.write(0, b"still there")
        os.ftruncate(open_to_all.fds[0], 0)


def test_hugepages_or_a_sentence_how_to_get_them() -> None:
    with open("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages") as file:
        size = (int(file.read()) + 1) << 21
    before = os.listdir("/proc/self/fd")
    with pytest.raises(EnvironmentLacks, match=r"2 MiB hugepages.*nr_hugepages"):
        GuestMemory([(0, size)], hugepages=True)
    assert os.listdir("/proc/self/fd") == before
