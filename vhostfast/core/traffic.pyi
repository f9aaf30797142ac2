from collections.abc import Sequence
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
    """Fills a transmit ring, fresh, from `buffers` at GPA `gpa`, `stride` bytes each.

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
        header_size: int,
        layout: str,
        mergeable: bool,
        verify_every: int,
        frame_size: int = 0,
    ) -> Self: ...
    def counters(self) -> tuple[int, int, int, int, int]:
        """(packets, bytes, corrupt, foreign, verified); at any time."""

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
