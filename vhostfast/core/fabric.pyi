"""Ports, the forwarding between them, and the workers' loop."""

from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from vhostfast.core.ring import FAULTS as FAULTS
from vhostfast.core.ring import Ring

POLICIES: Final[tuple[str, ...]]
MODES: Final[tuple[str, ...]]
LEVELS: Final[tuple[str, ...]]
COUNTERS: Final[tuple[str, ...]]
EVENTS: Final[tuple[str, ...]]
SPIN_SECONDS: Final[float]
CALLS_NEVER_WAIT: Final[bool]  # no peer can hold up who signals it; False: no asynchronous I/O here

def levels() -> tuple[str, ...]:
    """The instruction-set levels that this CPU has, best first."""

def cycles_per_second() -> float:
    """The rate of the counter behind `busy_cycles`, measured once over two milliseconds."""

@final
class Port:
    """A place on the fabric for one guest's rings; made by Fabric.add_port."""

    fabric: Fabric
    name: str
    rings: dict[int, Ring]
    def __new__(cls, fabric: Fabric, name: str, index: int) -> Port: ...
    @property
    def index(self) -> int: ...
    @property
    def event_fd(self) -> int:
        """An eventfd, readable once the port has a fault."""

    @property
    def fault(self) -> str | None:
        """Why its rings are left alone: a sentence."""

    @property
    def receivers(self) -> list[Ring]: ...
    @property
    def transmitters(self) -> list[Ring]: ...
    def attach(self, ring: Ring) -> None:
        """Workers walk the ring after the next `lay_out`. They rest meanwhile."""

    def detach(self, ring: Ring) -> None: ...
    def reset(self) -> None:
        """Forget fault and learned addresses. Raises RuntimeError while rings are attached."""

    def count(self, event: str, amount: int = 1) -> None:
        """So many more of EVENTS. Raises KeyError for another name."""

    def counters(self) -> dict[str, int]:
        """COUNTERS and EVENTS: packets, and bytes of Ethernet frames without virtio header; rx was
        received from the guest, tx sent to it."""

@final
class Fabric:
    """Up to 256 ports; `forward` is one of POLICIES. "patch" joins ports 0 and 1, 2 and 3, ...

    Raises ValueError for another name. Changes are made while the workers rest.
    """

    forward: str
    def __new__(cls, forward: str = "learn") -> Fabric: ...
    @property
    def ports(self) -> tuple[Port, ...]: ...
    def add_port(self, name: str) -> Port:
        """The lowest free index. Raises ValueError when all are taken."""

    def remove_port(self, port: Port) -> None: ...
    def close(self) -> None:
        """Close the fds of ports and workers, which have stopped; what was counted stays."""

    def lay_out(self) -> None:
        """Deal the attached rings to the workers."""

    def inject(self, port: Port, frame: bytes | bytearray | NDArray[np.uint8]) -> None:
        """Send an Ethernet frame as if the port's guest had."""

    def age(self, limit: int) -> None:
        """One tick: forget addresses that were not seen for `limit` ticks, 0 to 255."""

    def find(self, mac: bytes) -> Port | None:
        """Where an address was last seen."""

    def learn(self, mac: bytes, port: Port) -> None: ...

@final
class Worker:
    """Forwards what the ports' transmit rings bring; `mode` is one of MODES, `level` one of
    levels(), by default the best or what VHOSTFAST_LEVEL says. Raises ValueError."""

    fabric: Fabric
    mode: str
    level: str
    def __new__(
        cls, fabric: Fabric, mode: str = "adaptive", level: str | None = None
    ) -> Worker: ...
    def run(self) -> None:
        """The loop, without the GIL, until `stop`. For a thread of its own."""

    def turn(self, forgive: bool = True) -> int:
        """One burst from each source, here and now, instead of `run`; packets taken. Unless it may
        `forgive`, a port that took more than its share of the turns before may have to sit out."""

    def go(self) -> None: ...
    def rest(self) -> None:
        """Returns when the worker rests, or at once if it doesn't run."""

    def stop(self) -> None: ...
    def set_sources(self, sources: list[tuple[Port, Ring]], targets: list[Ring]) -> None:
        """The transmit rings to poll and the receive rings that they fill; Fabric.lay_out's."""

    def watch(self, ring: Ring) -> bool:
        """Wake up for the ring's kicks; False if the kernel has no room for that. Likewise."""

    @property
    def busy_cycles(self) -> int:
        """Cycles of turns that moved packets."""

    @property
    def packets(self) -> int: ...
    @property
    def sleeps(self) -> int:
        """How often it has waited for a kick."""
