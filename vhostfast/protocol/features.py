"""Every feature bit that can pass through a vhost-user socket, and what we offer of them.

Two flag types that never mix: `VirtioFeature` (GET/SET_FEATURES) and `ProtocolFeature`
(GET/SET_PROTOCOL_FEATURES). docs/protocol.md is made from these lines, comments included.
"""

from dataclasses import dataclass
from enum import IntFlag
from functools import reduce
from operator import or_
from typing import Self

from vhostfast.errors import UsageError

QUEUE_PAIRS_MAX = 128  # a ring index in SET_VRING_KICK has 8 bits
MEMORY_SLOTS_MAX = 509  # csrc/spec.h's REGION_COUNT_MAX
MEMORY_MAX = 1 << 45  # bytes: a quarter of our address space, for old maps go when new ones are


class VirtioFeature(IntFlag):
    """Bits of GET_FEATURES and SET_FEATURES: virtio 1.3, 5.1.3 (net) and 6 (all devices).

    LOG_ALL and PROTOCOL_FEATURES are vhost-user's own, between the two back-ends of a device:
    a guest never sees them.
    """

    CSUM = 1 << 0  # the guest may leave checksums to us (5.1.3)
    GUEST_CSUM = 1 << 1  # the guest takes packets with a partial checksum (5.1.3)
    CTRL_GUEST_OFFLOADS = 1 << 2  # offloads can be switched at run time (5.1.3)
    MTU = 1 << 3  # the device tells its largest MTU (5.1.3)
    MAC = 1 << 5  # the device tells its MAC address (5.1.3)
    GSO = 1 << 6  # legacy (5.1.3.2)
    GUEST_TSO4 = 1 << 7  # the guest takes large TCP packets over IPv4 (5.1.3)
    GUEST_TSO6 = 1 << 8  # the guest takes large TCP packets over IPv6 (5.1.3)
    GUEST_ECN = 1 << 9  # the guest takes large TCP packets with ECN (5.1.3)
    GUEST_UFO = 1 << 10  # the guest takes large UDP datagrams (5.1.3)
    HOST_TSO4 = 1 << 11  # the guest may send large TCP packets over IPv4 (5.1.3)
    HOST_TSO6 = 1 << 12  # the guest may send large TCP packets over IPv6 (5.1.3)
    HOST_ECN = 1 << 13  # the guest may send large TCP packets with ECN (5.1.3)
    HOST_UFO = 1 << 14  # the guest may send large UDP datagrams (5.1.3)
    MRG_RXBUF = 1 << 15  # a packet may span several receive buffers (5.1.3)
    STATUS = 1 << 16  # link status in the configuration space (5.1.3)
    CTRL_VQ = 1 << 17  # a control queue, run by the front-end (5.1.3)
    CTRL_RX = 1 << 18  # receive modes by the control queue (5.1.3)
    CTRL_VLAN = 1 << 19  # VLAN filter by the control queue (5.1.3)
    CTRL_RX_EXTRA = 1 << 20  # more receive modes (5.1.3)
    GUEST_ANNOUNCE = 1 << 21  # the guest announces itself after a migration (5.1.3)
    MQ = 1 << 22  # several queue pairs (5.1.3)
    CTRL_MAC_ADDR = 1 << 23  # MAC address by the control queue (5.1.3)
    NOTIFY_ON_EMPTY = 1 << 24  # legacy (6.3)
    LOG_ALL = 1 << 26  # dirty pages are logged (vhost-user, Migration)
    ANY_LAYOUT = 1 << 27  # no assumption about descriptor boundaries (6.3)
    INDIRECT_DESC = 1 << 28  # tables of descriptors (2.7.5.3)
    EVENT_IDX = 1 << 29  # notifications at an index (2.7.7)
    PROTOCOL_FEATURES = 1 << 30  # requests 15, 16, 18; rings start disabled (vhost-user)
    VERSION_1 = 1 << 32  # little-endian, 12-byte packet header (6.1)
    ACCESS_PLATFORM = 1 << 33  # addresses go through an IOMMU (6)
    RING_PACKED = 1 << 34  # the packed ring (2.8)
    IN_ORDER = 1 << 35  # used in the order made available (2.7.9)
    ORDER_PLATFORM = 1 << 36  # barriers for hardware (6)
    SR_IOV = 1 << 37  # virtual functions (6)
    NOTIFICATION_DATA = 1 << 38  # kicks that carry data (6)
    NOTIF_CONFIG_DATA = 1 << 39  # kicks that carry the device's data (6)
    RING_RESET = 1 << 40  # one ring reset alone (2.6.1); front-ends hide it from us
    ADMIN_VQ = 1 << 41  # administration queue (6)
    SUSPEND = 1 << 43  # virtio 1.4
    DEVICE_STATS = 1 << 50  # 5.1.3
    HASH_TUNNEL = 1 << 51  # 5.1.3
    VQ_NOTF_COAL = 1 << 52  # 5.1.3
    NOTF_COAL = 1 << 53  # 5.1.3
    GUEST_USO4 = 1 << 54  # the guest takes large UDP packets over IPv4 (5.1.3)
    GUEST_USO6 = 1 << 55  # the guest takes large UDP packets over IPv6 (5.1.3)
    HOST_USO = 1 << 56  # the guest may send large UDP packets (5.1.3)
    HASH_REPORT = 1 << 57  # the packet's hash in a 20-byte header (5.1.3)
    GUEST_HDRLEN = 1 << 59  # hdr_len is exact (5.1.3)
    RSS = 1 << 60  # steering by hash (5.1.3)
    RSC_EXT = 1 << 61  # coalesced segments are told (5.1.3)
    STANDBY = 1 << 62  # stands by for another device (5.1.3)
    SPEED_DUPLEX = 1 << 63  # speed in the configuration space (5.1.3)


class ProtocolFeature(IntFlag):
    """Bits of GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES: vhost-user, Protocol features."""

    MQ = 1 << 0  # GET_QUEUE_NUM
    LOG_SHMFD = 1 << 1  # SET_LOG_BASE, SET_LOG_FD: the migration log is a file
    RARP = 1 << 2  # SEND_RARP
    REPLY_ACK = 1 << 3  # any request can ask for an acknowledgement
    NET_MTU = 1 << 4  # NET_SET_MTU
    BACKEND_REQ = 1 << 5  # a second socket, for our requests
    CROSS_ENDIAN = 1 << 6  # legacy devices of the other byte order
    CRYPTO_SESSION = 1 << 7  # crypto devices
    PAGEFAULT = 1 << 8  # postcopy migration
    CONFIG = 1 << 9  # the configuration space is ours
    BACKEND_SEND_FD = 1 << 10  # fds on the second socket
    HOST_NOTIFIER = 1 << 11  # doorbells of hardware
    INFLIGHT_SHMFD = 1 << 12  # what is in flight survives our death
    RESET_DEVICE = 1 << 13  # RESET_DEVICE
    INBAND_NOTIFICATIONS = 1 << 14  # kicks as messages; front-ends agree without doing it
    CONFIGURE_MEM_SLOTS = 1 << 15  # memory regions one by one
    STATUS = 1 << 16  # SET_STATUS, GET_STATUS
    XEN_MMAP = 1 << 17  # Xen's memory; front-ends agree without doing it
    SHARED_OBJECT = 1 << 18  # dma-bufs
    DEVICE_STATE = 1 << 19  # our state goes with a migration
    GET_VRING_BASE_INFLIGHT = 1 << 20  # a ring may stop with work in flight
    GPA_ADDRESSES = 1 << 21  # ring addresses are guest-physical
    SHMEM = 1 << 22  # memory of ours in the guest


# What a guest may leave to us, sending, and what it may be given, receiving: both or none, for each
# is made good in software for who has not taken it.
OFFLOADS_SENT = (
    VirtioFeature.CSUM,
    VirtioFeature.HOST_TSO4,
    VirtioFeature.HOST_TSO6,
    VirtioFeature.HOST_ECN,
)
OFFLOADS_RECEIVED = (
    VirtioFeature.GUEST_CSUM,
    VirtioFeature.GUEST_TSO4,
    VirtioFeature.GUEST_TSO6,
    VirtioFeature.GUEST_ECN,
)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a port offers to every front-end: constant for the port's life.

    A front-end that comes back refuses a back-end that offers less than its guest has accepted.
    `memory_max` is how many bytes of guest memory a front-end may tell of in all, `memory_slots` in
    how many regions one by one. Raises UsageError unless 1 <= `queue_pairs` <= 128.
    """

    features: VirtioFeature
    protocol_features: ProtocolFeature
    queue_pairs: int = QUEUE_PAIRS_MAX
    memory_max: int = MEMORY_MAX
    memory_slots: int = MEMORY_SLOTS_MAX

    def __post_init__(self) -> None:
        if not 1 <= self.queue_pairs <= QUEUE_PAIRS_MAX:
            raise UsageError(f"queues={self.queue_pairs}: give 1 to {QUEUE_PAIRS_MAX}")

    @classmethod
    def net(
        cls,
        queue_pairs: int = QUEUE_PAIRS_MAX,
        *,
        offloads: bool = True,
        memory_max: int = MEMORY_MAX,
        memory_slots: int = MEMORY_SLOTS_MAX,
    ) -> Self:
        """A network device of `queue_pairs` pairs. Offered is only what is whole."""
        virtio, protocol = VirtioFeature, ProtocolFeature
        return cls(
            (reduce(or_, OFFLOADS_SENT + OFFLOADS_RECEIVED) if offloads else virtio(0))
            | virtio.MTU
            | virtio.MRG_RXBUF
            # The front-end runs the control queue, but some give it to the guest only if offered.
            | virtio.CTRL_VQ
            | virtio.CTRL_RX
            | virtio.GUEST_ANNOUNCE
            | virtio.MQ
            | virtio.LOG_ALL
            | virtio.ANY_LAYOUT
            | virtio.INDIRECT_DESC
            | virtio.EVENT_IDX
            | virtio.PROTOCOL_FEATURES
            | virtio.VERSION_1,
            protocol.MQ
            | protocol.LOG_SHMFD
            | protocol.RARP
            | protocol.REPLY_ACK
            | protocol.NET_MTU
            | protocol.RESET_DEVICE
            | protocol.CONFIGURE_MEM_SLOTS
            | protocol.STATUS,
            queue_pairs,
            memory_max,
            memory_slots,
        )
