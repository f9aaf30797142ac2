"""The exact pass: each mark against what must be marked, a few packets at a time.

A used element names a chain: the back-end has stored its first `len` bytes, the element and
used.idx. All these pages must be marked before long, also where the bytes are the same as before,
which no comparison of memory could tell. And whatever else has changed must be marked or our own.
"""

import random
import time
from collections import deque
from collections.abc import Iterator

from vhostfast.audit.places import Places, Span, pages_of, used_spans
from vhostfast.audit.report import CAUSELESS, MISSED, Row
from vhostfast.audit.source import Source
from vhostfast.audit.stage import Stage
from vhostfast.driver.frontend import Frontend
from vhostfast.driver.migration import Migration
from vhostfast.driver.traffic import Pool, mac
from vhostfast.driver.vring import Vring
from vhostfast.protocol.features import VirtioFeature
from vhostfast.protocol.message import LOG_PAGE

BURST_MAX = 32  # packets of a round
TAKEN_S = 5.0  # for all that was sent: DPDK's testpmd may still be at a guest that has left
ARRIVAL_S = 0.5  # from then on, for what comes of it
PATIENCE_S = 1.0  # for marks: they may follow used.idx
SHORT_PATIENCE_S = 0.05  # once it is known that some never come
FAULTS_ENOUGH = 12
APART = 64  # from a header to its frame, where each has a descriptor
WHEN = "exact"


class Buffers:
    """A ring's buffers in the shape of `stage`, offered one by one; `fills` says whether by the
    back-end. `frame` is what all others hold."""

    def __init__(self, stage: Stage, frontend: Frontend, vring: Vring, frame: bytes = b"") -> None:
        load = stage.shape.load
        self.frontend, self.vring = frontend, vring
        self.fills = vring.index % 2 == 0
        self._header_size = frontend.header_size
        self._layout = load.layout
        stride = load.stride if self.fills else max(load.stride, APART + len(frame))
        self.pool = Pool(vring, vring.memory.take(stride * vring.size), stride)
        self.room = stride - self._frame_offset + self._header_size
        count = vring.size >> (load.layout == "chained")
        self._free = deque(self.pool.gpa + number * stride for number in range(count))
        self._offered: dict[int, list[Span]] = {}
        for gpa in self._free:
            vring.memory.write(gpa + self._frame_offset, frame)

    @property
    def _frame_offset(self) -> int:
        return self._header_size if self._layout == "direct" else APART

    def offer(self, size: int) -> None:
        """One more, of `size` bytes, header included."""
        gpa = self._free.popleft()
        chain = [(gpa, size)]
        if self._layout != "direct":
            chain = [(gpa, self._header_size), (gpa + APART, size - self._header_size)]
        pieces = [(at, part, self.fills) for at, part in chain]
        head = self.vring.ring.add(pieces, indirect=self._layout == "indirect")
        self._offered[head] = chain

    def offer_all(self) -> None:
        """All that are free, whole."""
        while self._free:
            self.offer(self.room)

    def back(self) -> list[list[Span]]:
        """Of each chain that has come back, what was stored in it."""
        chains = []
        for head, size in self.vring.ring.take_all():
            chain = self._offered.pop(head)
            self._free.append(chain[0][0])
            chains.append(list(_first(chain, size)))
        return chains


def _first(chain: list[Span], size: int) -> Iterator[Span]:
    for gpa, part in chain:
        if size > 0:
            yield gpa, min(part, size)
        size -= part


class ExactPass:
    """A's migration in `stage` with a Python driver, packet by packet known."""

    def __init__(self, stage: Stage, row: Row, sabotage: float) -> None:
        self._stage, self._row, self._sabotage = stage, row, sabotage
        self._dice = random.Random(stage.shape.name)
        self._frontend = stage.migrated
        self._mergeable = VirtioFeature.MRG_RXBUF in self._frontend.features
        self._receive: list[Buffers] = []
        self._send: list[Buffers] = []
        self._more = 0  # buffers of the packet that comes in
        self._nothing_comes = False
        self._marks: set[int] = set()

    def run(self, packets: int) -> None:
        """Until A has sent `packets`, or enough was found to be wrong."""
        frontend = self._frontend
        for number, one in enumerate(self._stage.frontends):
            one.start(self._stage.shape.base)
            self._make_buffers(one, number)
        own = [one for one in self._receive + self._send if one.frontend is frontend]
        self._places = Places(frontend.rings, [one.pool for one in own], frontend.header_size)
        with Migration(frontend, offset=self._stage.shape.log_offset) as migration:
            migration.begin()
            with Source(
                migration, self._places.writable(), sabotage=self._sabotage
            ) as self._source:
                self._rounds(packets)
                for one in self._stage.frontends:
                    one.stop()
                self._settle(set())
                self._account()

    def _make_buffers(self, frontend: Frontend, number: int) -> None:
        size = max(self._stage.shape.load.sizes)
        to, sender = (1, 1) if self._stage.loops else (2 - number, 1 + number)
        frame = (mac(to) + mac(sender) + b"\x88\xb5" + bytes(range(256)) * 6)[:size]
        for vring in frontend.rings:
            if vring.index % 2:
                self._send.append(Buffers(self._stage, frontend, vring, frame))
            else:
                self._receive.append(Buffers(self._stage, frontend, vring))

    # --- A round ---

    def _rounds(self, packets: int) -> None:
        sent = 0
        while sent < packets and len(self._row.faults) < FAULTS_ENOUGH:
            count = self._dice.randint(1, BURST_MAX)
            before = [vring.ring.used_index for vring in self._frontend.rings]
            stored, whole = self._exchange(count)
            for vring, index in zip(self._frontend.rings, before, strict=True):
                stored += used_spans(vring, index, vring.ring.used_index)
            self._settle({page for gpa, size in stored for page in pages_of(gpa, size)})
            if whole:  # else a mark may have come whose element has yet to
                self._marks.clear()
            if any(one.vring.ring.free_count < one.vring.size for one in self._send):
                self._row.break_("nothing of what a guest sent was taken", WHEN)
                return
            sent += count * self._stage.shape.queue_pairs
            self._row.sent += count * self._stage.shape.queue_pairs

    def _exchange(self, count: int) -> tuple[list[Span], bool]:
        """Everybody sends `count` packets. What was stored in A's buffers, and whether all came."""
        sizes = self._stage.shape.load.sizes
        for one in self._receive:
            one.offer_all()
            one.vring.ring.kick()
        for one in self._send:
            for _ in range(count):
                one.offer(self._frontend.header_size + self._dice.choice(sizes))
            one.vring.ring.kick()
        expected = 0 if self._nothing_comes else count * self._stage.shape.queue_pairs
        stored: list[Span] = []
        arrived = 0
        taken = False
        deadline = time.monotonic() + TAKEN_S
        while time.monotonic() < deadline and not (taken and arrived >= expected):
            for one in self._send + self._receive:
                chains = one.back()
                if one.fills and one.frontend is self._frontend:
                    arrived += self._packets(chains)
                    stored += [span for chain in chains for span in chain]
            if not taken and all(one.vring.ring.free_count == one.vring.size for one in self._send):
                taken = True
                deadline = time.monotonic() + ARRIVAL_S
            time.sleep(0)
        self._row.received += arrived
        self._nothing_comes |= self._row.received == 0
        return stored, arrived == expected

    def _packets(self, chains: list[list[Span]]) -> int:
        """How many packets begin in these chains."""
        count = 0
        for chain in chains:
            if self._more == 0:
                count += 1
                self._more = self._buffers(chain)
            self._more -= 1
        return count

    def _buffers(self, chain: list[Span]) -> int:
        if not self._mergeable or not chain:
            return 1
        return max(1, int.from_bytes(self._frontend.memory.read(chain[0][0] + 10, 2), "little"))

    # --- What it must have marked ---

    def _settle(self, required: set[int]) -> None:
        """Wait until all `required` pages are marked, and all changes explained; else blame."""
        source, own = self._source, set[int]()
        source.rounds += 1
        found = self._row.count(MISSED)
        deadline = time.monotonic() + (SHORT_PATIENCE_S if found else PATIENCE_S)
        while True:
            self._marks.update(source.marked().tolist())
            own.update(source.own().tolist())
            changed = source.differing()
            missing = required - self._marks
            unexplained = changed.keys() - self._marks - own
            if not missing and not unexplained:
                break
            if time.monotonic() > deadline:
                self._blame(missing, {page: changed[page] for page in unexplained})
                break
            time.sleep(0.001)
        source.fetch(changed)

    def _blame(self, missing: set[int], changed: dict[int, int]) -> None:
        for page, gpa in changed.items():
            self._row.blame(MISSED, WHEN, [(gpa, self._places.name(gpa))])
            missing = missing - {page}
        for page in sorted(missing):
            what = f"{self._places.name_page(page)}, written with what it was"
            self._row.blame(MISSED, WHEN, [(page * LOG_PAGE, what)])

    def _account(self) -> None:
        self._row.rounds += self._source.rounds
        self._row.marks += self._source.marks
        for page in sorted(self._source.causeless):
            self._row.blame(CAUSELESS, WHEN, [(page * LOG_PAGE, self._places.name_page(page))])


def exact(stage: Stage, row: Row, packets: int, sabotage: float) -> None:
    """The exact pass in `stage`, some `packets` each way; what was found goes into `row`."""
    ExactPass(stage, row, sabotage).run(packets)
