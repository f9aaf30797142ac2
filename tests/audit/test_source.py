"""Rounds of a migration's source: what they copy, and what differs in the end."""

import mmap
from collections.abc import Iterator

import numpy as np
import pytest
from guest import AWKWARD
from host import Host, Vm

from vhostfast.audit.source import Source
from vhostfast.driver import Migration
from vhostfast.protocol.message import LOG_PAGE

PAGES = [*range(11), *range(0x40, 0x1040)]  # of AWKWARD


@pytest.fixture
def vm() -> Iterator[Vm]:
    with Host() as host:
        yield host.vm(0, regions=AWKWARD, start=False)


@pytest.fixture
def migration(vm: Vm) -> Iterator[Migration]:
    with Migration(vm.frontend) as migration:
        yield migration


def write_as_back_end(vm: Vm, gpa: int) -> None:
    """A byte through a map of its own."""
    for region, fd in zip(vm.memory.regions, vm.memory.fds, strict=True):
        if region.gpa <= gpa < region.gpa + region.size:
            with mmap.mmap(fd, region.mmap_offset + region.size) as whole:
                whole[region.mmap_offset + gpa - region.gpa] ^= 0xFF


def mark(migration: Migration, page: int) -> None:
    with mmap.mmap(migration.log.fd, migration.log.size) as bits:
        bits[page // 8] |= 1 << page % 8


@pytest.mark.parametrize("gpa", [0, 0x1234, 0x1235, 0x3235, 0xAFFF, 0x40000, 0x103_FFFF])
def test_a_write_differs_until_its_page_is_copied(vm: Vm, migration: Migration, gpa: int) -> None:
    with Source(migration, np.array(PAGES)) as source:
        assert source.differing() == {}
        write_as_back_end(vm, gpa)
        source.round()
        assert source.differing() == {gpa // LOG_PAGE: gpa}
        mark(migration, gpa // LOG_PAGE)
        source.round()
        assert source.differing() == {}
        assert (source.rounds, source.marks, source.causeless) == (2, 1, set())


@pytest.mark.parametrize("gpa", [0, 0x1234, 0x3236, 0x103_FFFF])
def test_what_the_guest_writes_itself_needs_no_mark(vm: Vm, migration: Migration, gpa: int) -> None:
    with Source(migration, np.array(PAGES)) as source:
        vm.memory.write(gpa, b"\xee")
        assert source.differing() == {gpa // LOG_PAGE: gpa}
        source.round()
        assert source.differing() == {}
        vm.memory.write(gpa, b"\xee")  # with what it was
        assert source.own().tolist() == [gpa // LOG_PAGE]
        assert source.own().tolist() == []
        assert source.marks == 0


def test_marks_on_what_is_not_written_have_no_cause(vm: Vm, migration: Migration) -> None:
    with Source(migration, np.array([3, 5])) as source:
        for page in (3, 4, 5, 0x20):  # the last in a hole
            mark(migration, page)
        assert source.marked().tolist() == [3, 4, 5, 0x20]
        assert source.causeless == {4, 0x20}
        assert source.marked(np.array([6])).tolist() == [6]
        assert (source.causeless, source.marks) == ({4, 6, 0x20}, 5)


def test_sabotage_drops_a_share_of_the_marks(vm: Vm, migration: Migration) -> None:
    with Source(migration, np.array(PAGES), sabotage=0.25) as source:
        kept = source.marked(np.array(PAGES))
        assert 0.7 < len(kept) / len(PAGES) < 0.8
        assert set(kept) <= set(PAGES)
        assert source.marks == len(PAGES)


def test_what_is_fetched_is_told_of_no_more_and_what_came_meanwhile_is(
    vm: Vm, migration: Migration
) -> None:
    with Source(migration, np.array(PAGES)) as source:
        for gpa in (7, 0x3500, 0x50000):
            write_as_back_end(vm, gpa)
        found = source.differing()
        assert found == {0: 7, 3: 0x3500, 0x50: 0x50000}
        write_as_back_end(vm, 0x51000)
        source.fetch(found)
        assert source.differing() == {0x51: 0x51000}
