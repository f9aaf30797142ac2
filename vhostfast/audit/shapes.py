"""The shapes of rings, buffers and logs that an audit goes through, each a row of its report."""

from dataclasses import dataclass

from vhostfast.driver.frontend import FEATURES
from vhostfast.driver.traffic import Load
from vhostfast.protocol.features import ProtocolFeature, VirtioFeature
from vhostfast.protocol.message import LOG_PAGE

MERGEABLE, EVENT_IDX, INDIRECT, VERSION_1 = (
    VirtioFeature.MRG_RXBUF,
    VirtioFeature.EVENT_IDX,
    VirtioFeature.INDIRECT_DESC,
    VirtioFeature.VERSION_1,
)
MIXED = (60, 61, 594, 1514)
NOTHING = VirtioFeature(0)
DIRECT = Load(sizes=MIXED)
CHAINED = Load(sizes=MIXED, layout="chained")
LOGS = ("kept", "replaced", "cancelled", "restarted")


@dataclass(frozen=True, slots=True)
class Shape:
    """A way to use a back-end.

    It is had where all of `needs` is offered; `without` is not taken. `log` says what becomes of
    the log amid the traffic: it is "kept"; "replaced" by a fresh one, again and again, as
    cloud-hypervisor does; the migration is "cancelled" and begun again; or the guest's rings are
    stopped and "restarted". The log lies at `log_offset` of its file.
    """

    name: str
    load: Load = DIRECT
    needs: VirtioFeature = NOTHING
    without: VirtioFeature = NOTHING
    queue_pairs: int = 1
    ring_size: int = 256
    base: int = 0
    log: str = "kept"
    log_offset: int = 0

    @property
    def features(self) -> VirtioFeature:
        """Those to ask for."""
        return FEATURES & ~self.without

    @property
    def apart(self) -> int:
        """Where in its first page each area begins: so that avail_event falls on a page that the
        elements before it hardly touch."""
        return -8 * self.ring_size % LOG_PAGE

    def is_offered(self, features: VirtioFeature, protocol: ProtocolFeature, pairs: int) -> bool:
        """Whether a back-end that offers this can have it."""
        several = self.queue_pairs == 1 or ProtocolFeature.MQ in protocol
        return self.needs in features and several and self.queue_pairs <= pairs


SHAPES = (
    Shape("direct"),
    Shape("chained", CHAINED, base=65500),
    Shape("indirect", Load(sizes=MIXED, layout="indirect"), needs=INDIRECT),
    Shape("small buffers", Load(sizes=(64, 1500), stride=333), needs=MERGEABLE),
    Shape(
        "small buffers, chained",
        Load(sizes=(64, 1500), layout="chained", stride=393),
        needs=MERGEABLE,
        ring_size=1024,
    ),
    Shape("no EVENT_IDX", needs=EVENT_IDX, without=EVENT_IDX),
    Shape("no MRG_RXBUF", CHAINED, without=MERGEABLE),
    Shape("header of 10 bytes", without=MERGEABLE | VERSION_1 | INDIRECT),
    Shape("two queue pairs", needs=VirtioFeature.MQ, queue_pairs=2),
    Shape("ring of 64", ring_size=64, base=65530),
    Shape("ring of 1024", ring_size=1024),
    Shape("log replaced", log="replaced"),
    Shape("cancelled", log="cancelled"),
    Shape("restarted", log="restarted"),
    Shape("log at an offset", log_offset=5 * LOG_PAGE),  # last: DPDK 22.11 dies of it
)
