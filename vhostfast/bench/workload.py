"""What is asked of every back-end in one run: frames, rings, who sends; and for how long, where."""

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from math import inf
from typing import Any

from vhostfast.core.driver import RING_SIZE_MAX
from vhostfast.core.traffic import LANES_MAX
from vhostfast.driver.traffic import KINDS, LAYOUTS, STRIDE
from vhostfast.errors import UsageError
from vhostfast.protocol.features import MEMORY_SLOTS_MAX
from vhostfast.protocol.message import LOG_PAGE

MODES = ("poll", "interrupt", "adaptive")
PATTERNS = ("both-ways", "one-way", "loop", "send-only", "receive-only")
ALONE = ("loop", "send-only", "receive-only")  # of them: one guest
BUSY = ("all", "2")
FORWARDS = ("patch", "learn")
LOGS = ("off", "on", "both")
FRAME_MIN, FRAME_MAX = 60, 1514  # Ethernet's, without FCS; nothing longer crosses every back-end
# The simple IMIX: 7 of 64, 4 of 594 and 1 of 1518 bytes with FCS; spread out.
IMIX = (60, 590, 60, 60, 590, 60, 1514, 60, 590, 60, 60, 590)
QUEUES_MAX = 16
PORTS_MAX = 256
BUFFER_MIN = 128
IDLE_RING_SIZE = 64  # of a guest that only looks on
HUGEPAGE = 2 << 20
_RING_BYTES = 16 + 2 + 8 + 8 * 16  # of an entry: descriptor, avail, used, its indirect table
_RING_ENDS = 2 * 64  # the other words of its avail and used areas, each to its cache line's end
_SLACK = 64 << 10
HEADER_SIZE = 12  # of virtio-net, before each frame
APART = 64  # from it to the frame, where each has a descriptor


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames of one row, by the name that stands in it: `sizes` in bytes, without FCS, in turn."""

    name: str
    sizes: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Bytes."""
        return sum(self.sizes) / len(self.sizes)


def parse_frames(text: str) -> tuple[Frames, ...]:
    """Read sizes such as 64,512,imix. Raises UsageError for one that doesn't fit."""
    frames = tuple(_frames(word.strip().lower()) for word in text.split(","))
    names = [one.name for one in frames]
    if len(set(names)) < len(names):
        raise UsageError(f"--sizes {text}: a size is given twice")
    return frames


def _frames(word: str) -> Frames:
    if word == "imix":
        return Frames(word, IMIX)
    if not word.isascii() or not word.isdigit():
        raise UsageError(f"--sizes: '{word}' is not a number of bytes, nor imix")
    size = int(word)
    if not FRAME_MIN <= size <= FRAME_MAX:
        raise UsageError(
            f"--sizes: a frame of {size} bytes doesn't fit: give {FRAME_MIN} to {FRAME_MAX}"
        )
    return Frames(str(size), (size,))


@dataclass(frozen=True, slots=True)
class Workload:
    """What the guests do. `load` and `layout` as driver.traffic.Load's; `queues` are pairs a guest.

    `pattern`: two guests that both send ("both-ways"), the first to the second ("one-way"), or one
    that gets back what it sends ("loop") or nothing ("send-only"), or gets frames of the one size
    of `frames` that the back-end sends by itself ("receive-only"). `mode` and `forward` are our own
    switch's. `log`: whether the guests migrate meanwhile; "both" holds a back-end with the log on
    against itself with it off. `ports`: guests, where there is not only one, in pairs of which
    "all" are `busy`, or the first two guests alone. `buffer_size`: bytes of a receive buffer; a
    frame that it doesn't hold takes several. `regions`: pieces that the memory of a busy guest is
    told in, cut at pages of 4 KiB: the rings lie in the first, the buffers in all of them, none
    across a cut, as no guest's buffer lies across two pieces of its memory. Raises UsageError.
    """

    frames: tuple[Frames, ...] = (Frames("64", (64,)),)
    pattern: str = "both-ways"
    load: str = "lean"
    ring_size: int = 256
    layout: str = "direct"
    mergeable: bool = True
    queues: int = 1
    mode: str = "poll"
    log: str = "off"
    forward: str = "patch"
    ports: int = 2
    busy: str = "all"
    buffer_size: int = STRIDE
    regions: int = 1

    def __post_init__(self) -> None:
        for option, value, allowed in (
            ("pattern", self.pattern, PATTERNS),
            ("load", self.load, KINDS),
            ("layout", self.layout, LAYOUTS),
            ("mode", self.mode, MODES),
            ("log", self.log, LOGS),
            ("forward", self.forward, FORWARDS),
            ("busy", self.busy, BUSY),
        ):
            if value not in allowed:
                raise UsageError(f"--{option} {value}: choose one of {', '.join(allowed)}")
        if not self.frames or not all(one.sizes for one in self.frames):
            raise UsageError("--sizes: there are none")
        if not self.sends and (len(self.frames) > 1 or len(self.frames[0].sizes) > 1):
            raise UsageError(
                f"--pattern {self.pattern}: give one of --sizes: that of the frames that the"
                " back-end sends by itself"
            )
        size = self.ring_size
        if not 64 <= size <= RING_SIZE_MAX or size & (size - 1):
            raise UsageError(f"--ring-size {size}: give a power of two, 64 to {RING_SIZE_MAX}")
        if not 1 <= self.queues <= QUEUES_MAX:
            raise UsageError(f"--queues {self.queues}: give 1 to {QUEUES_MAX} queue pairs")
        if not 1 <= self.regions <= MEMORY_SLOTS_MAX:
            raise UsageError(f"--regions {self.regions}: give 1 to {MEMORY_SLOTS_MAX}")
        if self.regions > self._buffers:
            raise UsageError(
                f"--regions {self.regions}: there are {self._buffers} buffers, and each region has"
                " to have one: give fewer, or a larger --ring-size"
            )
        self._check_ports()
        self._check_buffers()

    def _check_ports(self) -> None:
        if not 2 <= self.ports <= PORTS_MAX or self.ports % 2:
            raise UsageError(f"--ports {self.ports}: give 2 to {PORTS_MAX}, two by two")
        if self.pattern in ALONE and self.ports > 2:
            raise UsageError(f"--ports {self.ports}: --pattern {self.pattern} has one guest")
        if self.ports * self.queues > LANES_MAX:
            raise UsageError(
                f"--ports {self.ports} of --queues {self.queues}: the driver turns {LANES_MAX}"
                " pairs of queues at most"
            )
        if self.forward == "learn" and self.guests > 2:
            raise UsageError(
                f"--forward learn: frames go to all {self.guests} guests until their addresses are"
                " learned: it is measured with two"
            )

    def _check_buffers(self) -> None:
        if not BUFFER_MIN <= self.buffer_size <= STRIDE:
            raise UsageError(
                f"--buffer-size {self.buffer_size}: give {BUFFER_MIN} to {STRIDE} bytes"
            )
        if self.merges and not self.mergeable:
            raise UsageError(
                f"--buffer-size {self.buffer_size}: a frame takes several such buffers, which have"
                " to be mergeable: leave --no-mergeable away"
            )
        if self.merges and self.load == "lean" and any(len(one.sizes) > 1 for one in self.frames):
            raise UsageError(
                f"--buffer-size {self.buffer_size}: --load lean counts buffers, of which not all"
                " frames take as many: give --load touch, or one size"
            )

    @property
    def merges(self) -> bool:
        """Whether there are frames that take several receive buffers."""
        room = self.buffer_size - (HEADER_SIZE if self.layout == "direct" else APART)
        return max(max(one.sizes) for one in self.frames) > room

    @property
    def sends(self) -> bool:
        """Whether any guest does."""
        return self.pattern != "receive-only"

    @property
    def guests(self) -> int:
        """Sockets that a back-end needs for it."""
        return 1 if self.pattern in ALONE else self.ports

    @property
    def busy_guests(self) -> int:
        """The first so many of them take part."""
        return min(self.guests, 2) if self.busy == "2" else self.guests

    def memory_size(self, ring_size: int) -> int:
        """Bytes of a guest with such rings, whole hugepages."""
        size = 2 * self.queues * ring_size * (STRIDE + self.gap + _RING_BYTES) + _SLACK
        return -(-size // HUGEPAGE) * HUGEPAGE

    @property
    def gap(self) -> int:
        """Bytes between two buffers: room for a cut, where there are any."""
        return LOG_PAGE if self.regions > 1 else 0

    def cuts(self) -> tuple[tuple[int, int], ...]:
        """A busy guest's memory in its regions, GPA and bytes of each: cut at the last page that
        begins before the buffer that is to be the region's first."""
        rings = 2 * self.queues * (self.ring_size * _RING_BYTES + _RING_ENDS)
        used = self._buffers // (self.queues * self._pools)  # chained, half of a pool is not
        starts = [0]
        for number in range(1, self.regions):
            pool, slot = divmod(number * self._buffers // self.regions, used)
            place = rings + (pool * self.ring_size + slot) * (STRIDE + self.gap)
            starts.append(place // LOG_PAGE * LOG_PAGE)
        ends = pairwise([*starts, self.memory_size(self.ring_size)])
        return tuple((start, end - start) for start, end in ends)

    @property
    def _pools(self) -> int:
        """Rings with buffers, of a queue pair of the guest that has the fewest."""
        return 1 if self.pattern in ("one-way", "receive-only") else 2

    @property
    def _buffers(self) -> int:
        """Those of a guest that are in use."""
        return self.queues * self._pools * (self.ring_size >> (self.layout == "chained"))


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole run: the workload, `rounds` of `seconds` after `warm_up_s`, a CPU for the back-end's
    worker and one for the driver, and whether there are hugepages for it. Raises UsageError."""

    workload: Workload = field(default_factory=Workload)
    rounds: int = 5
    seconds: float = 1.0
    warm_up_s: float = 0.3
    worker_cpu: int = 0
    driver_cpu: int = 1
    hugepages: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 < self.seconds < inf:
            raise UsageError("--rounds, --seconds: give at least one round of some time")
        if not 0 <= self.warm_up_s < inf:
            raise UsageError(f"--warm-up {self.warm_up_s:g}: give seconds, 0 or more")
        if self.worker_cpu == self.driver_cpu:
            raise UsageError(
                f"--worker-cpu and --driver-cpu are both {self.worker_cpu}: who plays the virtual"
                " machines needs a CPU of its own"
            )

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it: tuples are lists."""
        plan = asdict(self)
        plan["workload"]["frames"] = [
            {"name": one.name, "sizes": list(one.sizes)} for one in self.workload.frames
        ]
        return plan
