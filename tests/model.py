"""The back-end's side of a split ring in plain Python: the oracle that the C one is held against.

Written from the specification (virtio 1.3, 2.7) for the reader, one rule a line; nothing is cached
but `seen`, for a back-end may look at avail.idx as seldom as it likes, and when it looks shows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from struct import pack, unpack

NEXT, WRITE, INDIRECT = 1, 2, 4
PAGE = 4096
MASK = 0xFFFF


class Fault(IntEnum):
    """The same numbers as `enum fault`."""

    NONE, AVAIL_INDEX, HEAD, LOOP, ADDRESS, DIRECTION, INDIRECT, LENGTH = range(8)


class Broken(Exception):
    """The guest broke a rule."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.name)
        self.fault = fault


class Memory:
    """Guest memory: disjoint regions {gpa: bytes}."""

    def __init__(self, regions: dict[int, int]) -> None:
        self.regions = {gpa: bytearray(size) for gpa, size in regions.items()}

    def spans(self, gpa: int, size: int) -> Iterator[tuple[int, int]]:
        """[gpa, gpa + size) cut where regions meet, as (gpa, size); even nothing has a place."""
        while True:
            for start, data in self.regions.items():
                if start <= gpa < start + len(data):
                    part = min(size, start + len(data) - gpa)
                    break
            else:
                raise Broken(Fault.ADDRESS)
            yield gpa, part
            gpa, size = gpa + part, size - part
            if size == 0:
                return

    def read(self, gpa: int, size: int) -> bytes:
        return b"".join(self._at(*span) for span in self.spans(gpa, size))

    def write(self, gpa: int, data: bytes) -> None:
        for start, size in list(self.spans(gpa, len(data))):
            self._at(start, size)[:], data = data[:size], data[size:]

    def _at(self, gpa: int, size: int) -> memoryview:
        start = max(start for start in self.regions if start <= gpa)
        return memoryview(self.regions[start])[gpa - start : gpa - start + size]


@dataclass
class Chain:
    head: int
    spans: list[tuple[int, int]] = field(default_factory=list)  # (gpa, size)

    @property
    def size(self) -> int:
        return sum(size for _, size in self.spans)


@dataclass
class SplitRing:
    """`desc`, `avail`, `used` are GPAs; `used_log` is where the log thinks the used ring is."""

    memory: Memory
    size: int
    desc: int
    avail: int
    used: int
    event_idx: bool = False
    indirect: bool = True
    used_log: int | None = None
    marked: set[int] = field(default_factory=set)  # pages whose bits are set
    _gathered: set[int] = field(default_factory=set)  # bits that wait for the bytes to be seen

    def start(self) -> None:
        """Go on behind what the guest was told; ask for no kicks yet."""
        index = self._load(self.used + 2)
        self.last_avail = self.seen = self.used_next = self.used_told = index
        self.used_tested: int | None = None
        self._pushed: list[int] = []  # offsets of elements that wait to be published
        self.kicks_wanted = False
        self._store_used(0, pack("<H", 0))
        self._ask_for_kicks(False)

    # The six verbs.

    def pop(self, device_writes: bool) -> Chain | None:
        if self.seen == self.last_avail:
            self.seen = self._load(self.avail + 2)
        if (self.seen - self.last_avail) & MASK > self.size:
            raise Broken(Fault.AVAIL_INDEX)
        if self.seen == self.last_avail:
            return None
        chain = Chain(self._load(self.avail + 4 + 2 * (self.last_avail % self.size)))
        for gpa, size, flags in self._walk(chain.head):
            if bool(flags & WRITE) != device_writes:
                raise Broken(Fault.DIRECTION)
            chain.spans += self.memory.spans(gpa, size)
        self.last_avail = self.last_avail + 1 & MASK
        return chain

    def rewind(self, count: int) -> None:
        self.last_avail = self.last_avail - count & MASK

    def push(self, head: int, size: int) -> None:
        offset = 4 + 8 * (self.used_next % self.size)
        self.memory.write(self.used + offset, pack("<II", head, size))
        self._pushed.append(offset)
        self.used_next = self.used_next + 1 & MASK

    def publish(self) -> bool:
        if self.used_next == self.used_told:
            return False
        self.flush()
        self._store_used(2, pack("<H", self.used_next))
        self.used_told = self.used_next
        for offset in self._pushed:
            self._mark_used(offset, 8)
        self._pushed.clear()
        return True

    def wants_call(self) -> bool:
        if not self.event_idx:
            return not self._load(self.avail) & 1
        event = self._load(self.avail + 4 + 2 * self.size)
        old, self.used_tested = self.used_tested, self.used_told
        if old is None:
            return True
        steps = (self.used_told - old) & MASK
        return any((old + step) & MASK == event for step in range(steps))

    def want_kicks(self, wanted: bool) -> bool:
        before = self.seen
        if wanted:
            self.seen = self._load(self.avail + 2)
            if self.event_idx or not self.kicks_wanted:
                self._ask_for_kicks(True)
        elif self.kicks_wanted:
            if not self.event_idx:
                self._ask_for_kicks(False)
            self.kicks_wanted = False
        return wanted and self.seen != before

    # What a device does with a chain, and the log.

    def fill(self, chain: Chain, data: bytes) -> None:
        """Write `data` to the start of the chain."""
        for gpa, size in chain.spans:
            part, data = data[:size], data[size:]
            if part:
                self.memory.write(gpa, part)
                self._mark(gpa, len(part))

    def flush(self) -> None:
        self.marked |= self._gathered
        self._gathered.clear()

    def _walk(self, index: int) -> Iterator[tuple[int, int, int]]:
        """The buffers of a chain: (gpa, size, flags); 2.7.5, 2.7.5.3."""
        table, count, read = self.desc, self.size, 0
        nested = False
        while True:
            if index >= count:
                raise Broken(Fault.HEAD)
            gpa, size, flags, after = unpack("<QIHH", self.memory.read(table + 16 * index, 16))
            if flags & INDIRECT:
                lawful = self.indirect and not nested and not flags & NEXT
                if not lawful or size % 16 or not 1 <= size // 16 <= self.size:
                    raise Broken(Fault.INDIRECT)
                list(self.memory.spans(gpa, size))  # all of it is memory
                table, count, index, nested = gpa, size // 16, 0, True
                continue
            yield gpa, size, flags
            read += 1
            if not flags & NEXT:
                return
            if read == self.size:
                raise Broken(Fault.LOOP)
            index = after

    def _ask_for_kicks(self, wanted: bool) -> None:
        self.kicks_wanted = wanted
        if self.event_idx:
            event = self.seen if wanted else self.last_avail - 1 & MASK
            self._store_used(4 + 8 * self.size, pack("<H", event))
        else:
            self._store_used(0, pack("<H", 0 if wanted else 1))

    def _load(self, gpa: int) -> int:
        return int.from_bytes(self.memory.read(gpa, 2), "little")

    def _store_used(self, offset: int, data: bytes) -> None:
        self.memory.write(self.used + offset, data)
        self._mark_used(offset, len(data))

    def _mark_used(self, offset: int, size: int) -> None:
        if self.used_log is not None:
            self.marked |= _pages(self.used_log + offset, size)

    def _mark(self, gpa: int, size: int) -> None:
        self._gathered |= _pages(gpa, size)


def _pages(gpa: int, size: int) -> set[int]:
    return set(range(gpa // PAGE, (gpa + size - 1) // PAGE + 1))
