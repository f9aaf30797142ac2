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
BANDWIDTH = 64 << 20  # bytes a second
NEVER_MS, SOON_MS = 1, 500  # downtime allowed: so little that it goes on, or enough to end


@dataclass(frozen=True, slots=True)
class Moved:
    """A migration that is done: `rounds` in which the source looked for dirty pages, `downtime_ms`
    as QEMU has it; and the numbers of the pages that we marked, and of those that differ."""

    rounds: int
    downtime_ms: int
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


class Migration:
    """From `source` to `destination`, begun when this is made; it goes on until it is told to end.

    Every round sends what was written to since the last one. At so little downtime allowed the
    last round never comes, and at so low a `bandwidth`, in bytes a second, each takes its time.
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
        self._wait(lambda state: _rounds(state) >= count, f"{count} rounds")

    def wait_for(self, status: str) -> dict[str, Any]:
        """Until QEMU gives this as the migration's status; all that it says then."""
        return self._wait(lambda state: state["status"] == status, status)

    def cancel(self) -> None:
        self._source.control("migrate_cancel")
        self.wait_for("cancelled")

    def finish(self) -> Moved:
        """Let it end, wait until both stand still, and compare."""
        self._source.control("migrate-set-parameters", **{"downtime-limit": SOON_MS})
        state = self.wait_for("completed")
        self._destination.wait_for_status("paused")
        self._source.wait_for_status("postmigrate")
        differing = differing_pages(self._source, self._destination)
        bits = np.unpackbits(self._log, bitorder="little").nonzero()[0]
        return Moved(_rounds(state), state["downtime"], frozenset(bits.tolist()), differing)

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
