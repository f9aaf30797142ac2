"""Makes the rings match the session: the one file that knows both the protocol and the memory.

Level-triggered. Handlers only record what the front-end said; after every message `reconcile`
compares the record with the world and acts, so there is no order of messages to get wrong, and a
reconnect is the same code. In fixed order: map what is new, then while the workers rest stop what
should not run, swap, (re)start what should; unmap what is old. Of a message about one vring the
others' records are not looked at again: a start, with messages for each of 256 rings, costs no more
a ring than one of two. Nor is any of one about memory that changes none: QEMU 7.2 says each region
again for each queue pair.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Protocol, TypeVar

from vhostfast.backend.sharable import identity
from vhostfast.backend.watch import Span, Watch
from vhostfast.core.memory import GuestMemory, Log
from vhostfast.core.ring import Ring
from vhostfast.protocol.features import OFFLOADS_RECEIVED, OFFLOADS_SENT, VirtioFeature
from vhostfast.protocol.message import VringAddr
from vhostfast.protocol.session import Session, Vring

logger = logging.getLogger("vhostfast")
T = TypeVar("T")

HEADER_SIZE_LEGACY = 10
HEADER_SIZE = 12
FRAME_OVERHEAD = 18  # Ethernet header and one VLAN tag, over the MTU
FRAME_SIZE_MAX = 65589


class Dataplane(Protocol):
    """Whoever walks the rings: a switch's port with its workers, or a device's own thread."""

    @property
    def name(self) -> str: ...
    def paused(self) -> AbstractContextManager[None]:
        """Nobody walks a ring inside."""

    def attach(self, ring: Ring) -> None:
        """From the end of the pause on this ring is walked."""

    def detach(self, ring: Ring) -> None:
        """No more."""

    def count(self, event: str, amount: int = 1) -> None:
        """So many more of a named event."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a ring can't change without a stop: keywords of Ring.start."""

    size: int
    desc: int
    used: int
    avail: int
    event_idx: bool
    indirect: bool
    mergeable: bool
    header_size: int
    frame_size_max: int
    offloads: int
    kick_fd: int


def shape_of(session: Session, vring: Vring, addr: VringAddr) -> Shape:
    features = session.features
    long_header = features & (VirtioFeature.VERSION_1 | VirtioFeature.MRG_RXBUF)
    has_mtu = session.mtu is not None and VirtioFeature.MTU in features
    return Shape(
        size=vring.size,
        desc=addr.desc,
        used=addr.used,
        avail=addr.avail,
        event_idx=VirtioFeature.EVENT_IDX in features,
        indirect=VirtioFeature.INDIRECT_DESC in features,
        mergeable=VirtioFeature.MRG_RXBUF in features,
        header_size=HEADER_SIZE if long_header else HEADER_SIZE_LEGACY,
        frame_size_max=(session.mtu or 0) + FRAME_OVERHEAD if has_mtu else FRAME_SIZE_MAX,
        offloads=_offloads(features, OFFLOADS_SENT if vring.index % 2 else OFFLOADS_RECEIVED),
        kick_fd=-1 if vring.kick is None else vring.kick,
    )


def _offloads(features: VirtioFeature, bits: Sequence[VirtioFeature]) -> int:
    """Which of `bits` were taken, in the order of csrc's enum offload. Without the first, the
    checksum, the others count for nothing (virtio 1.3, 5.1.3.1): front-ends may ask for them."""
    if bits[0] not in features:
        return 0
    return sum(1 << i for i, bit in enumerate(bits) if bit in features)


class World:
    """The maps and running rings of one connection; with `witness` its migrations are watched."""

    def __init__(self, dataplane: Dataplane, *, witness: bool = False) -> None:
        self.dataplane = dataplane
        self._watch = Watch(dataplane.name, dataplane.count) if witness else None
        self._regions: object = ()  # the session's, as last looked at: each file of 509 takes time
        self._files: dict[int, tuple[int, int]] = {}  # theirs
        self._memory: tuple[object, GuestMemory | None] = ((), None)
        self._log: tuple[object, Log | None] = (None, None)
        self._rings: dict[int, tuple[Shape, Ring]] = {}

    def reconcile(self, session: Session, of: tuple[int, ...] | None = None) -> None:
        """Make it so. Idempotent. `of`: the records of these vrings, and memory, are all that can
        have changed since the last time. Raises ProtocolError for memory that can't be mapped or a
        ring that doesn't lie in it; the connection then has to end."""
        old = self._memory, self._log  # unmapped when we return, not in the pause
        memory = self._map_memory(session)
        log = self._map_log(session)
        same_maps = (memory, log) == (old[0][1], old[1][1])
        vrings, rings = session.vrings, self._rings
        if of is not None and same_maps and self._watch is None:
            vrings, rings = _only(of, vrings), _only(of, rings)
        wanted = {
            number: (shape_of(session, vring, vring.addr), vring)
            for number, vring in vrings.items()
            if vring.addr is not None and session.wants_running(vring)
        }
        if same_maps and _matches(wanted, rings, memory, log):
            return
        if self._watch is not None:
            unlogged = (_unlogged(session, vring) for _, vring in wanted.values())
            self._watch.prepare(memory, log, frozenset(filter(None, unlogged)))
        with self.dataplane.paused(), self._all_or_none():
            for number, (shape, _) in list(rings.items()):
                if number not in wanted or wanted[number][0] != shape:
                    self._stop(vrings.get(number), number)
            if self._watch is not None:
                self._watch.swap()
            for number, (shape, vring) in wanted.items():
                if number in self._rings:
                    self._update(vring, self._rings[number][1], memory, log)
                elif memory is not None:
                    self._start(session, shape, vring, memory, log)

    def close(self) -> None:
        """Stop everything; not a byte is written after it."""
        if self._rings:
            with self.dataplane.paused():
                self._stop_all()
        if self._watch is not None:
            self._watch.close()
        self._memory = ((), None)
        self._log = (None, None)

    # --- Maps -------------------------------------------------------------------------------------

    def _map_memory(self, session: Session) -> GuestMemory | None:
        """The map of the session's regions: the one that we have, if it is of the same files."""
        if session.regions is self._regions:
            return self._memory[1]
        known = self._files  # still open, so an fd that is among them is the same file
        self._files = {
            fd: known.get(fd) or identity(fd, "guest memory") for _, fd in session.regions
        }
        named = tuple((region, self._files[fd]) for region, fd in session.regions)
        if named != self._memory[0]:
            regions = [(r.gpa, r.size, r.uva, r.mmap_offset, fd) for r, fd in session.regions]
            self._memory = (named, GuestMemory(regions) if regions else None)
        self._regions = session.regions
        return self._memory[1]

    def _map_log(self, session: Session) -> Log | None:
        log, event_fd = session.log, -1 if session.log_fd is None else session.log_fd
        new: Log | None = None
        named: object = None
        if log is not None:
            named = (identity(log.fd, "SET_LOG_BASE"), log.size, log.offset, event_fd)
        if named != self._log[0]:
            witness = self._watch is not None
            if log is not None:
                new = Log(log.fd, log.size, log.offset, event_fd=event_fd, witness=witness)
            self._log = (named, new)
            what = f"covers {new.page_count} pages" if new else "is dropped"
            logger.info("%s: the migration log %s", self.dataplane.name, what)
        return self._log[1]

    # --- Rings ------------------------------------------------------------------------------------

    @contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """No ring runs if one can't: with some in the old memory and some in the new, a page that
        vanishes of the one would be nobody's, and end the process."""
        try:
            yield
        except BaseException:
            self._stop_all()
            raise

    def _stop_all(self) -> None:
        for index in list(self._rings):
            self._stop(None, index)

    def _stop(self, vring: Vring | None, index: int) -> None:
        _, ring = self._rings.pop(index)
        self.dataplane.detach(ring)
        base = ring.stop()
        if vring is not None and vring.base is not None:  # after RESET_DEVICE it has yet to be told
            vring.base = base
        logger.info("%s: vring %d stopped at %d", self.dataplane.name, index, base)

    def _update(
        self, vring: Vring, ring: Ring, memory: GuestMemory | None, log: Log | None
    ) -> None:
        if memory is not None and ring.memory is not memory:
            ring.remap(memory)
        call, _, log, used_log = _settings(vring, memory, log)
        ring.set_log(log, used_log)
        if call != ring.call_fd:
            ring.set_call(call)

    def _start(
        self, session: Session, shape: Shape, vring: Vring, memory: GuestMemory, log: Log | None
    ) -> None:
        name = self.dataplane.name
        ring = Ring(vring.index)
        call, _, log, used_log = _settings(vring, memory, log)
        ring.start(memory, **asdict(shape), call_fd=call, log=log, used_log=used_log)
        self.dataplane.attach(ring)
        self._rings[vring.index] = (shape, ring)
        logger.info("%s: vring %d runs, %d entries", name, vring.index, shape.size)
        if ring.base != vring.base:
            told = f"base {vring.base} was given, used.idx is {ring.base}: going on there"
            logger.info("%s: vring %d: %s", name, vring.index, told)


def _only(indices: tuple[int, ...], all_: dict[int, T]) -> dict[int, T]:
    return {index: all_[index] for index in indices if index in all_}


def _matches(
    wanted: dict[int, tuple[Shape, Vring]],
    rings: dict[int, tuple[Shape, Ring]],
    memory: GuestMemory | None,
    log: Log | None,
) -> bool:
    return wanted.keys() == rings.keys() and all(
        shape == rings[index][0] and _settings(vring, memory, log) == _actual(rings[index][1])
        for index, (shape, vring) in wanted.items()
    )


def _settings(
    vring: Vring, memory: GuestMemory | None, log: Log | None
) -> tuple[int, GuestMemory | None, Log | None, int | None]:
    """What a ring may change while it runs: call fd, memory, log, where its used ring is logged."""
    marked = log is not None and vring.addr is not None and vring.addr.flags & VringAddr.F_LOG
    used_log = vring.addr.log if marked and vring.addr is not None else None
    return (-1 if vring.call is None else vring.call, memory, log, used_log)


def _unlogged(session: Session, vring: Vring) -> Span | None:
    """Where the used ring is (gpa, bytes), unless it is marked there."""
    addr = vring.addr
    _, _, (used, size) = vring.areas()
    for region, _ in session.regions:
        if addr is not None and region.holds(used, size):
            gpa = region.gpa + used - region.uva
            return None if addr.flags & VringAddr.F_LOG and addr.log == gpa else (gpa, size)
    return None


def _actual(ring: Ring) -> tuple[int, GuestMemory | None, Log | None, int | None]:
    return (ring.call_fd, ring.memory, ring.log, ring.used_log)
