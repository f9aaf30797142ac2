"""A virtqueue as the back-end walks it; virtio 1.3, 2.7."""

from collections.abc import Iterable
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from vhostfast.core.memory import GuestMemory, Log

FAULTS: Final[tuple[str, ...]]

@final
class Ring:
    """One split virtqueue: `index` 2k receives (to the guest) for pair k, 2k + 1 transmits.

    Its fds stay the caller's. Nobody may walk the ring while `start`, `stop`, `remap` or a setter
    is called.
    """

    index: int
    running: bool
    memory: GuestMemory | None
    log: Log | None
    kick_fd: int
    malformed: int
    too_big: int
    def __new__(cls, index: int) -> Ring: ...
    def start(
        self,
        memory: GuestMemory,
        *,
        size: int,
        desc: int,
        used: int,
        avail: int,
        event_idx: bool = False,
        indirect: bool = False,
        mergeable: bool = False,
        header_size: int = 12,
        frame_size_max: int = 65589,
        offloads: int = 0,
        call_fd: int = -1,
        kick_fd: int = -1,
        log: Log | None = None,
        used_log: int | None = None,
    ) -> None:
        """Begin at used.idx. `size` in entries, a power of two; `desc`, `used`, `avail` are UVAs;
        `used_log` the used ring's address for the log, None: not marked. Raises ProtocolError if
        an area isn't in one region or not aligned there (virtio 1.3, 2.7), MemoryVanished if it is
        gone."""

    def stop(self) -> int:
        """The index to go on from: all that was taken has been given back."""

    def remap(self, memory: GuestMemory) -> None:
        """The same ring in new memory. Raises ProtocolError, and then nothing has changed."""

    def set_call(self, fd: int) -> None:
        """Signal here from now on, and once at once; -1: never."""

    def set_log(self, log: Log | None, used_log: int | None) -> None: ...
    @property
    def call_fd(self) -> int: ...
    @property
    def used_log(self) -> int | None: ...
    @property
    def base(self) -> int:
        """The next avail index that we take, 0 to 65535."""

    @property
    def calls(self) -> int:
        """Signals sent so far."""

    @property
    def fault(self) -> str | None:
        """Why the ring is of no use any more: a sentence."""

    def want_kicks(self, wanted: bool) -> bool:
        """Ask the guest to kick, or not to. True if more has come since we last looked, or if there
        is a fault."""

    def receive(self, limit: int = 64) -> list[NDArray[np.uint8]]:
        """Frames that the guest has sent, without virtio header, each a private copy of shape
        (bytes,), from `limit` chains at most. What is no lawful frame is left out and counted in
        `malformed`; see `fault` for an unlawful ring."""

    def send(self, packets: Iterable[NDArray[np.uint8]]) -> int:
        """Frames for the guest, as many as it has buffers for; returns how many are done with. One
        that no buffer of the guest can hold is dropped and counted in `too_big`."""
