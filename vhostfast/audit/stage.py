"""The guests of an audit: A, which is migrated, and B, which stays and talks to it."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from vhostfast.audit.shapes import Shape
from vhostfast.driver.frontend import Frontend
from vhostfast.driver.memory import GuestMemory
from vhostfast.driver.traffic import Station, mac

# Cut within pages, and so that buffers lie across; rings are in one region, as DPDK wants them.
MIGRATED = (
    (0x0, 0x8_0000),
    (0x8_0000, 0x2_1235),
    (0xA_1235, 0x15_0001),
    (0x100_0000, 0x20_0FFF),
    (0x120_0FFF, 0x30_0000),
)
# Where A has none: a mark of B's in A's log is one without cause.
STAYING = ((0x40_0000, 0x8_0123), (0x48_0123, 0x60_0000))

TIMEOUT_S = 5.0


class Stage:
    """A, and B where there is a second socket, connected in `shape`.

    Raises EnvironmentLacks if nobody serves a socket.
    """

    def __init__(self, sockets: Sequence[Path], shape: Shape) -> None:
        self.shape = shape
        self.frontends: list[Frontend] = []
        self._stack = ExitStack()
        with ExitStack() as stack:
            for path, regions in zip(sockets, (MIGRATED, STAYING), strict=False):
                memory = stack.enter_context(GuestMemory(regions, apart=shape.apart))
                frontend = Frontend(
                    path,
                    memory,
                    queue_pairs=shape.queue_pairs,
                    ring_size=shape.ring_size,
                    features=shape.features,
                    timeout_s=TIMEOUT_S,
                )
                self.frontends.append(stack.enter_context(frontend))
            self._stack = stack.pop_all()

    @property
    def migrated(self) -> Frontend:
        """A's front-end."""
        return self.frontends[0]

    @property
    def loops(self) -> bool:
        """Whether A talks to itself, if the back-end lets it."""
        return len(self.frontends) == 1

    def stations(self) -> list[Station]:
        """A and B as they talk to each other, or A to itself."""
        last = len(self.frontends) - 1
        return [
            Station(frontend, mac(1 + n), mac(1 + last - n), flow=n * self.shape.queue_pairs)
            for n, frontend in enumerate(self.frontends)
        ]

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
