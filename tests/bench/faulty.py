"""Back-ends with a fault each, for one guest that wants back what it sends:

python faulty.py good|flip|drop|leaky|slow|tired|twice|die|deaf|logless|gone|mute SOCKET

or that sends by itself, frames of 64 bytes or mixed with some of 65:

python faulty.py talk|babble SOCKET
"""

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vhostfast.backend.connection import Connection
from vhostfast.bench.bare import BarePort, Loop
from vhostfast.device.endpoint import Listener
from vhostfast.device.net import NetDevice, serve
from vhostfast.protocol.features import Offer, ProtocolFeature

DIES_AFTER = 1000  # packets
TIRES_AFTER = 100
LEAKS = 10  # of so many packets one
SLEEPS_S = 0.02  # before it gives back what it has
TALKS_S = 0.001  # between two of its bursts


class Faulty(NetDevice):
    """Sends back what it is sent, in its own way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.count = 0

    def receive(self, packets: list[NDArray[np.uint8]]) -> None:
        self.count += len(packets)
        if self.kind == "die" and self.count > DIES_AFTER:
            print("out of luck", flush=True)
            os._exit(9)
        if self.kind == "flip":
            for packet in packets:
                packet[-1] ^= 1
        if self.kind == "slow":
            time.sleep(SLEEPS_S)
        if self.kind == "leaky":
            seen = range(self.count - len(packets), self.count)
            packets = [p for n, p in zip(seen, packets, strict=True) if n % LEAKS]
        tired = self.kind == "tired" and self.count > TIRES_AFTER
        if self.kind != "drop" and not tired:
            self.send([*packets, *packets[-1:]] if self.kind == "twice" else packets)


def talk(device: NetDevice, sizes: tuple[int, ...]) -> None:
    """Sends without end, as long as the guest takes it."""
    packets = [np.zeros(size, np.uint8) for size in sizes] * 32
    while True:
        if len(device.backlog) < len(packets):
            device.send(packets)
        time.sleep(TALKS_S)


async def deaf(path: str, offer: Offer, lives_s: float | None = None) -> None:
    """Agrees to everything and walks no ring."""
    if lives_s is not None:
        asyncio.get_running_loop().call_later(lives_s, os.kill, os.getpid(), signal.SIGKILL)
    port = BarePort("deaf", Loop(null=False))

    async def one(sock: socket.socket) -> str:
        return await Connection(sock, port, offer).serve()

    with Listener("deaf", path) as listener:
        await listener.run(one)


def mute(path: str) -> None:
    """Listens and never answers."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    time.sleep(60)


if __name__ == "__main__":
    kind, path = sys.argv[1:]
    offer = Offer.net()
    if kind == "logless":
        offer = replace(
            offer, protocol_features=offer.protocol_features & ~ProtocolFeature.LOG_SHMFD
        )
    if kind in ("deaf", "logless"):
        asyncio.run(deaf(path, offer))
    elif kind == "gone":
        asyncio.run(deaf(path, offer, lives_s=2.0))
    elif kind == "mute":
        mute(path)
    elif kind in ("talk", "babble"):
        talker = NetDevice()
        sizes = (64,) if kind == "talk" else (64, 65)
        threading.Thread(target=talk, args=(talker, sizes), daemon=True).start()
        serve(talker, path)
    else:
        serve(Faulty(kind), path)
