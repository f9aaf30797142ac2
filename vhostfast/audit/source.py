"""The source of a migration: reads and clears the log, copies pages, and compares in the end.

The guest is ours and writes through a map of ours: those pages the kernel tells (core.witness), as
KVM tells a hypervisor. So what differs in the end was written by the back-end and not marked.
"""

import random
from collections.abc import Iterable
from typing import Self

import numpy as np

from vhostfast.core.witness import Witness
from vhostfast.driver.migration import Migration, Pages
from vhostfast.protocol.message import LOG_PAGE


class Source:
    """Of `migration`, which has begun; the whole of memory is copied when this is made.

    `writable` pages are those that the back-end may write; marks on others go to `causeless`.
    `sabotage` is the share of marks, 0 to 1, that is dropped as it is read.
    """

    def __init__(self, migration: Migration, writable: Pages, *, sabotage: float = 0.0) -> None:
        self.migration = migration
        self.rounds = 0
        self.marks = 0
        self.causeless: set[int] = set()
        self._writable = writable
        self._sabotage = sabotage
        self._dice = random.Random(1)
        self._memory = migration.frontend.memory.pages()
        maps = [(pages.ctypes.data, pages.nbytes) for _, pages in self._memory]
        self._witness = Witness(maps)
        self._copy = [pages.copy() for _, pages in self._memory]

    def marked(self, pages: Pages | None = None) -> Pages:
        """The pages that the back-end says it has written since it was last asked; or those that
        were read from a log already."""
        pages = self.migration.take() if pages is None else pages
        self.marks += len(pages)
        self.causeless.update(np.setdiff1d(pages, self._writable).tolist())
        if self._sabotage:
            kept = [self._dice.random() >= self._sabotage for _ in pages]
            pages = pages[np.array(kept, bool)]
        return pages

    def own(self) -> Pages:
        """The pages that our guest has written since it was last asked."""
        pages: list[int] = []
        for address, size in self._witness.written():
            for first, piece in self._memory:
                start = address - piece.ctypes.data
                if 0 <= start < piece.nbytes:
                    pages += range(first + start // LOG_PAGE, first + (start + size) // LOG_PAGE)
        return np.array(pages, np.int64)

    def round(self, pages: Pages | None = None) -> None:
        """One round of a hypervisor's: what has been written is copied."""
        self.rounds += 1
        self.fetch(np.union1d(self.marked(pages), self.own()))

    def fetch(self, wanted: Iterable[int]) -> None:
        """Copy these pages."""
        pages = np.fromiter(wanted, np.int64)
        for (first, piece), copy in zip(self._memory, self._copy, strict=True):
            index = pages[(pages >= first) & (pages < first + len(piece))] - first
            copy[index] = piece[index]

    def differing(self) -> dict[int, int]:
        """The pages whose copy is not what memory is, and the GPA where each first differs."""
        found = {}
        for (first, piece), copy in zip(self._memory, self._copy, strict=True):
            changed = (piece.view(np.uint64) != copy.view(np.uint64)).any(axis=1)
            for index in np.flatnonzero(changed).tolist():
                at = int(np.argmax(piece[index] != copy[index]))
                found[first + index] = (first + index) * LOG_PAGE + at
        return found

    def close(self) -> None:
        """Give back the witness. May be called twice."""
        self._witness.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
