"""A real migration, QEMU to QEMU: begun, held until it has had its rounds, its memory compared.

Our marks are seen where they are made: in the log, which is a memfd of the source. QEMU takes its
words away once a round, so it is read all the time, and what was ever seen is kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from qemu import MEMORY_NAME, Guest

PAGE = 4096
PIECE = 16 << 20  # bytes compared at a time
LOG_NAME = "vhost-log"
ENDED = ("completed", "failed", "cancelled")
PATIENCE_S = 60
LOOKS, LOOK_S = 10, 0.002  # between two questions to QEMU
BANDWIDTH, ROUND_BANDWIDTH = 64 << 20, 16 << 20  # bytes a second: of the first round, of others
ROUND_REMAINING = 16 << 20  # bytes left of the first round when the bandwidth changes
NEVER_MS, SOON_MS = 1, 500  # downtime allowed: so little that it goes on, or enough to end


@dataclass(frozen=True, slots=True)
class Moved:
    """A migration that is done: `rounds` in which the source looked for dirty pages, frames that
    the guest had not looked at when it stopped; and the numbers of the pages that we marked, and of
    those that differ."""

    rounds: int
    unread: int
    marked: frozenset[int]
    differing: list[int]

    def assert_equal(self) -> None:
        pages = [
            f"GPA {page * PAGE:#x} {'marked' if page in self.marked else 'never marked'}"
            for page in self.differing
        ]
        assert not pages, f"{len(pages)} pages differ: {', '.join(pages[:20])}"


@contextmanager
def memfds(pid: int, name: str) -> Iterator[list[int]]:
    """The memfds of this name that a process has open, opened here for reading."""
    folder = f"/proc/{pid}/fd"
    with ExitStack() as stack:
        fds = []
        for number in os.listdir(folder):
            try:
                if f"/memfd:{name} " not in os.readlink(f"{folder}/{number}"):
                    continue
                fds.append(os.open(f"{folder}/{number}", os.O_RDONLY))
            except FileNotFoundError:
                continue  # closed since it was listed
            stack.callback(os.close, fds[-1])
        yield fds


def holds_memfd(pid: int, name: str) -> bool:
    """Whether a process has a memfd of this name open, or a map of one."""
    with memfds(pid, name) as fds, open(f"/proc/{pid}/maps") as maps:
        return bool(fds) or f"/memfd:{name} " in maps.read()


def read_memory(guest: Guest, gpa: int, size: int) -> bytes:
    with memfds(guest.process.pid, MEMORY_NAME) as (fd,):
        return os.pread(fd, size, gpa)  # its file begins at GPA 0


@dataclass(frozen=True, slots=True)
class Ring:
    """A split ring of `entries`, and the GPAs of its areas (virtio 1.3, 2.7)."""

    index: int
    entries: int
    avail: int
    used: int

    def avail_index(self, guest: Guest) -> int:
        return int.from_bytes(read_memory(guest, self.avail + 2, 2), "little")

    def used_index(self, guest: Guest) -> int:
        return int.from_bytes(read_memory(guest, self.used + 2, 2), "little")

    def filled(self, guest: Guest) -> int:
        """Of a receive ring, how many buffers the guest has been given back and not offered again:
        frames that it has not looked at."""
        return (self.entries + self.used_index(guest) - self.avail_index(guest)) % 65536

    def written_pages(self, first: int, last: int) -> set[int]:
        """The pages of the used ring that are written to while used.idx goes from `first` to
        `last`: of its elements and its index; a transmit ring's also of avail_event."""
        count = min((last - first) % 65536, self.entries)
        offsets = [2] + [4 + 8 * ((first + i) % self.entries) for i in range(count)]
        if self.index % 2 == 1:
            offsets.append(4 + 8 * self.entries)
        return {(self.used + offset) // PAGE for offset in offsets}


class Migration:
    """From `source` to `destination`, begun when this is made; it goes on until it is told to end.

    Every round sends what was written to since the last one; it is the last if that can be sent
    within `downtime_ms` at `bandwidth`, in bytes a second.
    """

    def __init__(
        self,
        source: Guest,
        destination: Guest,
        *,
        bandwidth: int = BANDWIDTH,
        downtime_ms: int = NEVER_MS,
    ) -> None:
        self._source, self._destination = source, destination
        self._log = np.zeros(0, np.uint8)
        limits = {"max-bandwidth": bandwidth, "downtime-limit": downtime_ms}
        source.control("migrate-set-parameters", **limits)
        source.control("migrate", uri=f"unix:{destination.incoming}")

    def wait_for_rounds(self, count: int) -> None:
        """From the second on, rounds are slow: a guest that the machine keeps from running for a
        moment has still written to something in each, so that none is the last."""
        self._wait(
            lambda state: 0 < state.get("ram", {}).get("remaining", 0) < ROUND_REMAINING,
            "the end of the first round",
        )
        self._source.control("migrate-set-parameters", **{"max-bandwidth": ROUND_BANDWIDTH})
        self._wait(lambda state: _rounds(state) >= count, f"{count} rounds")

    def wait_for_event(self, holds: Callable[[], bool], what: str) -> None:
        """Or until it has ended by itself, since a guest on a busy machine may write to nothing for
        a whole round."""
        self._wait(lambda state: state["status"] == "completed" or holds(), what)

    def wait_for(self, status: str) -> dict[str, Any]:
        """Until QEMU gives this as the migration's status; all that it says then."""
        return self._wait(lambda state: state["status"] == status, status)

    def cancel(self) -> None:
        self._source.control("migrate_cancel")
        self.wait_for("cancelled")

    def finish(self, receiver: Ring | None = None) -> Moved:
        """Let it end, wait until both stand still, and compare. Frames unread are of `receiver`."""
        self._source.control("migrate-set-parameters", **{"downtime-limit": SOON_MS})
        state = self.wait_for("completed")
        self._destination.wait_for_status("paused")
        self._source.wait_for_status("postmigrate")
        differing = differing_pages(self._source, self._destination)
        bits = np.unpackbits(self._log, bitorder="little").nonzero()[0]
        unread = receiver.filled(self._source) if receiver else 0
        marked = frozenset(bits.tolist())
        return Moved(_rounds(state), unread, marked, differing)

    def _wait(self, holds: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            state: dict[str, Any] = self._source.control("query-migrate")
            if holds(state):
                return state
            assert state["status"] not in ENDED, f"it ended before {what}: {state}"
            assert time.monotonic() < deadline, f"not in {PATIENCE_S} s: {what}: {state}"
            self._look_at_log()

    def _look_at_log(self) -> None:
        """For as long as a question is apart from the next."""
        with memfds(self._source.process.pid, LOG_NAME) as fds:
            for _ in range(LOOKS):
                for fd in fds:
                    now = np.frombuffer(os.pread(fd, os.fstat(fd).st_size, 0), np.uint8)
                    self._log = np.pad(self._log, (0, max(0, len(now) - len(self._log))))
                    self._log[: len(now)] |= now
                time.sleep(LOOK_S)


def _rounds(state: dict[str, Any]) -> int:
    return int(state.get("ram", {}).get("dirty-sync-count", 0))


def differing_pages(source: Guest, destination: Guest) -> list[int]:
    """The numbers of all pages of guest memory that are not the same in both. Both stand still."""
    differing: list[int] = []
    with (
        memfds(source.process.pid, MEMORY_NAME) as (source_fd,),
        memfds(destination.process.pid, MEMORY_NAME) as (destination_fd,),
    ):
        fds = (source_fd, destination_fd)
        size, other_size = (os.fstat(fd).st_size for fd in fds)
        assert size == other_size
        for start in range(0, size, PIECE):
            # Read, not mapped: a map would fill the holes.
            here, there = (
                np.frombuffer(os.pread(fd, PIECE, start), np.uint64).reshape(-1, PAGE // 8)
                for fd in fds
            )
            pages = (here != there).any(axis=1).nonzero()[0] + start // PAGE
            differing += pages.tolist()
    return differing
