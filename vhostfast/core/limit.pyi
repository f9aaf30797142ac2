"""What a measurement stands beside: the copy without checks, and how far apart two CPUs are."""

from collections.abc import Iterable
from typing import Self, final

from vhostfast.core.ring import Ring

@final
class Bare:
    """Copies what each lane's first ring sends into the buffers of its second, and checks nothing.

    Each guest's memory must be one region, and whatever its rings say is believed: for our own
    driver alone. `null` only gives back all that is offered, after once round the rings. Raises
    ValueError for rings that don't run.
    """

    def __new__(cls, lanes: Iterable[tuple[Ring, Ring]], *, null: bool = False) -> Self: ...
    def run(self) -> None:
        """Until `stop`; without the GIL. Never sleeps."""
    def stop(self) -> None:
        """Leave `run`, now or as soon as it begins. For good."""

@final
class Distance:
    """A cache line that goes to and fro between two threads, for `patience_s` seconds at most."""

    def __new__(cls, patience_s: float = 10.0) -> Self: ...
    def answer(self) -> bool:
        """One thread's part. False when the other was not there in time."""
    def ask(self) -> float | None:
        """The other thread's part: nanoseconds one way, at best. None as above."""
