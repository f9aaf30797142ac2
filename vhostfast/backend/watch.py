"""A migration under the kernel's eye: what was written and never marked is found and marked.

The kernel's record (core/witness.py) knows nothing of our marking code, and the log remembers what
it was asked to mark. Both begin when the log is there; when it goes, at the last vring's stop and
before the answer that tells of it, the one is held against the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vhostfast.core.memory import GuestMemory, Log
from vhostfast.core.witness import Witness
from vhostfast.errors import EnvironmentLacks

Pages = NDArray[np.int64]  # numbers of pages of the log
Span = tuple[int, int]  # GPA, bytes
LOG_PAGE_SHIFT = 12
logger = logging.getLogger("vhostfast")


class Watch:
    """Watches the migrations of one connection. Make it with the port's name and counter."""

    def __init__(self, name: str, count: Callable[[str, int], None]) -> None:
        self.log: Log | None = None  # what is held against the kernel's record now
        self._name = name
        self._count = count
        self._record: Record | None = None
        self._exempt: frozenset[Span] = frozenset()
        self._next: tuple[Record | None, Log | None, frozenset[Span]] = (None, None, frozenset())
        self._written = self._missed = 0  # pages, under this log

    def prepare(self, memory: GuestMemory | None, log: Log | None, exempt: frozenset[Span]) -> None:
        """The slow part of `swap`: a record of this memory, where there is none yet. Where the
        kernel keeps none the migration goes on, with a warning. `exempt`: (gpa, bytes) that nobody
        has asked us to mark, used rings without VHOST_VRING_F_LOG."""
        record = None
        if memory is not None and log is not None:
            known = self._record is not None and self._record.memory is memory
            record = self._record if known else self._new_record(memory)
        self._next = (record, log if record is not None else None, exempt)

    def _new_record(self, memory: GuestMemory) -> Record | None:
        try:
            record = Record(memory)
        except EnvironmentLacks as error:
            logger.warning("%s: witness: %s: no migration is watched", self._name, str(error))
            return None
        logger.info("%s: witness: watches pages of %d KiB", self._name, record.precision >> 10)
        return record

    def swap(self) -> None:
        """Judge what was written to the memory, and under the log, that goes; begin with those
        that come. Nobody walks a ring, and the front-end has yet to look at its log for the last
        time."""
        old, (new, log, exempt) = self._record, self._next
        if old is new and self.log is log and self._exempt == exempt:
            return
        if old is not None and self.log is not None:
            self._judge(old, self.log)
            if self.log is not log:
                missed = f"{self._missed} of them not marked" if self._missed else "all marked"
                logger.info("%s: witness: %d pages written, %s", self._name, self._written, missed)
                self._written = self._missed = 0
        if new is not None:
            new.take()
        self._record, self.log, self._exempt = new, log, exempt
        self._next = (None, None, frozenset())
        if old is not None and old is not new:
            old.close()

    def _judge(self, record: Record, log: Log) -> None:
        first, last = record.take()
        self._written += len(first)
        missed = unmarked(log.marked, first, last)
        for gpa, size in self._exempt:
            missed &= (last < gpa >> LOG_PAGE_SHIFT) | (first > (gpa + size - 1) >> LOG_PAGE_SHIFT)
        ranges = joined(first[missed], last[missed])
        for gpa, size in ranges:
            log.mark(gpa, size)
        if ranges:
            count = sum(size for _, size in ranges) >> LOG_PAGE_SHIFT
            self._missed += count
            self._count("log_pages_missed", count)
            where = ", ".join(f"{gpa:#x}+{size:#x}" for gpa, size in ranges)
            logger.error(
                "%s: witness: %d pages were written and not marked in the migration log: GPA %s."
                " They are marked now: the guest is safe. Please report this bug of vhostfast",
                self._name,
                count,
                where,
            )

    def close(self) -> None:
        """Let go of the maps; what has not been judged never will be."""
        if self._record is not None:
            self._record.close()
        self._record = self.log = None
        self._next = (None, None, frozenset())


class Record:
    """The kernel's record of writes through our maps of `memory`, in pages of the log.

    `precision` is the largest page of the maps, bytes. Raises EnvironmentLacks.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.precision = max((page for *_, page in memory.maps), default=1 << LOG_PAGE_SHIFT)
        self._witness = Witness(_whole_pages(memory))

    def take(self) -> tuple[Pages, Pages]:
        """The first and the last page of the log over each page of a map that was written since
        this was made or last asked."""
        starts, ends = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        written = self._witness.written()
        for gpa, size, host, page in self.memory.maps:
            for address, length in written:
                if address >= host + size or address + length <= host:
                    continue
                offsets = np.arange(address, address + length, page, dtype=np.int64) - host
                starts.append(gpa + np.maximum(offsets, 0))
                ends.append(gpa + np.minimum(offsets + page, size) - 1)
        return np.concatenate(starts) >> LOG_PAGE_SHIFT, np.concatenate(ends) >> LOG_PAGE_SHIFT

    def close(self) -> None:
        self._witness.close()


def _whole_pages(memory: GuestMemory) -> list[tuple[int, int]]:
    """(address, bytes) of the maps behind the regions, which may begin and end amid a page."""
    spans = []
    for _, size, host, page in memory.maps:
        start = host // page * page
        spans.append((start, -(-(host + size) // page) * page - start))
    return spans


def unmarked(marked: NDArray[np.uint8], first: Pages, last: Pages) -> NDArray[np.bool_]:
    """Which of the spans of pages [first, last] have no bit at all in a log's bytes `marked`."""
    bits = np.unpackbits(marked, bitorder="little")
    below = np.concatenate(([0], np.cumsum(bits, dtype=np.int64)))  # marks below each page
    none: NDArray[np.bool_] = below[last + 1] == below[first]
    return none


def joined(first: Pages, last: Pages) -> list[tuple[int, int]]:
    """Spans of pages that touch as one (gpa, bytes), in order."""
    ranges: list[tuple[int, int]] = []
    for low, high in sorted(zip(first.tolist(), last.tolist(), strict=True)):
        start, end = low << LOG_PAGE_SHIFT, (high + 1) << LOG_PAGE_SHIFT
        if ranges and start <= sum(ranges[-1]):
            start = ranges.pop()[0]
        ranges.append((start, end - start))
    return ranges
