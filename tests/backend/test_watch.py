"""What the kernel saw written and nobody marked is named, counted and marked before the answer.

The bug to be found is played by the test: it writes through the back-end's own map and marks
nothing.
"""

import errno
import logging
import os

import numpy as np
import pytest
from host import SMALL, Flow, Host, Vm, carry, frame
from logfile import LogFile, end, log_all

from vhostfast.backend import watch
from vhostfast.backend.watch import Record, joined, unmarked
from vhostfast.core.memory import GuestMemory, Log
from vhostfast.driver import GuestMemory as DriverMemory
from vhostfast.errors import EnvironmentLacks
from vhostfast.protocol.message import Request

PAGE = 4096
FRAMES = [frame(i) for i in range(100)]
FORGOTTEN = 0x201000  # a page of guest memory that no buffer lies in


@pytest.fixture(autouse=True)
def all_messages(caplog):
    caplog.set_level(logging.INFO, "vhostfast")


def write_unmarked(host: Host, gpa: int = FORGOTTEN, size: int = 1) -> None:
    """Through the map of port 1, in whose place a path of ours would have forgotten to mark."""
    with host.workers.paused():
        memory = next(iter(host.ports[1].port.rings.values())).memory
        memory.write(gpa, bytes(size))  # what was there already: only the kernel can tell


def judgements(caplog) -> list[str]:
    return [message for message in caplog.messages if " pages written, " in message]


def stop(vm: Vm) -> None:
    for vring in vm.frontend.rings:
        vm.frontend.stop_ring(vring)


def test_honest_traffic_leaves_nothing_to_report(caplog):
    with Host(witness=True) as host, LogFile() as log:
        a, b = host.vm(0), host.vm(1)
        with Flow(a, b) as flow:
            log.begin(b.frontend)
            flow.take(200)
            log_all(b.frontend, True)
        flow.assert_whole()
        stop(b)
        (judgement,) = judgements(caplog)
        assert judgement.startswith("port1: witness: ")
        assert judgement.endswith(" pages written, all marked")
        assert int(judgement.split()[2]) > 5
        assert host.counters(1)["log_pages_missed"] == 0


@pytest.mark.parametrize("how", [stop, lambda vm: end(vm.frontend)], ids=["stop", "cancel"])
def test_a_page_that_was_not_marked_is_named_counted_and_marked(caplog, how):
    with Host(witness=True) as host, LogFile() as log:
        a, b = host.vm(0), host.vm(1)
        log.begin(b.frontend)
        assert carry(a, b, FRAMES) == FRAMES
        write_unmarked(host)
        write_unmarked(host, FORGOTTEN + 4 * PAGE, 2 * PAGE)
        assert FORGOTTEN // PAGE not in log.pages()
        how(b)
        assert {FORGOTTEN // PAGE + i for i in (0, 4, 5)} <= log.pages()
        assert host.counters(1)["log_pages_missed"] == 3
        (message,) = [message for message in caplog.messages if "report this bug" in message]
        assert "3 pages were written and not marked" in message
        assert "GPA 0x201000+0x1000, 0x205000+0x2000." in message


def test_what_was_written_before_the_log_came_is_not_held_against_it():
    with Host(witness=True) as host, LogFile() as log:
        a, b = host.vm(0), host.vm(1)
        assert carry(a, b, FRAMES) == FRAMES
        write_unmarked(host)
        log.begin(b.frontend)
        stop(b)
        assert host.counters(1)["log_pages_missed"] == 0
        assert FORGOTTEN // PAGE not in log.pages()


def test_used_rings_are_not_held_against_it_until_they_are_to_be_marked():
    """QEMU sends SET_VRING_ADDR with the flag last; some front-ends never do."""
    with Host(witness=True) as host, LogFile() as log:
        a, b = host.vm(0), host.vm(1)
        log.base(b.frontend)
        log_all(b.frontend, True)
        assert carry(a, b, FRAMES) == FRAMES
        used = b.receiver().used_gpa
        for vring in b.frontend.rings:
            b.frontend.request(Request.SET_VRING_ADDR, vring.addresses(log=True), ack=True)
        assert host.counters(1)["log_pages_missed"] == 0
        assert used // PAGE not in log.pages()
        log.clear()
        write_unmarked(host, used + 6)
        stop(b)
        assert host.counters(1)["log_pages_missed"] == 1
        assert used // PAGE in log.pages()


def test_a_second_migration_is_watched_anew():
    with Host(witness=True) as host, LogFile() as first, LogFile() as second:
        a, b = host.vm(0), host.vm(1)
        first.begin(b.frontend)
        write_unmarked(host)
        end(b.frontend)
        second.begin(b.frontend)
        assert carry(a, b, FRAMES) == FRAMES
        stop(b)
        assert host.counters(1)["log_pages_missed"] == 1
        assert FORGOTTEN // PAGE not in second.pages()


def test_rings_that_are_disabled_first():
    """cloud-hypervisor pauses by SET_VRING_ENABLE 0, and drops the log later."""
    with Host(witness=True) as host, LogFile() as log:
        b = host.vm(1)
        log.begin(b.frontend)
        write_unmarked(host)
        b.frontend.enable(0, False)
        end(b.frontend)
        assert FORGOTTEN // PAGE in log.pages()
        assert host.counters(1)["log_pages_missed"] == 1


def test_memory_that_is_replaced_is_judged_before_it_goes():
    memory = DriverMemory([(0, 4 << 20), (4 << 20, 4 << 20)])
    with Host(witness=True) as host, LogFile() as log:
        a, b = host.vm(0), host.vm(1, memory=memory)
        log.begin(b.frontend)
        write_unmarked(host)
        b.frontend.request(
            Request.SET_MEM_TABLE, type(memory.table)(memory.regions[:1]), memory.fds[:1], ack=True
        )
        write_unmarked(host, FORGOTTEN + PAGE)
        assert carry(a, b, FRAMES) == FRAMES
        stop(b)
        assert {FORGOTTEN // PAGE, FORGOTTEN // PAGE + 1} <= log.pages()
        assert host.counters(1)["log_pages_missed"] == 2


def maps_of_memfds() -> int:
    with open("/proc/self/maps") as maps:
        return sum("/memfd:" in line for line in maps)


def test_memory_that_is_replaced_while_no_ring_runs_is_let_go():
    with Host(witness=True) as host, LogFile() as log:
        b = host.vm(1)
        log.begin(b.frontend)
        write_unmarked(host)
        b.frontend.enable(0, False)
        with DriverMemory(SMALL) as other:
            before = maps_of_memfds()
            table, fds = other.table, other.fds
            b.frontend.request(Request.SET_MEM_TABLE, table, fds, ack=True)
            assert maps_of_memfds() == before
        assert FORGOTTEN // PAGE in log.pages()
        assert host.counters(1)["log_pages_missed"] == 1


def test_without_an_fd_for_it_the_migration_goes_on(caplog, monkeypatch):
    def lacks(path, *rest, **more):
        if path == "/proc/self/pagemap":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *rest, **more)

    real = os.open
    monkeypatch.setattr(os, "open", lacks)
    with Host(witness=True) as host, LogFile() as log:
        a, b = host.vm(0), host.vm(1)
        log.begin(b.frontend)
        assert carry(a, b, FRAMES) == FRAMES
        stop(b)
        assert "no record of written pages: Too many open files" in caplog.text


def test_a_front_end_that_leaves_amid_its_migration():
    with Host(witness=True) as host, LogFile() as log:
        b = host.vm(1)
        log.begin(b.frontend)
        b.close()
        assert "closed the socket" in host.reason(1)


def test_without_the_kernel_s_record_the_migration_goes_on(caplog, monkeypatch):
    def lacks(maps):
        raise EnvironmentLacks("Linux 6.1 keeps no record")

    monkeypatch.setattr(watch, "Witness", lacks)
    with Host(witness=True) as host, LogFile() as log:
        a, b = host.vm(0), host.vm(1)
        log.begin(b.frontend)
        assert carry(a, b, FRAMES) == FRAMES
        stop(b)
        assert log.pages()
        assert "port1: witness: Linux 6.1 keeps no record: no migration is watched" in caplog.text


# --- Parts

SPANS = [
    # marked pages, written (first, last), which of them were missed
    ([], [], []),
    ([3], [(3, 3)], [False]),
    ([3], [(2, 2), (4, 4)], [True, True]),
    ([0, 63], [(0, 0), (1, 62), (63, 63)], [False, True, False]),
    ([10], [(0, 10), (10, 20), (0, 9), (11, 20)], [False, False, True, True]),  # larger pages
    ([7, 8], [(7, 7), (8, 8), (6, 6), (9, 9)], [False, False, True, True]),
]


@pytest.mark.parametrize(("marked", "written", "missed"), SPANS)
def test_a_span_without_any_mark_was_missed(marked, written, missed):
    bits = np.zeros(64, bool)
    bits[marked] = True
    spans = np.array(written, np.int64).reshape(-1, 2)
    found = unmarked(np.packbits(bits, bitorder="little"), spans[:, 0], spans[:, 1])
    assert found.tolist() == missed


def test_pages_that_touch_are_one_range():
    first, last = np.array([5, 1, 2, 9, 6]), np.array([5, 1, 2, 10, 7])
    ranges = [(1 * PAGE, 2 * PAGE), (5 * PAGE, 3 * PAGE), (9 * PAGE, 2 * PAGE)]
    assert joined(first, last) == ranges
    assert joined(first[:0], last[:0]) == []


@pytest.mark.parametrize("shift", [0, 100])
def test_regions_that_begin_amid_a_page(shift):
    """A page of a map lies over two of the log where the file's offset is no page's."""
    with DriverMemory([(0x1000 + 8, 0x2000)]) as memory:
        (region,) = memory.regions
        mapped = GuestMemory([(region.gpa + shift, 0x2000, 0, region.mmap_offset, memory.fds[0])])
        record = Record(mapped)
        mapped.write(region.gpa + shift, b"\1")
        mapped.write(region.gpa + shift + 0x1FFF, b"\1")
        spans = [tuple(span) for span in np.transpose(record.take()).tolist()]
        assert spans == ([(1, 1), (3, 3)] if shift == 0 else [(1, 2), (3, 3)])
        record.close()


def test_a_log_remembers_only_for_a_witness():
    fd = os.memfd_create("log")
    os.ftruncate(fd, 64)
    plain, remembering = Log(fd, 64, 0), Log(fd, 64, 0, witness=True)
    remembering.mark(PAGE, PAGE)
    assert os.pread(fd, 1, 0) == b"\x02"
    assert bytes(remembering.marked) == b"\x02" + bytes(63)
    with pytest.raises(ValueError, match="without a witness"):
        plain.marked  # noqa: B018
    os.close(fd)
