from collections.abc import Iterable, Sequence
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

from vhostfast.core.driver import DriverRing

FRAME_MIN: int
"""Bytes of the smallest frame that can prove itself."""
FLOWS_MAX: int
LANES_MAX: int
"""How many a Loop turns at most."""
LOADS: dict[str, int]
IDLES: dict[str, int]
LAYOUTS: dict[str, int]

@final
class Flows:
    """What became of each flow's frames at one guest, whichever ring they came by."""

    def __new__(cls) -> Self: ...
    def __getitem__(self, number: int, /) -> tuple[int, int, int, int]:
        """(received, missing, reordered, repeated) packets of flow `number`."""

@final
class Sender:
    """Fills a transmit ring, fresh, from `buffers` at GPA `gpa`, `stride` bytes each, the last
    `gap` of them not to be touched.

    `layout` is a key of LAYOUTS, `sizes` the frames' bytes, taken in turn, `limit` how many packets
    to send. Raises ValueError for what doesn't fit.
    """

    def __new__(
        cls,
        ring: DriverRing,
        buffers: NDArray[np.uint8],
        gpa: int,
        *,
        stride: int,
        gap: int = 0,
        header_size: int,
        layout: str,
        destination: bytes,
        source: bytes,
        flow: int,
        sizes: Sequence[int],
        limit: int | None = None,
    ) -> Self: ...
    def counters(self) -> tuple[int, int, int]:
        """(offered, given back) packets, bytes of frames offered; at any time."""

@final
class Receiver:
    """Keeps a receive ring supplied with `buffers`, and judges what comes into them.

    `verify_every` is a power of two. `frame_size` is that of all frames, or 0; a lean load with
    small buffers needs it. Raises ValueError for what doesn't fit.
    """

    def __new__(
        cls,
        ring: DriverRing,
        buffers: NDArray[np.uint8],
        gpa: int,
        flows: Flows,
        *,
        stride: int,
        gap: int = 0,
        header_size: int,
        layout: str,
        mergeable: bool,
        verify_every: int,
        frame_size: int = 0,
    ) -> Self: ...
    def counters(self) -> tuple[int, int, int, int, int, int]:
        """(packets, bytes, corrupt, foreign, bytes of those, verified); at any time."""

@final
class Loop:
    """Turns lanes of (Sender or None, Receiver or None) under a load of LOADS.

    It prepares them: receive buffers are on offer when this is made. `idle` is a key of IDLES.
    """

    def __new__(
        cls, lanes: Sequence[tuple[Sender | None, Receiver | None]], *, load: str, idle: str
    ) -> Self: ...
    def run(
        self,
        seconds: float | None = None,
        *,
        linger_s: float = 0.2,
        expected: int | None = None,
    ) -> None:
        """Send for `seconds` or up to the limits, then go on until nothing moves for `linger_s`.

        Or until `expected` packets have come in all, and all that were sent are given back.
        Without the GIL. Raises ProtocolError if the back-end breaks the rules of a ring.
        """
    def stop_sending(self) -> None:
        """Send no more."""
    def stop(self) -> None:
        """Leave `run` at once, for good."""
    def finish(self) -> None:
        """Once the rings have stopped: take what came last; lean loads check every buffer."""
    def cycles(self) -> tuple[int, int]:
        """TSC cycles of turns in which something moved, and of others."""

@final
class Pace:
    """Packets on a schedule through `lanes` that a Loop with load "touch" has prepared: of one
    guest, or of two, of whom the second receives or, where both send, answers.

    `count` packets, `period` cycles apart (0: all at once); times count from packet `first` on.
    Raises ValueError for what can't be.
    """

    def __new__(
        cls,
        lanes: Sequence[tuple[Sender | None, Receiver | None]],
        *,
        period: float,
        count: int,
        first: int,
    ) -> Self: ...
    def run(self, patience: int, deadline: int, held_most: int) -> None:
        """Until all is back, or after the last was due nothing moved for `patience` cycles, or
        `deadline` cycles have passed, or more than `held_most` packets found the ring full.
        Without the GIL. Raises ProtocolError as Loop."""
    def stop(self) -> None:
        """Leave `run` at once, for good."""
    def counters(self) -> tuple[int, int, int, int]:
        """(packets whose time was noted, packets that found the ring full, cycles of the longest
        turn, cycles from the start to the last packet); from `first` on, at any time."""
    def cycles(self) -> tuple[int, int]:
        """TSC cycles of turns in which something moved, and of others."""
    def histogram(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64], int]:
        """As `histogram_of`, of cycles from when a packet was due to when it arrived."""

def histogram_of(
    values: Iterable[int],
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], int]:
    """(counts of all buckets, the highest value of each, max) of numbers below 2^64."""

def cycles_per_ns(milliseconds: int = 50) -> float:
    """How fast the cycle counter runs, measured against CLOCK_MONOTONIC_RAW for so long."""
