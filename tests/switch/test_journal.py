"""A port's lines are bounded by kind, the rest are counted, and other ports are not affected."""

import errno
import fcntl
import logging
import os
import queue
from collections.abc import Iterator

import pytest

from vhostfast.switch.journal import (
    DEBUG_LINES,
    LINES,
    WAITING_LINES,
    LogWriter,
    Moderation,
    Writer,
)

log = logging.getLogger("vhostfast")


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def kept() -> Iterator[tuple[list[str], Moderation]]:
    handler, moderation = Kept(), Moderation()
    handler.addFilter(moderation)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield handler.lines, moderation
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


def test_a_flood_is_counted_and_told_once(kept: tuple[list[str], Moderation]) -> None:
    lines, moderation = kept
    for number in range(LINES + 3412):
        log.warning("%s: refused: %s", "vm0", number)
    assert lines == [f"vm0: refused: {number}" for number in range(LINES)]
    lines.clear()
    moderation.tell()
    moderation.tell()
    assert lines == ['vm0: … and 3,412 more like this in the last 10 s: "refused: %s"']
    log.warning("%s: refused: %s", "vm0", "again")
    assert lines[1:] == ["vm0: refused: again"]


def test_other_ports_and_other_kinds_have_their_own(kept: tuple[list[str], Moderation]) -> None:
    lines, _ = kept
    for _ in range(LINES + 1):
        log.warning("%s: refused: %s", "vm0", "x")
    lines.clear()
    log.warning("%s: refused: %s", "vm0", "one more")
    log.warning("%s: refused: %s", "vm1", "x")
    log.info("%s: disconnected: %s", "vm0", "y")
    log.info("no port's")
    assert lines == ["vm1: refused: x", "vm0: disconnected: y", "no port's"]


def test_who_asks_for_each_message_gets_those_of_a_boot(kept: tuple[list[str], Moderation]) -> None:
    lines, moderation = kept
    for number in range(DEBUG_LINES + 5):
        log.debug("%s: %s %s", "vm0", "SET_VRING_ADDR", number)
    assert lines == [f"vm0: SET_VRING_ADDR {number}" for number in range(DEBUG_LINES)]
    lines.clear()
    moderation.tell()
    assert lines == ['vm0: … and 5 more like this in the last 10 s: "%s %s"']


def test_what_is_of_no_port_is_never_left_out(kept: tuple[list[str], Moderation]) -> None:
    lines, _ = kept
    for number in range(3 * LINES):
        log.error("%d connections did not end within %s s", number, 1)
    assert len(lines) == 3 * LINES


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("vhostfast", logging.INFO, "", 0, text, None, None)


def test_nobody_waits_for_who_reads_the_log() -> None:
    """What waits comes when it is read, in order; what was lost is counted."""
    source, fd = os.pipe()
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096)
    os.write(fd, b"x" * 4095 + b"\n")
    writer = LogWriter(fd)
    for number in range(WAITING_LINES + 100):
        writer.handle(record(f"line {number}"))
    with os.fdopen(source) as pipe:
        assert pipe.readline() == "x" * 4095 + "\n"
        number = 0
        while number < WAITING_LINES:
            assert pipe.readline() == f"line {number}\n"
            number += 1
        writer.handle(record("and on"))
        rest = pipe.readline()
        if rest == f"line {number}\n":  # the one that the thread had in its hands
            number += 1
            rest = pipe.readline()
        assert rest == f"… {WAITING_LINES + 100 - number} lines were lost: nobody read the log\n"
        assert pipe.readline() == "and on\n"
        writer.handle(record("the last"))
        writer.close()
        os.close(fd)
        assert pipe.read() == "the last\n"


def test_a_log_without_a_reader_is_no_fault() -> None:
    source, fd = os.pipe()
    os.close(source)
    writer = LogWriter(fd)
    writer.handle(record("to nobody"))
    writer.close()
    os.close(fd)


def test_who_never_reads_holds_up_no_end() -> None:
    source, fd = os.pipe()
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096)
    os.write(fd, b"x" * 4096)
    writer = LogWriter(fd)
    for number in range(WAITING_LINES + 2):
        writer.handle(record(f"line {number}"))
    writer.close()
    os.close(source)  # which ends the thread's wait
    writer.close()
    os.close(fd)


def unexpected(error: OSError) -> None:
    raise AssertionError(error)


def test_what_waits_is_written_whole_once_it_is_read() -> None:
    source, fd = os.pipe()
    size = fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096)
    writer = Writer(fd, 2, unexpected)
    assert writer.put("a" * size + "b\n")
    taken = [writer.put("c\n") for _ in range(3)]
    assert sum(taken) in (1, 2)  # 2 once the thread has the first in its hands
    assert not writer.close()
    with os.fdopen(source) as pipe:
        assert pipe.readline() == "a" * size + "b\n"
        assert [pipe.readline() for _ in range(sum(taken))] == ["c\n"] * sum(taken)
    assert writer.close()
    os.close(fd)


def test_what_cannot_be_written_is_told_and_the_next_is_tried() -> None:
    source, fd = os.pipe()
    os.close(source)
    failures: queue.Queue[OSError] = queue.Queue()
    writer = Writer(fd, 8, failures.put)
    for _ in range(2):
        assert writer.put("to nobody")
        assert isinstance(failures.get(timeout=10), BrokenPipeError)
    assert writer.close()
    os.close(fd)


def test_a_pipe_that_does_not_wait_is_waited_for() -> None:
    """Whoever we share it with may have set that, as ssh and node.js do."""
    source, fd = os.pipe()
    size = fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(fd, False)
    writer = Writer(fd, 8, unexpected)
    texts = [letter * size + "\n" for letter in "abc"]
    assert all(map(writer.put, texts))
    assert not writer.close()
    with os.fdopen(source) as pipe:
        assert [pipe.readline() for _ in texts] == texts
    assert writer.close()
    os.close(fd)


def test_what_was_cut_ends_where_the_next_begins() -> None:
    """As on a disk that was full and has room again: here a file that may not grow."""
    fd = os.memfd_create("summaries", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    failures: queue.Queue[OSError] = queue.Queue()
    writer = Writer(fd, 8, failures.put)
    for _ in range(2):
        assert writer.put("a" * 5000 + "\n")
        assert failures.get(timeout=10).errno == errno.EPERM
    os.lseek(fd, 0, os.SEEK_SET)
    assert writer.put("b\n")
    assert writer.put("c\n")
    assert writer.close()
    assert os.pread(fd, 6, 0) == b"\nb\nc\na"
    os.close(fd)
