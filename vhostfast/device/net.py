"""A network device in Python: subclass NetDevice, define `receive`, and `serve` it on a socket.

Each device has a worker of its own: a thread that sleeps until the guest kicks, so a slow device
holds up nobody but its guest. Packets are numpy arrays, private copies: neither the guest nor
another thread changes one while it is looked at.
"""

import asyncio
import logging
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from vhostfast.backend.connection import Connection
from vhostfast.core.witness import Witness
from vhostfast.device.endpoint import Connector, Listener
from vhostfast.device.worker import DeviceWorker
from vhostfast.protocol.features import Offer

Packet = NDArray[np.uint8]

COUNTERS = (
    "rx_packets",
    "tx_packets",
    "rx_dropped_malformed",
    "tx_dropped_full",
    "tx_dropped_too_big",
    "connections",
    "messages_refused",
    "faults",
    "log_pages_missed",
)
BACKLOG_MAX = 4096  # packets that wait for the guest's buffers; more are dropped and counted


class NetDevice:
    """A virtio-net device with one queue pair or more (virtio 1.3, 5.1).

    Define `receive`; call `send`, in it or from any thread. Packets are Ethernet frames without
    virtio header: uint8 arrays of shape (bytes,).
    """

    def __init__(self) -> None:
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.backlog: deque[Packet] = deque()
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()  # of those who send

    def __del__(self) -> None:
        os.close(self.wake_fd)

    def receive(self, packets: list[Packet]) -> None:
        """Called on the device's thread with what the guest sent, in order. Here: drop it."""

    def send(self, packets: Iterable[Packet]) -> None:
        """Queue copies of frames of 14 to 65589 bytes for the guest, in order; all or none. Raises
        ValueError for another size or type. Beyond BACKLOG_MAX that wait for buffers, frames are
        dropped and counted."""
        frames = [_copy(packet) for packet in packets]
        with self._lock:
            room = BACKLOG_MAX - len(self.backlog)
            self.backlog.extend(frames[:room])
            self.counters["tx_dropped_full"] += max(len(frames) - room, 0)
        os.eventfd_write(self.wake_fd, 1)

    def drop_backlog(self) -> None:
        """What waited for a guest that has left is not for the next one. Nobody may walk rings."""
        with self._lock:
            self.counters["tx_dropped_full"] += len(self.backlog)
            self.backlog.clear()


def _copy(packet: Packet) -> Packet:
    frame = np.array(packet, order="C")
    if frame.dtype != np.uint8 or frame.ndim != 1 or not 14 <= frame.size <= 65589:
        raise ValueError(
            f"a packet is {frame.dtype}{list(frame.shape)}, must be uint8, one dimension,"
            " 14 to 65589 bytes"
        )
    return frame


async def serve_device(
    device: NetDevice,
    path: str,
    *,
    client: bool = False,
    mode: int = 0o600,
    witness: bool = False,
) -> None:
    """Offer the device on a unix socket, to one front-end after the other, until cancelled.

    `client`: connect to a socket that the front-end listens on. `witness`: during a migration
    the kernel's record of written pages is held against the log; pages that were not marked are
    named in the log of this process, counted and marked. Raises EnvironmentLacks if the socket
    can't be made, or the kernel keeps no such record.
    """
    if witness:
        Witness(()).close()
    worker = DeviceWorker(os.path.basename(path), device)

    offer = Offer.net(offloads=False)  # a packet in Python is whole, and its checksums are right

    async def serve(sock: socket.socket) -> str:
        return await Connection(sock, worker, offer, witness=witness).serve()

    try:
        with Connector(worker.name, path) if client else Listener(worker.name, path, mode) as end:
            await end.run(serve)
    finally:
        worker.close()


def serve(
    device: NetDevice,
    path: str,
    *,
    client: bool = False,
    mode: int = 0o600,
    witness: bool = False,
) -> None:
    """`serve_device` for a program that does nothing else: until SIGINT or SIGTERM.

    The log goes to stderr, unless the program has set up logging itself.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)

    async def main() -> None:
        work = serve_device(device, path, client=client, mode=mode, witness=witness)
        task = asyncio.ensure_future(work)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    asyncio.run(main())
