"""Messages of vhost-user: bytes to checked values and back. No socket, no state of its own.

    offset 0   request u32     SPEC, below, is the only list of them
           4   flags u32       bits 0-1 version, 1; bit 2 REPLY; bit 3 NEED_REPLY
           8   size u32        bytes of payload that follow
          12   payload         native endianness

`decode` checks every column of the request's row before anyone sees the message, and each payload
checks itself when it is made: one that exists is valid. What either refuses is a ProtocolError;
any other exception is a bug. The front-end's side uses `encode` and `decode_reply`.

To add a request: a row in SPEC, a payload class if none fits, an entry in session.py's tables.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag
from itertools import pairwise
from struct import Struct
from types import MappingProxyType
from typing import ClassVar, Protocol, Self

from vhostfast.errors import ProtocolError
from vhostfast.protocol.features import Offer, ProtocolFeature, VirtioFeature

HEADER = Struct("=III")
HEADER_SIZE = HEADER.size
PAYLOAD_MAX = 4096  # the largest defined today has 268 bytes; unknown requests may have more
FDS_MAX = 8  # a message, vhost-user "Communication"
REGIONS_MAX = 8  # of one message: it brings a fd for each
VRING_SIZE_MAX = 32768
LOG_PAGE = 4096  # guest memory for each bit of the migration log, whatever the host's page
LOG_BYTE_SPAN = 8 * LOG_PAGE
LOG_SIZE_MAX = 1 << 33  # bytes: of a guest with addresses of 48 bits, ten times what is built


class Flag(IntFlag):
    """The header's flags."""

    VERSION = 1
    VERSION_MASK = 3
    REPLY = 4
    NEED_REPLY = 8


class Request(IntEnum):
    """Requests of a front-end that we know. Any other number is unknown, and refused."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


def require(holds: bool, field: str, value: object, limit: str) -> None:
    """Raise ProtocolError unless `holds`; `blame` adds the request's name."""
    if not holds:
        raise ProtocolError("payload", field, value, limit)


@contextmanager
def blame(request: int) -> Iterator[None]:
    """Name the request in every ProtocolError that leaves the block."""
    try:
        yield
    except ProtocolError as error:
        error.request = Request(request).name if request in SPEC else f"request {request}"
        raise


# --- Payloads: vhost-user "Message payload" -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Payload:
    """A payload; its fields, in order, are those of LAYOUT unless a class says otherwise."""

    LAYOUT: ClassVar[Struct] = Struct("")

    @classmethod
    def sizes(cls) -> tuple[int, int]:
        """The fewest and the most bytes on the wire."""
        return cls.LAYOUT.size, cls.LAYOUT.size

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From the wire, `data` being of a legal size. Raises ProtocolError."""
        return cls(*cls.LAYOUT.unpack(data))

    def pack(self) -> bytes:
        return self.LAYOUT.pack(*(getattr(self, field.name) for field in fields(self)))

    def fd_count(self) -> int | None:
        """How many fds this payload announces; None: as many as its request's row says."""
        return None


@dataclass(frozen=True, slots=True)
class Empty(Payload):
    """No payload."""


EMPTY = Empty()


@dataclass(frozen=True, slots=True)
class U64(Payload):
    """A number: a set of feature bits, a count, a device status, or an acknowledgement."""

    value: int

    LAYOUT = Struct("=Q")


@dataclass(frozen=True, slots=True)
class LogFile(Payload):
    """Nothing, or eight bytes that say nothing: front-ends differ."""

    @classmethod
    def sizes(cls) -> tuple[int, int]:
        return 0, U64.LAYOUT.size

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        require(len(data) in cls.sizes(), "size", len(data), "0 or 8")
        return cls()


@dataclass(frozen=True, slots=True)
class Mtu(U64):
    """The largest packet without its header, in bytes: 68 to 65535 (virtio 1.3, 5.1.4.1)."""

    def __post_init__(self) -> None:
        require(68 <= self.value <= 65535, "mtu", self.value, "68 to 65535")


@dataclass(frozen=True, slots=True)
class Mac(Payload):
    """A guest's MAC, not multicast, not zero, in wire order; two bytes of padding are ignored."""

    address: bytes

    LAYOUT = Struct("=6s2x")

    def __post_init__(self) -> None:
        alone = any(self.address) and not self.address[0] & 1
        require(alone, "mac", self.address.hex(":"), "one station's address")


@dataclass(frozen=True, slots=True)
class OfVring(Payload):
    """A payload that names a vring; `decode` bounds `index` by the port's queues."""

    index: int


@dataclass(frozen=True, slots=True)
class VringState(OfVring):
    """A vring and its base. In the request of GET_VRING_BASE the base is junk with some."""

    num: int

    LAYOUT = Struct("=II")


@dataclass(frozen=True, slots=True)
class VringSize(VringState):
    """A vring and its entries: a power of two, 1 to 32768 (virtio 1.3, 2.7)."""

    def __post_init__(self) -> None:
        good = 1 <= self.num <= VRING_SIZE_MAX and self.num & (self.num - 1) == 0
        require(good, "size", self.num, f"a power of two, 1 to {VRING_SIZE_MAX}")


@dataclass(frozen=True, slots=True)
class VringBase(VringState):
    """A vring and the avail index to resume at: 0 to 65535, for it runs free modulo 65536."""

    def __post_init__(self) -> None:
        require(self.num <= 0xFFFF, "base", self.num, "0 to 65535")


@dataclass(frozen=True, slots=True)
class VringEnable(VringState):
    """A vring and 0 or 1."""

    def __post_init__(self) -> None:
        require(self.num <= 1, "enable", self.num, "0 or 1")


@dataclass(frozen=True, slots=True)
class VringAddr(OfVring):
    """UVAs of the three areas: `desc` a multiple of 16, `used` of 4, `avail` of 2.

    `flags` is 0, or 1 (F_LOG): writes to the used ring are logged, as if it began at GPA `log`.
    """

    flags: int
    desc: int
    used: int
    avail: int
    log: int

    LAYOUT = Struct("=IIQQQQ")
    F_LOG: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require(self.flags & ~self.F_LOG == 0, "flags", hex(self.flags), "0 or 1")
        require(self.desc % 16 == 0, "desc", hex(self.desc), "a multiple of 16")
        require(self.used % 4 == 0, "used", hex(self.used), "a multiple of 4")
        require(self.avail % 2 == 0, "avail", hex(self.avail), "a multiple of 2")


@dataclass(frozen=True, slots=True)
class VringFile(OfVring):
    """A vring and whether an fd comes. On the wire: bits 0-7 index, bit 8 no fd, the rest 0."""

    has_fd: bool

    LAYOUT = Struct("=Q")
    NOFD: ClassVar[int] = 1 << 8

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        (value,) = cls.LAYOUT.unpack(data)
        require(value < 2 * cls.NOFD, "index and NOFD", hex(value), "0 in bits 9 to 63")
        return cls(value % cls.NOFD, not value & cls.NOFD)

    def pack(self) -> bytes:
        return self.LAYOUT.pack(self.index | (0 if self.has_fd else self.NOFD))

    def fd_count(self) -> int:
        return int(self.has_fd)


@dataclass(frozen=True, slots=True)
class Region(Payload):
    """`size` bytes of guest memory: at `gpa` for the guest, `uva` for the front-end, `mmap_offset`
    in the file that comes with it."""

    gpa: int
    size: int
    uva: int
    mmap_offset: int

    LAYOUT = Struct("=QQQQ")

    def __post_init__(self) -> None:
        require(self.size > 0, "region's size", self.size, "over 0")
        _require_span("region's gpa", self.gpa, self.size, 64)
        _require_span("region's uva", self.uva, self.size, 64)
        _require_span("region's mmap_offset", self.mmap_offset, self.size, 63)

    def holds(self, uva: int, size: int) -> bool:
        """Whether all of `size` bytes at the front-end's `uva` lie in this region."""
        return self.uva <= uva and uva + size <= self.uva + self.size


@dataclass(frozen=True, slots=True)
class MemoryTable(Payload):
    """1 to 8 regions, an fd each in the same order. None empty, none past the end of 64 bits (of
    its file: 63), no two at one GPA. Two may have one UVA: guests do alias memory.
    """

    regions: tuple[Region, ...]

    LAYOUT = Struct("=I4x")

    def __post_init__(self) -> None:
        require(
            1 <= len(self.regions) <= REGIONS_MAX,
            "number of regions",
            len(self.regions),
            f"1 to {REGIONS_MAX} (is the guest's memory shared?)",
        )
        require_disjoint(self.regions)

    @classmethod
    def sizes(cls) -> tuple[int, int]:
        return cls.LAYOUT.size, cls.LAYOUT.size + REGIONS_MAX * Region.LAYOUT.size

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        (count,) = cls.LAYOUT.unpack_from(data)
        body = data[cls.LAYOUT.size :]
        size = count * Region.LAYOUT.size
        require(len(body) == size, "bytes of regions", len(body), f"{size} for {count} regions")
        return cls(tuple(Region(*numbers) for numbers in Region.LAYOUT.iter_unpack(body)))

    def pack(self) -> bytes:
        return self.LAYOUT.pack(len(self.regions)) + b"".join(r.pack() for r in self.regions)

    def fd_count(self) -> int:
        return len(self.regions)


@dataclass(frozen=True, slots=True)
class OneRegion(Payload):
    """A region by itself, with its fd. As in a table, eight bytes of padding are ignored: nothing
    says what front-ends leave there."""

    region: Region

    LAYOUT = Struct("=8x4Q")

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(Region(*cls.LAYOUT.unpack(data)))

    def pack(self) -> bytes:
        return bytes(8) + self.region.pack()


@dataclass(frozen=True, slots=True)
class RegionKey(Payload):
    """What tells one region from the others. Where it lies in its file is ignored, for QEMU says 0;
    and whatever was not added has gone already, so no number here is wrong."""

    gpa: int
    size: int
    uva: int

    LAYOUT = Struct("=8x3Q8x")

    @classmethod
    def of(cls, region: Region) -> Self:
        return cls(region.gpa, region.size, region.uva)


@dataclass(frozen=True, slots=True)
class LogBase(Payload):
    """Where in its file the migration log lies: not empty, at a multiple of 4096."""

    mmap_size: int
    mmap_offset: int

    LAYOUT = Struct("=QQ")

    def __post_init__(self) -> None:
        require(self.mmap_size > 0, "log's size", self.mmap_size, "over 0")
        require(
            self.mmap_offset % LOG_PAGE == 0, "log's offset", self.mmap_offset, "a whole page's"
        )
        _require_span("log's offset", self.mmap_offset, self.mmap_size, 63)
        small = self.mmap_size <= LOG_SIZE_MAX
        require(small, "log's size", hex(self.mmap_size), f"at most {LOG_SIZE_MAX:#x}")


def require_disjoint(regions: Iterable[Region]) -> None:
    """No two at one GPA. Two may have one UVA: guests do alias memory."""
    for low, high in pairwise(sorted(regions, key=lambda region: region.gpa)):
        end = low.gpa + low.size
        require(end <= high.gpa, "region's gpa", hex(high.gpa), f"{end:#x} or more: no overlap")


def _require_span(field: str, start: int, size: int, bits: int) -> None:
    """A span ends within `bits` bits: compared without a sum, so it reads the same in C."""
    require(start <= (1 << bits) - size, field, hex(start), f"at most 2^{bits} - {size:#x}")


# --- The table ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spec:
    """A request's row. Its fds are (fewest, most); a payload may say the exact number.

    `needs`: a VirtioFeature that we offer (these come before SET_FEATURES), or a ProtocolFeature
    that the front-end has accepted. `reply`: the body of its own reply, sent always; None: an
    acknowledgement, only where REPLY_ACK is accepted and NEED_REPLY set.
    """

    payload: type[Payload] = Empty
    fds: tuple[int, int] = (0, 0)
    needs: VirtioFeature | ProtocolFeature | None = None
    reply: type[Payload] | None = None


_WITH_PROTOCOL = VirtioFeature.PROTOCOL_FEATURES
_SLOTS = ProtocolFeature.CONFIGURE_MEM_SLOTS

SPEC: Mapping[Request, Spec] = MappingProxyType(
    {
        Request.GET_FEATURES: Spec(reply=U64),
        Request.SET_FEATURES: Spec(U64),
        Request.SET_OWNER: Spec(),
        Request.RESET_OWNER: Spec(),
        Request.SET_MEM_TABLE: Spec(MemoryTable, fds=(1, REGIONS_MAX)),
        Request.SET_LOG_BASE: Spec(LogBase, (1, 1), ProtocolFeature.LOG_SHMFD, reply=LogBase),
        Request.SET_LOG_FD: Spec(LogFile, (1, 1), ProtocolFeature.LOG_SHMFD),
        Request.SET_VRING_NUM: Spec(VringSize),
        Request.SET_VRING_ADDR: Spec(VringAddr),
        Request.SET_VRING_BASE: Spec(VringBase),
        Request.GET_VRING_BASE: Spec(VringState, reply=VringState),
        Request.SET_VRING_KICK: Spec(VringFile, fds=(0, 1)),
        Request.SET_VRING_CALL: Spec(VringFile, fds=(0, 1)),
        Request.SET_VRING_ERR: Spec(VringFile, fds=(0, 1)),
        Request.GET_PROTOCOL_FEATURES: Spec(needs=_WITH_PROTOCOL, reply=U64),
        Request.SET_PROTOCOL_FEATURES: Spec(U64, needs=_WITH_PROTOCOL),
        Request.GET_QUEUE_NUM: Spec(needs=ProtocolFeature.MQ, reply=U64),
        Request.SET_VRING_ENABLE: Spec(VringEnable, needs=_WITH_PROTOCOL),
        Request.SEND_RARP: Spec(Mac, needs=ProtocolFeature.RARP),
        Request.NET_SET_MTU: Spec(Mtu, needs=ProtocolFeature.NET_MTU),
        Request.RESET_DEVICE: Spec(needs=ProtocolFeature.RESET_DEVICE),
        Request.GET_MAX_MEM_SLOTS: Spec(needs=_SLOTS, reply=U64),
        Request.ADD_MEM_REG: Spec(OneRegion, (1, 1), _SLOTS),
        Request.REM_MEM_REG: Spec(RegionKey, (0, 1), _SLOTS),
        Request.SET_STATUS: Spec(U64, needs=ProtocolFeature.STATUS),
        Request.GET_STATUS: Spec(needs=ProtocolFeature.STATUS, reply=U64),
    }
)


# --- Decoding and encoding ------------------------------------------------------------------------


class Negotiated(Protocol):
    """What `decode` needs to know of a session."""

    @property
    def offer(self) -> Offer: ...
    @property
    def protocol_features(self) -> ProtocolFeature: ...


@dataclass(frozen=True, slots=True)
class Header:
    """A header whose version and size are good; the request may be unknown."""

    request: int
    flags: int
    size: int


@dataclass(frozen=True, slots=True)
class Message:
    """A request that is legal by its row. Its fds belong to whoever holds the message."""

    request: Request
    payload: Payload
    fds: tuple[int, ...]
    need_reply: bool

    @property
    def vrings(self) -> tuple[int, ...] | None:
        """The vrings of whose records it can change anything: one, or of memory none; None: any."""
        if isinstance(self.payload, OfVring):
            return (self.payload.index,)
        return () if isinstance(self.payload, MemoryTable | OneRegion | RegionKey) else None


def parse_header(data: bytes) -> Header:
    """Of 12 bytes, before the payload is read. Raises ProtocolError."""
    require(len(data) == HEADER_SIZE, "bytes of header", len(data), str(HEADER_SIZE))
    header = Header(*HEADER.unpack(data))
    with blame(header.request):
        version = header.flags & Flag.VERSION_MASK
        require(version == Flag.VERSION, "version", version, str(int(Flag.VERSION)))
        require(header.flags < 2 * Flag.NEED_REPLY, "flags", hex(header.flags), "0 in bits 4 to 31")
        require(header.size <= PAYLOAD_MAX, "size", header.size, f"at most {PAYLOAD_MAX}")
    return header


def decode(header: bytes, payload: bytes, fds: Sequence[int], state: Negotiated) -> Message:
    """A request of a front-end, checked by its row of SPEC.

    Raises ProtocolError and nothing else; the fds then stay the caller's to close.
    """
    head = parse_header(header)
    with blame(head.request):
        require(not head.flags & Flag.REPLY, "REPLY flag", 1, "0 in a request")
        require(head.request in SPEC, "request", head.request, "one that we know")
        spec = SPEC[Request(head.request)]
        _require_feature(spec, state)
        _require_size(spec.payload, head, payload)
        body = spec.payload.unpack(payload)
        _require_fds(spec, body, len(fds))
        if isinstance(body, OfVring):
            count = 2 * state.offer.queue_pairs
            require(body.index < count, "vring index", body.index, f"under {count}")
    return Message(Request(head.request), body, tuple(fds), bool(head.flags & Flag.NEED_REPLY))


def decode_reply(request: Request, header: bytes, payload: bytes) -> Payload:
    """A back-end's answer to `request`: its own reply, or the U64 of an acknowledgement.

    Raises ProtocolError, also for flags other than exactly version 1 and REPLY: QEMU and DPDK
    compare for equality.
    """
    head = parse_header(header)
    expected = SPEC[request].reply or U64
    with blame(request):
        flags = Flag.VERSION | Flag.REPLY
        require(head.request == request, "answered request", head.request, str(int(request)))
        require(head.flags == flags, "reply's flags", hex(head.flags), hex(flags))
        _require_size(expected, head, payload)
        return expected.unpack(payload)


def encode(
    request: int, payload: Payload = EMPTY, *, reply: bool = False, need_reply: bool = False
) -> bytes:
    """Header and payload. A reply's flags never repeat the request's NEED_REPLY."""
    body = payload.pack()
    flags = Flag.VERSION | Flag.REPLY * reply | Flag.NEED_REPLY * need_reply
    return HEADER.pack(request, flags, len(body)) + body


def _require_feature(spec: Spec, state: Negotiated) -> None:
    if isinstance(spec.needs, VirtioFeature):
        require(spec.needs in state.offer.features, spec.needs.name or "", "not offered", "offered")
    elif isinstance(spec.needs, ProtocolFeature):
        agreed = spec.needs in state.protocol_features
        require(agreed, spec.needs.name or "", "not negotiated", "negotiated")


def _require_size(expected: type[Payload], head: Header, payload: bytes) -> None:
    low, high = expected.sizes()
    limit = str(low) if low == high else f"{low} to {high}"
    require(low <= head.size <= high, "size", head.size, limit)
    require(len(payload) == head.size, "bytes of payload", len(payload), str(head.size))


def _require_fds(spec: Spec, payload: Payload, count: int) -> None:
    low, high = spec.fds
    announced = payload.fd_count()
    if announced is not None:
        low = high = announced
    limit = str(low) if low == high else f"{low} to {high}"
    require(low <= count <= high, "number of fds", count, limit)
