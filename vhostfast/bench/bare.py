"""The limits of every table, as a back-end of their own:

    python -m vhostfast.bench.bare copy|null SOCKET...

"copy" moves packets between guests, two by two, or back to the only one, and checks nothing; "null"
gives back what it is offered (csrc/driver/bare.h). Only for the built-in driver: it believes the
guest.
"""

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from vhostfast.backend.budget import Budget
from vhostfast.backend.connection import Connection
from vhostfast.core.limit import Bare
from vhostfast.core.ring import Ring
from vhostfast.device.endpoint import Listener, Serve
from vhostfast.errors import UsageError, VhostfastError
from vhostfast.protocol.features import Offer

KINDS = ("copy", "null")


class Loop:
    """The thread that walks all rings, unless paused."""

    def __init__(self, *, null: bool) -> None:
        self.ports: list[BarePort] = []
        self._null = null
        self._bare: Bare | None = None
        self._thread: threading.Thread | None = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nobody walks a ring inside."""
        if self._bare is not None and self._thread is not None:
            self._bare.stop()
            self._thread.join()
        try:
            yield
        finally:
            self._bare = Bare(self._lanes(), null=self._null)
            self._thread = threading.Thread(target=self._bare.run, daemon=True)
            self._thread.start()

    def _lanes(self) -> list[tuple[Ring, Ring]]:
        """From each transmit ring to the receive ring of the same pair at the other port."""
        lanes = []
        for number, port in enumerate(self.ports):
            peer = self.ports[number ^ 1] if len(self.ports) > 1 else port
            for index, ring in port.rings.items():
                if index % 2 and index - 1 in peer.rings:
                    lanes.append((ring, peer.rings[index - 1]))
        return lanes


class BarePort:
    """What a connection sees as its back-end (`connection.Backend`)."""

    def __init__(self, name: str, loop: Loop) -> None:
        self.name = name
        self.fault: str | None = None
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.budget = Budget()
        self.rings: dict[int, Ring] = {}
        self.paused = loop.paused

    def attach(self, ring: Ring) -> None:
        self.rings[ring.index] = ring

    def detach(self, ring: Ring) -> None:
        del self.rings[ring.index]

    def count(self, event: str, amount: int = 1) -> None:
        """Nothing is counted."""

    def announce(self, mac: bytes) -> None:
        """Nobody has to learn the address."""

    def reset(self) -> None:
        """Nothing is kept."""


async def serve(kind: str, paths: list[str]) -> None:
    """Until cancelled. Raises UsageError, or EnvironmentLacks if a socket can't be made."""
    if kind not in KINDS or not paths or (len(paths) > 1 and len(paths) % 2):
        raise UsageError(f"give {' or '.join(KINDS)} and one socket, or some two by two")
    loop = Loop(null=kind == "null")
    with ExitStack() as stack:
        tasks = []
        for path in paths:
            port = BarePort(os.path.basename(path), loop)
            stack.callback(os.close, port.event_fd)
            loop.ports.append(port)
            listener = stack.enter_context(Listener(port.name, path))
            tasks.append(listener.run(_serve(port)))
        await asyncio.gather(*tasks)


def _serve(port: BarePort) -> Serve:
    async def serve(sock: socket.socket) -> str:
        return await Connection(sock, port, Offer.net(offloads=False)).serve()

    return serve


async def _main(kind: str, paths: list[str]) -> None:
    task = asyncio.ensure_future(serve(kind, paths))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


if __name__ == "__main__":
    try:
        asyncio.run(_main(sys.argv[1], sys.argv[2:]))
    except VhostfastError as error:
        sys.exit(f"bare: {error}")
