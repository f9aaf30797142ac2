"""The thread that carries packets between one guest's rings and a device in Python."""

import logging
import os
import select
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vhostfast.backend.budget import Budget
from vhostfast.core.ring import Ring

POLL_S = 0.001
logger = logging.getLogger("vhostfast")


class Device(Protocol):
    """What the worker needs of a device; see net.NetDevice."""

    counters: dict[str, int]
    backlog: deque[NDArray[np.uint8]]
    wake_fd: int

    def receive(self, packets: list[NDArray[np.uint8]]) -> None: ...
    def drop_backlog(self) -> None: ...


class DeviceWorker:
    """What a connection sees as its back-end (`connection.Backend`).

    The lock is held while rings are walked, never while the device's own code runs: however slow
    that is, a control message doesn't wait for it.
    """

    def __init__(self, name: str, device: Device) -> None:
        self.name = name
        self.fault: str | None = None
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.budget = Budget()
        self._device = device
        self._lock = threading.Lock()
        self._rings: dict[int, Ring] = {}
        self._poll = select.epoll()
        self._watch(device.wake_fd)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"vhostfast-{name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; waits for the device's `receive` to return."""
        self._stopping = True
        self._wake()
        self._thread.join()
        self._poll.close()
        os.close(self.event_fd)

    # --- What a connection calls ------------------------------------------------------------------

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nobody walks a ring inside; afterwards each is looked at once, unasked."""
        with self._lock:
            yield
        self._wake()

    def attach(self, ring: Ring) -> None:
        if ring.kick_fd >= 0:
            self._watch(ring.kick_fd)
        self._rings[ring.index] = ring

    def detach(self, ring: Ring) -> None:
        del self._rings[ring.index]
        if ring.kick_fd >= 0:
            self._poll.unregister(ring.kick_fd)

    def count(self, event: str, amount: int = 1) -> None:
        self._device.counters[event] += amount

    def announce(self, mac: bytes) -> None:
        """Nobody is behind this device who would have to learn the address."""

    def reset(self) -> None:
        with self._lock:
            self._device.drop_backlog()
        self.fault = None

    # --- The thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            packets, malformed = self._take()
            if packets:
                self._hand_over(packets)
            taken = packets or malformed
            if not self._give() and not taken and not self._more_came():
                self._poll.poll(self._patience_s())

    def _take(self) -> tuple[list[NDArray[np.uint8]], int]:
        """What the guest sent, and how much more of it was no packet."""
        with self._lock:
            rings = self._sorted(1)
            before = sum(ring.malformed for ring in rings)
            packets = [packet for ring in rings for packet in ring.receive()]
            malformed = sum(ring.malformed for ring in rings) - before
        self._device.counters["rx_packets"] += len(packets)
        self._device.counters["rx_dropped_malformed"] += malformed
        return packets, malformed

    def _hand_over(self, packets: list[NDArray[np.uint8]]) -> None:
        try:
            self._device.receive(packets)
        except Exception as error:
            logger.exception("%s: the device failed", self.name)
            self._give_up(f"the device failed: {error!r}")

    def _give(self) -> int:
        """Fill the guest's buffers with what waits for it; how many packets went, or never will."""
        backlog = self._device.backlog
        done = too_big = 0
        with self._lock:
            for ring in self._sorted(0)[:1]:  # one ring keeps the order
                too_big -= ring.too_big
                while backlog and ring.send([backlog[0]]):
                    backlog.popleft()
                    done += 1
                too_big += ring.too_big
        self._device.counters["tx_packets"] += done - too_big
        self._device.counters["tx_dropped_too_big"] += too_big
        return done

    def _more_came(self) -> bool:
        """Ask for kicks, before going to sleep; whether there is something to do already."""
        with self._lock:
            rings = self._sorted(1) + (self._sorted(0) if self._device.backlog else [])
            more = [
                ring.want_kicks(True) for ring in rings
            ]  # each is asked, whatever the first says
        return any(more)

    def _patience_s(self) -> float | None:
        """For how long to sleep: a ring without a kick has to be polled."""
        with self._lock:
            return POLL_S if any(r.kick_fd < 0 for r in self._rings.values()) else None

    def _sorted(self, direction: int) -> list[Ring]:
        """The rings of one direction (0 to the guest, 1 from it); none once there is a fault."""
        for ring in self._rings.values():
            if ring.fault is not None:
                self._give_up(ring.fault)
        if self.fault is not None:
            return []
        return [self._rings[i] for i in sorted(self._rings) if i % 2 == direction]

    def _give_up(self, why: str) -> None:
        if self.fault is None:
            self.fault = why
            os.eventfd_write(self.event_fd, 1)

    def _watch(self, fd: int) -> None:
        self._poll.register(fd, select.EPOLLIN | select.EPOLLET)  # an edge: nothing to be read

    def _wake(self) -> None:
        os.eventfd_write(self._device.wake_fd, 1)
