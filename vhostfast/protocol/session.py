"""What a front-end has told us, as plain data, and what we answer.

`apply` only records. Whether a ring runs is a property of the record (`wants_running`), so the
order of messages doesn't matter and nobody has to remember to set a flag. After each message the
back-end makes the world match the record, and only then sends what `reply` gives: an
acknowledgement means that it is so.

    ring state   event                                        started   enabled
                 SET_VRING_KICK                               true
                 GET_VRING_BASE                               false
                 SET_VRING_ENABLE n                                     n
                 SET_FEATURES without PROTOCOL_FEATURES                 true, all rings
                 RESET_OWNER, RESET_DEVICE                    false     false

An fd here is a number that the session owns: in a field, or, when no longer needed, in
`discarded` for its owner to close once the world has let go of it.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from types import MappingProxyType
from typing import Any

from vhostfast.errors import ProtocolError
from vhostfast.protocol.features import Offer, ProtocolFeature, VirtioFeature
from vhostfast.protocol.message import (
    LOG_BYTE_SPAN,
    SPEC,
    U64,
    Empty,
    Flag,
    LogBase,
    LogFile,
    Mac,
    MemoryTable,
    Message,
    OneRegion,
    Payload,
    Region,
    RegionKey,
    Request,
    VringAddr,
    VringFile,
    VringState,
    blame,
    encode,
    parse_header,
    require,
    require_disjoint,
)

NO_FEATURES = VirtioFeature(0)
NO_PROTOCOL_FEATURES = ProtocolFeature(0)


@dataclass(slots=True)
class Vring:
    """One ring as the front-end describes it.

    `kick` None with `started` means: poll. `call` None: never signal.
    """

    index: int
    enabled: bool = False
    started: bool = False
    size: int = 0  # entries; 0: not told yet
    addr: VringAddr | None = None
    base: int | None = None  # whoever stops the ring writes the index it stopped at
    kick: int | None = None
    call: int | None = None
    err: int | None = None

    def configured(self) -> bool:
        """Whether SET_VRING_NUM, ADDR and BASE have all come, in whatever order."""
        return self.size > 0 and self.addr is not None and self.base is not None

    def areas(self) -> list[tuple[int, int]]:
        """(UVA, bytes) of descriptors, avail ring, used ring: virtio 1.3, 2.7. Empty: not told."""
        if self.addr is None:
            return []
        return [
            (self.addr.desc, 16 * self.size),
            (self.addr.avail, 6 + 2 * self.size),
            (self.addr.used, 6 + 8 * self.size),
        ]

    def logged_end(self) -> int:
        """The GPA at which the used ring ends, if writes to it are marked in the log, else 0."""
        if self.addr is None or not self.addr.flags & VringAddr.F_LOG:
            return 0
        return self.addr.log + 6 + 8 * self.size


@dataclass(frozen=True, slots=True)
class Log:
    """The migration log: `size` bytes at `offset` of a file."""

    fd: int
    size: int
    offset: int


@dataclass(slots=True)
class Session:
    """One connection's record: begins blank, and ends with the connection."""

    offer: Offer
    features: VirtioFeature = NO_FEATURES
    protocol_features: ProtocolFeature = NO_PROTOCOL_FEATURES
    owner: bool = False
    regions: tuple[tuple[Region, int], ...] = ()  # each with the fd of its file
    vrings: dict[int, Vring] = field(default_factory=dict)  # made as they are named
    rings_begin_enabled: bool = False
    log: Log | None = None
    log_fd: int | None = None
    status: int = 0
    mtu: int | None = None
    rarps: list[bytes] = field(default_factory=list)  # MACs to announce; the back-end takes them
    discarded: list[int] = field(default_factory=list)  # fds to close; likewise
    # Of these regions: their UVAs, ascending, and how far those up to each reach.
    _reach: tuple[object, list[int], list[int]] = field(
        default=((), [], []), compare=False, repr=False
    )

    # --- Questions --------------------------------------------------------------------------------

    def wants_running(self, vring: Vring) -> bool:
        """Whether the ring should run: told all, started, enabled, in known memory.

        With LOG_ALL it waits for the log: a front-end that restarts a ring amid a migration sends
        SET_LOG_BASE last, and pages written before it would never be copied.
        """
        return (
            vring.configured()
            and vring.started
            and vring.enabled
            and (self.log is not None or VirtioFeature.LOG_ALL not in self.features)
            and all(self._holds(uva, size) for uva, size in vring.areas())
        )

    def _holds(self, uva: int, size: int) -> bool:
        """Whether one region holds all of it, by bisection: of 256 rings and 509 regions each with
        each would take longer than other ports can wait."""
        if self._reach[0] is not self.regions:
            spans = sorted((region.uva, region.uva + region.size) for region, _ in self.regions)
            ends = list(accumulate((end for _, end in spans), max))
            self._reach = self.regions, [start for start, _ in spans], ends
        _, starts, ends = self._reach
        count = bisect_right(starts, uva)
        return count > 0 and uva + size <= ends[count - 1]

    def fds(self) -> list[int]:
        """Every fd that the session owns, to be closed when the connection has ended."""
        held = [fd for _, fd in self.regions] + [self.log_fd, self.log.fd if self.log else None]
        for vring in self.vrings.values():
            held += [vring.kick, vring.call, vring.err]
        return [fd for fd in held if fd is not None] + self.discarded

    # --- What happens to a message ----------------------------------------------------------------

    def apply(self, message: Message) -> None:
        """Record what the message says, and own its fds.

        Raises ProtocolError if it can't be: then nothing has changed, and the fds stay the
        caller's.
        """
        effect = EFFECTS.get(message.request)
        if effect is not None:
            with blame(message.request):
                effect(self, message.payload, message.fds)

    def reply(self, message: Message) -> bytes | None:
        """What to send once the world matches: the request's own reply, an acknowledgement if
        one was asked for, or nothing."""
        body = REPLIES.get(message.request)
        if body is not None:
            return encode(message.request, body(self, message.payload), reply=True)
        if message.need_reply and ProtocolFeature.REPLY_ACK in self.protocol_features:
            return encode(message.request, U64(0), reply=True)
        return None

    def failure(self, header: bytes) -> bytes | None:
        """What to send when the message with this header was refused; None: close.

        An acknowledgement can say no. Any other refusal can't be told, for the front-end would
        wait for ever or read a later answer as this one's.
        """
        try:
            head = parse_header(header)
        except ProtocolError:
            return None
        own = head.request in SPEC and SPEC[Request(head.request)].reply is not None
        asked = head.flags & (Flag.NEED_REPLY | Flag.REPLY) == Flag.NEED_REPLY
        if own or not asked or ProtocolFeature.REPLY_ACK not in self.protocol_features:
            return None
        return encode(head.request, U64(1), reply=True)

    # --- Effects, in the order of the requests' numbers -------------------------------------------

    def _set_features(self, payload: U64, _: tuple[int, ...]) -> None:
        surplus = payload.value & ~int(self.offer.features)
        require(not surplus, "features", hex(payload.value), f"without {surplus:#x}: not offered")
        changed = (payload.value ^ self.features) & ~int(VirtioFeature.LOG_ALL)
        idle = not any(self.wants_running(vring) for vring in self.vrings.values())
        limit = f"{int(self.features):#x} while rings run, but for LOG_ALL"
        require(idle or not changed, "features", hex(payload.value), limit)
        self.features = VirtioFeature(payload.value)
        if VirtioFeature.LOG_ALL not in self.features:
            self._drop_log()
        self.rings_begin_enabled = VirtioFeature.PROTOCOL_FEATURES not in self.features
        if self.rings_begin_enabled:
            for vring in self.vrings.values():
                vring.enabled = True

    def _set_owner(self, _payload: Empty, _: tuple[int, ...]) -> None:
        self.owner = True

    def _reset_owner(self, _payload: Empty, _: tuple[int, ...]) -> None:
        self.owner = False
        for vring in self.vrings.values():
            vring.started = vring.enabled = False
        self._drop_log()

    def _set_mem_table(self, payload: MemoryTable, fds: tuple[int, ...]) -> None:
        self._require_room(payload.regions)
        self.discarded += [fd for _, fd in self.regions]
        self.regions = tuple(zip(payload.regions, fds, strict=True))

    def _set_log_base(self, payload: LogBase, fds: tuple[int, ...]) -> None:
        log = Log(fds[0], payload.mmap_size, payload.mmap_offset)
        regions = (region for region, _ in self.regions)
        self._require_logged(log, regions, self.vrings.values())
        self._drop_log()
        self.log = log

    def _set_log_fd(self, _payload: LogFile, fds: tuple[int, ...]) -> None:
        self._discard(self.log_fd)
        self.log_fd = fds[0]

    def _set_vring_num(self, payload: VringState, _: tuple[int, ...]) -> None:
        vring = self._vring(payload.index)
        idle = payload.num == vring.size or not self.wants_running(vring)
        require(idle, "size", payload.num, f"{vring.size} while the ring runs")
        self._require_logged(self.log, (), [replace(vring, size=payload.num)])
        vring.size = payload.num

    def _set_vring_addr(self, payload: VringAddr, _: tuple[int, ...]) -> None:
        vring = self._vring(payload.index)
        self._require_logged(self.log, (), [replace(vring, addr=payload)])
        vring.addr = payload

    def _set_vring_base(self, payload: VringState, _: tuple[int, ...]) -> None:
        vring = self._vring(payload.index)
        require(not self.wants_running(vring), "base", payload.num, "left alone on a running ring")
        vring.base = payload.num

    def _get_vring_base(self, payload: VringState, _: tuple[int, ...]) -> None:
        vring = self._vring(payload.index)
        vring.started = False
        # New ones always come before the next start; ERR does not come again.
        self._discard(vring.kick, vring.call)
        vring.kick = vring.call = None
        if not any(vring.started for vring in self.vrings.values()):
            self._drop_log()

    def _set_vring_kick(self, payload: VringFile, fds: tuple[int, ...]) -> None:
        vring = self._vring(payload.index)
        self._discard(vring.kick)
        vring.kick = fds[0] if fds else None
        vring.started = True

    def _set_vring_call(self, payload: VringFile, fds: tuple[int, ...]) -> None:
        vring = self._vring(payload.index)
        self._discard(vring.call)
        vring.call = fds[0] if fds else None

    def _set_vring_err(self, payload: VringFile, fds: tuple[int, ...]) -> None:
        vring = self._vring(payload.index)
        self._discard(vring.err)
        vring.err = fds[0] if fds else None

    def _set_protocol_features(self, payload: U64, _: tuple[int, ...]) -> None:
        surplus = payload.value & ~int(self.offer.protocol_features)
        limit = f"without {surplus:#x}: not offered"
        require(not surplus, "protocol features", hex(payload.value), limit)
        self.protocol_features = ProtocolFeature(payload.value)

    def _set_vring_enable(self, payload: VringState, _: tuple[int, ...]) -> None:
        self._vring(payload.index).enabled = bool(payload.num)

    def _send_rarp(self, payload: Mac, _: tuple[int, ...]) -> None:
        self.rarps.append(payload.address)

    def _net_set_mtu(self, payload: U64, _: tuple[int, ...]) -> None:
        self.mtu = payload.value

    def _reset_device(self, _payload: Empty, _: tuple[int, ...]) -> None:
        """Forget what the driver chose. Memory, protocol features and ERR are not sent again."""
        self.features = NO_FEATURES
        self.rings_begin_enabled = False
        self.status = 0
        for index, vring in self.vrings.items():
            self._discard(vring.kick, vring.call)
            self.vrings[index] = Vring(index, err=vring.err)
        self._drop_log()

    def _add_mem_reg(self, payload: OneRegion, fds: tuple[int, ...]) -> None:
        """QEMU 7.2 says it again for each queue pair: that changes nothing. Whether it is the same
        file too, whoever has the fds has seen."""
        known = tuple(region for region, _ in self.regions)
        if payload.region in known:
            self._discard(*fds)
            return
        told, slots = (*known, payload.region), self.offer.memory_slots
        require(len(told) <= slots, "number of regions", len(told), f"at most {slots}")
        require_disjoint(told)
        self._require_room(told)
        self.regions += ((payload.region, fds[0]),)

    def _rem_mem_reg(self, payload: RegionKey, fds: tuple[int, ...]) -> None:
        self._discard(*fds)  # not needed, but the specification lets one come
        self._discard(*(fd for region, fd in self.regions if RegionKey.of(region) == payload))
        self.regions = tuple(one for one in self.regions if RegionKey.of(one[0]) != payload)

    def _set_status(self, payload: U64, _: tuple[int, ...]) -> None:
        # Only recorded: QEMU 7.2 sends 0 before it stops the last rings.
        self.status = payload.value & 0xFF

    # --- Parts of effects -------------------------------------------------------------------------

    def _vring(self, index: int) -> Vring:
        return self.vrings.setdefault(index, Vring(index, enabled=self.rings_begin_enabled))

    def _discard(self, *fds: int | None) -> None:
        self.discarded += [fd for fd in fds if fd is not None]

    def _drop_log(self) -> None:
        if self.log is not None:
            self._discard(self.log.fd)
            self.log = None

    def _require_room(self, regions: Sequence[Region]) -> None:
        """In the log, and in our address space."""
        self._require_logged(self.log, regions, ())
        size, most = sum(region.size for region in regions), self.offer.memory_max
        limit = f"at most {most:#x}: its port's share of our address space"
        require(size <= most, "bytes of guest memory", hex(size), limit)

    def _require_logged(
        self, log: Log | None, regions: Iterable[Region], vrings: Iterable[Vring]
    ) -> None:
        """Whatever we may mark has its bit in the log: refused here, so that no mark can miss."""
        if log is None:
            return
        ends = [region.gpa + region.size for region in regions]
        ends += [vring.logged_end() for vring in vrings]
        end = max(ends, default=0)
        limit = f"at most {log.size * LOG_BYTE_SPAN:#x} by the log's size"
        require(end <= log.size * LOG_BYTE_SPAN, "end of logged memory", hex(end), limit)


EFFECTS: Mapping[Request, Callable[[Session, Any, tuple[int, ...]], None]] = MappingProxyType(
    {
        Request.SET_FEATURES: Session._set_features,
        Request.SET_OWNER: Session._set_owner,
        Request.RESET_OWNER: Session._reset_owner,
        Request.SET_MEM_TABLE: Session._set_mem_table,
        Request.SET_LOG_BASE: Session._set_log_base,
        Request.SET_LOG_FD: Session._set_log_fd,
        Request.SET_VRING_NUM: Session._set_vring_num,
        Request.SET_VRING_ADDR: Session._set_vring_addr,
        Request.SET_VRING_BASE: Session._set_vring_base,
        Request.GET_VRING_BASE: Session._get_vring_base,
        Request.SET_VRING_KICK: Session._set_vring_kick,
        Request.SET_VRING_CALL: Session._set_vring_call,
        Request.SET_VRING_ERR: Session._set_vring_err,
        Request.SET_PROTOCOL_FEATURES: Session._set_protocol_features,
        Request.SET_VRING_ENABLE: Session._set_vring_enable,
        Request.SEND_RARP: Session._send_rarp,
        Request.NET_SET_MTU: Session._net_set_mtu,
        Request.RESET_DEVICE: Session._reset_device,
        Request.ADD_MEM_REG: Session._add_mem_reg,
        Request.REM_MEM_REG: Session._rem_mem_reg,
        Request.SET_STATUS: Session._set_status,
    }
)

REPLIES: Mapping[Request, Callable[[Session, Any], Payload]] = MappingProxyType(
    {
        Request.GET_FEATURES: lambda session, _: U64(session.offer.features),
        Request.SET_LOG_BASE: lambda _, payload: payload,
        Request.GET_VRING_BASE: lambda session, payload: VringState(
            payload.index, session.vrings[payload.index].base or 0
        ),
        Request.GET_PROTOCOL_FEATURES: lambda session, _: U64(session.offer.protocol_features),
        Request.GET_QUEUE_NUM: lambda session, _: U64(session.offer.queue_pairs),
        Request.GET_MAX_MEM_SLOTS: lambda session, _: U64(session.offer.memory_slots),
        Request.GET_STATUS: lambda session, _: U64(session.status),
    }
)
