"""A back-end in plain Python: reads a ring's raw words, in no hurry, and believes all of them."""

import numpy as np

from vhostfast.driver import Vring

NEXT, WRITE, INDIRECT = 1, 2, 4


class PlainBackend:
    """One ring's back-end: pop chains, read or fill them, push them."""

    def __init__(self, vring: Vring) -> None:
        self.vring, self.ring = vring, vring.ring
        self.last_avail = self.used_index = vring.base

    def pop(self) -> tuple[int, list[tuple[int, int, bool]]] | None:
        if int(self.ring.avail["idx"]) == self.last_avail:
            return None
        head = int(self.ring.avail["ring"][self.last_avail % self.ring.size])
        self.last_avail = (self.last_avail + 1) % 65536
        return head, self._walk(self.ring.desc, head)

    def _walk(self, table: np.ndarray, index: int) -> list[tuple[int, int, bool]]:
        chain: list[tuple[int, int, bool]] = []
        while True:
            desc = table[index]
            if desc["flags"] & INDIRECT:
                inner = self.vring.memory.view(int(desc["addr"]), int(desc["len"]))
                return chain + self._walk(inner.view(table.dtype), 0)
            chain.append((int(desc["addr"]), int(desc["len"]), bool(desc["flags"] & WRITE)))
            if not desc["flags"] & NEXT:
                return chain
            index = int(desc["next"])

    def push(self, head: int, length: int) -> None:
        self.ring.used["ring"][self.used_index % self.ring.size] = (head, length)
        self.used_index = (self.used_index + 1) % 65536
        self.ring.used["idx"] = self.used_index

    # --- The buffers of a chain ---

    def read(self, chain: list[tuple[int, int, bool]]) -> bytes:
        """What the chain holds."""
        return b"".join(self.vring.memory.read(gpa, size) for gpa, size, _ in chain)

    def fill(self, chain: list[tuple[int, int, bool]], data: bytes) -> None:
        """Store `data` over the chain's buffers, from the first on."""
        for gpa, size, _ in chain:
            self.vring.memory.write(gpa, data[:size])
            data = data[size:]
