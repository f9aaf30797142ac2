"""A migration as a front-end plays it: the log itself, and what our back-end makes of it."""

import fcntl
import logging
import mmap
import os
import re

import pytest
from host import SMALL, Host, Vm, carry, frame

from vhostfast.driver import DirtyLog, GuestMemory, Migration
from vhostfast.errors import EnvironmentLacks
from vhostfast.protocol.features import Offer, ProtocolFeature, VirtioFeature
from vhostfast.protocol.message import LOG_PAGE


@pytest.mark.parametrize(
    ("end", "size"),
    [(1, 8), (0x40000, 8), (0x40001, 16), (128 << 20, 0x1000), ((1 << 32) + 1, 0x20008)],
)
def test_a_log_has_the_size_of_qemus(end: int, size: int) -> None:
    start = max(0, end - (1 << 20))
    with GuestMemory(((start, end - start),)) as memory:
        log = DirtyLog(memory)
        assert (log.size, os.fstat(log.fd).st_size) == (size, size)
        log.close()


def test_a_logs_file_can_be_neither_cut_nor_grown() -> None:
    with GuestMemory(SMALL) as memory:
        log = DirtyLog(memory, offset=LOG_PAGE)
        seals = fcntl.fcntl(log.fd, fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        for size in (0, 2 * LOG_PAGE):
            with pytest.raises(PermissionError):
                os.ftruncate(log.fd, size)
        log.close()
        log.close()


@pytest.mark.parametrize("offset", [0, 3 * LOG_PAGE])
def test_take_gives_each_mark_once(offset: int) -> None:
    """Bit n of byte 8 n' is page 8 n' + n; what others have set meanwhile stays for the next."""
    with GuestMemory(SMALL) as memory:
        log = DirtyLog(memory, offset=offset)
        with mmap.mmap(log.fd, offset + log.size) as bits:
            assert log.take().tolist() == []
            bits[offset] = 0b1000_0001
            bits[offset + 9] = 0b10
            bits[offset + log.size - 1] = 0x80
            assert log.take().tolist() == [0, 7, 73, 8 * log.size - 1]
            assert not any(bits[:])
            assert log.take().tolist() == []
            assert not log.before.any()
            if offset:
                bits[offset - 1] = 1
                assert log.before.any()
                assert log.take().tolist() == []
        log.close()


# --- With our back-end ----------------------------------------------------------------------------


def pages_of(*spans: tuple[int, int]) -> set[int]:
    return {
        page
        for gpa, size in spans
        for page in range(gpa // LOG_PAGE, (gpa + size - 1) // LOG_PAGE + 1)
    }


def used_elements(vm: Vm, ring: int, first: int, count: int) -> list[tuple[int, int]]:
    """The used ring's idx, and `count` elements from the one numbered `first` on."""
    gpa = vm.frontend.rings[ring].used_gpa
    return [(gpa + 2, 2), (gpa + 4 + 8 * first, 8 * count)]


def test_messages_are_in_qemus_order(caplog: pytest.LogCaptureFixture) -> None:
    with Host() as host:
        vm = host.vm(0, queue_pairs=2)
        with Migration(vm.frontend) as migration, caplog.at_level(logging.DEBUG, "vhostfast"):
            migration.begin()
            migration.replace()
            migration.cancel()
            vm.frontend.fence()
        told = re.findall(r"port0: ([A-Z_]{5,}) ", caplog.text)
    features = ["SET_FEATURES", "SET_VRING_ADDR", "SET_VRING_ADDR"]
    begun = ["SET_LOG_BASE", *features] * 2
    assert told == [*begun, "SET_LOG_BASE", *features, *features, "GET_FEATURES"]


def test_marks_are_of_what_was_written_and_in_the_log_that_is_told() -> None:
    with Host() as host:
        a, b = host.vm(0), host.vm(1)
        with Migration(b.frontend, offset=LOG_PAGE) as migration:
            migration.begin()
            carry(a, b, [frame(0)])
            host.settle()
            marked = set(migration.take().tolist())
            assert pages_of(*used_elements(b, 0, 0, 1)) <= marked
            a.send([frame(1)])
            b.wait_used()
            a.all_sent()
            host.settle()
            old = set(migration.replace().tolist())
            assert pages_of(*used_elements(b, 0, 1, 1)) <= old
            carry(a, b, [frame(2)])
            host.settle()
            assert pages_of(*used_elements(b, 0, 2, 1)) <= set(migration.take().tolist())
            migration.cancel()
            migration.take()
            carry(a, b, [frame(3)])
            host.settle()
            assert migration.take().tolist() == []
            migration.begin()
            carry(b, a, [frame(4, to=1, sender=2)])
            host.settle()
            sent = pages_of(*used_elements(b, 1, 0, 1))
            assert sent <= set(migration.take().tolist())
            assert not migration.log.before.any()


def test_after_a_restart_nothing_is_written_before_the_log_is_there() -> None:
    with Host() as host:
        a, b = host.vm(0), host.vm(1)
        with Migration(b.frontend) as migration:
            migration.begin()
            b.frontend.stop()
            b.frontend.reset()
            b.post(8)
            before = b.picture()
            b.frontend.resume()  # all of a restart but for its log
            a.send([frame(0)])
            a.all_sent()
            assert b.picture() == before
            b.frontend.stop()
            migration.restart()
            a.send([frame(1)])
            head, size = b.wait_used()
            host.settle()
            buffer = b._slots[0, head]
            written = pages_of((buffer, size), *used_elements(b, 0, 0, 1))
            assert written <= set(migration.take().tolist())


@pytest.mark.parametrize("lacking", [VirtioFeature.LOG_ALL, ProtocolFeature.LOG_SHMFD])
def test_a_back_end_that_cant_log(lacking: VirtioFeature | ProtocolFeature) -> None:
    whole = Offer.net()
    if isinstance(lacking, VirtioFeature):
        less = Offer(whole.features & ~lacking, whole.protocol_features)
    else:
        less = Offer(whole.features, whole.protocol_features & ~lacking)
    with Host(offer=less) as host:
        vm = host.vm(0, start=False)
        with pytest.raises(EnvironmentLacks, match=lacking.name):
            Migration(vm.frontend)
