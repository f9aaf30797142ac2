"""A front-end: it owns the socket and the vrings, and says what its sequence tells it to say."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from socket import socket as Socket
from typing import Self

from vhostfast.driver import wire
from vhostfast.driver.memory import GuestMemory
from vhostfast.driver.sequence import SEQUENCES
from vhostfast.driver.vring import Vring
from vhostfast.errors import UsageError
from vhostfast.protocol.features import ProtocolFeature, VirtioFeature
from vhostfast.protocol.message import (
    EMPTY,
    REGIONS_MAX,
    SPEC,
    U64,
    OneRegion,
    Payload,
    Region,
    RegionKey,
    Request,
    VringAddr,
    VringBase,
    VringEnable,
    VringFile,
    VringSize,
    VringState,
)

# What our guest's driver can do. A front-end takes of it what is offered.
FEATURES = (
    VirtioFeature.MRG_RXBUF
    | VirtioFeature.CTRL_VQ
    | VirtioFeature.MQ
    | VirtioFeature.ANY_LAYOUT
    | VirtioFeature.INDIRECT_DESC
    | VirtioFeature.EVENT_IDX
    | VirtioFeature.PROTOCOL_FEATURES
    | VirtioFeature.VERSION_1
)
PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.RARP
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.NET_MTU
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)


class Frontend:
    """The front-end of a guest with `memory`, connected and negotiated when it is made.

    `socket` is a path or a connected socket; with `server` we listen at the path. `sequence` is
    "qemu" or "virtio-user": whose order of messages to follow. Of `features` and
    `protocol_features` it takes what the back-end offers. `start` sets the rings going, `stop`
    stops them; ring 2k receives, 2k+1 transmits (pair k).

    Raises EnvironmentLacks if nobody is there, UsageError for more queues or regions of memory than
    the back-end has room for; any request can raise Disconnected, TimeoutError and ProtocolError.
    """

    def __init__(
        self,
        socket: str | Path | Socket,
        memory: GuestMemory,
        *,
        queue_pairs: int = 1,
        ring_size: int = 256,
        features: VirtioFeature = FEATURES,
        protocol_features: ProtocolFeature = PROTOCOL_FEATURES,
        sequence: str = "qemu",
        server: bool = False,
        timeout_s: float = 10.0,
    ) -> None:
        if sequence not in SEQUENCES:
            raise UsageError(f"sequence={sequence}: give one of {', '.join(SEQUENCES)}")
        self.wire = wire.Wire(_reach(socket, server, timeout_s), timeout_s)
        self.memory = memory
        self.queue_pairs = queue_pairs
        self.enabled_pairs = queue_pairs
        self.ring_size = ring_size
        self.features = features if queue_pairs > 1 else features & ~VirtioFeature.MQ
        self.protocol_features = protocol_features
        self.rings: list[Vring] = []
        self._sequence = SEQUENCES[sequence]()
        self._timeout_s = timeout_s
        self._told: Mapping[Region, int] = {}  # regions, where they are told one by one
        self._stack = ExitStack()
        self._stack.callback(lambda: self.wire.close())
        try:
            self._sequence.connect(self)
        except BaseException:
            self.close()
            raise
        self._memory_position = memory.position

    # --- Life -------------------------------------------------------------------------------------

    def start(self, base: int = 0) -> None:
        """Start all rings, fresh, at the free-running index `base`.

        Guest memory that was taken since the rings were made is given back.
        """
        self.reset(base)
        self.resume()

    def reset(self, base: int = 0) -> None:
        """Make all rings fresh, while the back-end leaves them alone; `resume` starts them."""
        self.memory.position = self._memory_position
        for vring in self.rings:
            vring.ring.reset(base)
            vring.base = base

    def resume(self) -> None:
        """Start all rings as they are, where they stopped: as after a pause of the guest."""
        self._sequence.start(self)
        self.fence()

    def reconnect(self, socket: str | Path | Socket, *, server: bool = False) -> None:
        """Once the back-end has gone: connect to it, or to its successor, and start all rings as
        they are. Each base is where used.idx stands, which is what QEMU sends: nothing else tells
        what was in flight. Raises as `Frontend`."""
        self.wire.close()
        self.wire = wire.Wire(_reach(socket, server, self._timeout_s), self._timeout_s)
        self.features &= ~VirtioFeature.LOG_ALL
        self._told = {}
        self._sequence.connect(self)
        for vring in self.rings:
            vring.base = int(vring.ring.used["idx"])
        self.resume()

    def stop(self) -> list[int]:
        """Stop all rings; the base of each (vhost-user GET_VRING_BASE)."""
        self._sequence.stop(self)
        return [vring.base for vring in self.rings]

    def close(self) -> None:
        """Close socket and eventfds, without a word. May be called twice."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- What was agreed --------------------------------------------------------------------------

    @property
    def header_size(self) -> int:
        """Bytes of the header before each packet (virtio 1.3, 5.1.6)."""
        modern = VirtioFeature.MRG_RXBUF | VirtioFeature.VERSION_1
        return 12 if self.features & modern else 10

    def receive_ring(self, pair: int = 0) -> Vring:
        """The ring by which the guest receives."""
        return self.rings[2 * pair]

    def transmit_ring(self, pair: int = 0) -> Vring:
        """The ring by which the guest sends."""
        return self.rings[2 * pair + 1]

    # --- Requests ---------------------------------------------------------------------------------

    def request(
        self,
        request: Request,
        payload: Payload = EMPTY,
        fds: Sequence[int] = (),
        *,
        ack: bool = False,
    ) -> Payload | None:
        """Send a request. Its own reply, if it has one; with `ack` wait until it is acknowledged,
        where REPLY_ACK is agreed."""
        own = SPEC[request].reply is not None
        ack = ack and not own and ProtocolFeature.REPLY_ACK in self.protocol_features
        self.wire.send(request, payload, fds, need_reply=ack)
        if own:
            return self.wire.receive(request)
        if ack:
            self.wire.acknowledged(request)
        return None

    def ask(self, request: Request) -> int:
        """A request that is answered by a number."""
        reply = self.request(request)
        assert isinstance(reply, U64)
        return reply.value

    def fence(self) -> None:
        """Wait until the back-end has done everything asked so far."""
        self.ask(Request.GET_FEATURES)

    def enable(self, pair: int, on: bool = True) -> None:
        """SET_VRING_ENABLE for both rings of a pair, acknowledged."""
        for index in (2 * pair, 2 * pair + 1):
            self.request(Request.SET_VRING_ENABLE, VringEnable(index, int(on)), ack=True)

    def tell_memory(self) -> None:
        """What `memory` is now: SET_MEM_TABLE, or, where CONFIGURE_MEM_SLOTS is agreed, what has
        changed since it was told last: ADD_MEM_REG and REM_MEM_REG, a message a region."""
        if ProtocolFeature.CONFIGURE_MEM_SLOTS not in self.protocol_features:
            self.request(Request.SET_MEM_TABLE, self.memory.table, self.memory.fds, ack=True)
            return
        now = dict(zip(self.memory.regions, self.memory.fds, strict=True))
        for region in self._told.keys() - now.keys():
            self.request(Request.REM_MEM_REG, RegionKey.of(region), ack=True)
        for region in (region for region in now if region not in self._told):
            self.request(Request.ADD_MEM_REG, OneRegion(region), [now[region]], ack=True)
        self._told = now

    def tell_file(self, request: Request, index: int, fd: int) -> None:
        """SET_VRING_KICK, CALL or ERR; -1 tells that there is none."""
        self.request(request, VringFile(index, fd >= 0), [fd] if fd >= 0 else [])

    def tell_ring(self, vring: Vring) -> None:
        """Size, base and addresses of a ring, and while LOG_ALL is agreed that it is logged."""
        self.request(Request.SET_VRING_NUM, VringSize(vring.index, vring.size))
        self.request(Request.SET_VRING_BASE, VringBase(vring.index, vring.base))
        self.request(Request.SET_VRING_ADDR, self.addresses(vring))

    def addresses(self, vring: Vring) -> VringAddr:
        """The payload of SET_VRING_ADDR."""
        return vring.addresses(log=VirtioFeature.LOG_ALL in self.features)

    def stop_ring(self, vring: Vring) -> int:
        """GET_VRING_BASE: once it is answered the ring is left alone. Its base."""
        reply = self.request(Request.GET_VRING_BASE, VringState(vring.index, 0))
        assert isinstance(reply, VringState)
        vring.base = reply.num
        return reply.num

    # --- For sequences ----------------------------------------------------------------------------

    def take_features(self) -> None:
        """GET_FEATURES; of ours, keep what is offered."""
        self.features &= VirtioFeature(self.ask(Request.GET_FEATURES))

    def take_protocol_features(self) -> None:
        """GET_ and SET_PROTOCOL_FEATURES, and whether there are queues enough."""
        if VirtioFeature.PROTOCOL_FEATURES not in self.features:
            self.protocol_features = ProtocolFeature(0)
            return
        self.protocol_features &= ProtocolFeature(self.ask(Request.GET_PROTOCOL_FEATURES))
        self.request(Request.SET_PROTOCOL_FEATURES, U64(self.protocol_features))

    def require_queues(self) -> None:
        """Raises UsageError unless the back-end has as many queue pairs as are wanted."""
        several = ProtocolFeature.MQ in self.protocol_features
        limit = self.ask(Request.GET_QUEUE_NUM) if several else 1
        if self.queue_pairs > limit:
            raise UsageError(f"queue_pairs={self.queue_pairs}: the back-end has {limit}")

    def require_slots(self) -> None:
        """Raises UsageError unless the back-end takes as many regions as the memory has."""
        several = ProtocolFeature.CONFIGURE_MEM_SLOTS in self.protocol_features
        limit = self.ask(Request.GET_MAX_MEM_SLOTS) if several else REGIONS_MAX
        if len(self.memory.regions) > limit:
            why = "" if several else ", for it does not offer CONFIGURE_MEM_SLOTS"
            raise UsageError(
                f"memory of {len(self.memory.regions)} regions: the back-end takes {limit}{why}:"
                " give as many, or fewer"
            )

    def make_rings(self) -> None:
        """The vrings, as the features agreed on want them; those that are there stay."""
        for index in range(len(self.rings), 2 * self.queue_pairs):
            vring = Vring(
                self.memory,
                index,
                self.ring_size,
                VirtioFeature.EVENT_IDX in self.features,
                VirtioFeature.INDIRECT_DESC in self.features,
            )
            self.rings.append(self._stack.enter_context(vring))


def _reach(socket: str | Path | Socket, server: bool, timeout_s: float) -> Socket:
    if isinstance(socket, Socket):
        return socket
    return (wire.accept if server else wire.connect)(socket, timeout_s)
