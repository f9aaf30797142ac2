"""Front-ends and their guests on our own back-end, in one process: what tests of it play with.

    with Host("patch") as host:
        a, b = host.vm(0), host.vm(1)
        a.send([frame(1)])
        assert b.receive(1) == [frame(1)]

All of it is real: sockets, memfds, eventfds, the event loop in a thread, the workers in theirs.
"""

import asyncio
import os
import select
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from vhostfast.backend.connection import Backend, Connection
from vhostfast.backend.worker import FabricPort, Workers
from vhostfast.core.fabric import Fabric
from vhostfast.device.endpoint import Listener
from vhostfast.driver import Frontend, GuestMemory, Vring
from vhostfast.driver.frontend import PROTOCOL_FEATURES
from vhostfast.protocol.features import Offer, ProtocolFeature

PATIENCE_S = 5.0  # far beyond what anything here takes: who waits this long has lost something
SLOT_SIZE = 2048
BY_TABLE = PROTOCOL_FEATURES & ~ProtocolFeature.CONFIGURE_MEM_SLOTS  # SET_MEM_TABLE
SMALL = ((0x0, 0x1235), (0x1235, 0x2001), (0x40000, 0x300000))


def mac(number: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, number])


def frame(number: int, *, to: int = 2, sender: int = 1, size: int = 64) -> bytes:
    """An Ethernet frame that carries its number; its bytes differ from place to place."""
    head = mac(to) + mac(sender) + b"\x88\xb5" + number.to_bytes(8, "big")
    return (head + bytes((number + i) % 251 for i in range(size)))[:size]


def number_of(data: bytes) -> int:
    return int.from_bytes(data[14:22], "big")


class Loop:
    """An asyncio event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._tasks: list[Future[Any]] = []

    def begin(self, work: Any) -> Future[Any]:
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        self._tasks.append(future)
        return future

    def fence(self) -> None:
        """Wait until the loop has done what it had to do."""
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self.loop).result(PATIENCE_S)

    def close(self) -> None:
        async def cancel() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(cancel(), self.loop).result(PATIENCE_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Vm:
    """A guest with its front-end. Receive rings are kept full unless `fill` is False."""

    def __init__(
        self,
        sock: socket.socket | str | None,
        *,
        start: bool = True,
        fill: bool = True,
        regions: Sequence[tuple[int, int]] = SMALL,
        memory: GuestMemory | None = None,
        **options: Any,
    ) -> None:
        self.memory = memory or GuestMemory(regions)
        self.frontend = Frontend(sock, self.memory, **{"ring_size": 64, **options})
        self._slots: dict[tuple[int, int], int] = {}  # (ring, head) -> GPA of its buffer
        self._spare: list[int] = []
        if start:
            self.start(fill=fill)

    def start(self, *, fill: bool = True, base: int = 0) -> None:
        """Start the rings fresh at `base`."""
        self.frontend.start(base)
        self._slots, self._spare = {}, []
        if fill:
            for pair in range(self.frontend.queue_pairs):
                self.post(self.frontend.ring_size, pair)

    def receiver(self, pair: int = 0) -> Vring:
        return self.frontend.receive_ring(pair)

    def sender(self, pair: int = 0) -> Vring:
        return self.frontend.transmit_ring(pair)

    def post(self, count: int, pair: int = 0) -> None:
        """Offer `count` receive buffers."""
        vring = self.receiver(pair)
        for _ in range(count):
            self._offer(vring, self._slot(), SLOT_SIZE, True)
        vring.ring.kick()

    def send(self, frames: Iterable[bytes], pair: int = 0) -> None:
        """Send, waiting for room in the ring as long as need be."""
        vring = self.sender(pair)
        for data in frames:
            while vring.ring.free_count == 0 and not self._reclaim(vring):
                vring.ring.kick()
                if not vring.ring.want_calls():
                    assert vring.ring.wait_call(PATIENCE_S), "what was sent is not taken"
            gpa = self._slot()
            whole = bytes(self.frontend.header_size) + data
            self.memory.write(gpa, whole)
            self._offer(vring, gpa, len(whole), False)
        vring.ring.kick()

    def receive(self, count: int, pair: int = 0, timeout_s: float = PATIENCE_S) -> list[bytes]:
        """At least `count` frames, fewer only when the time is up. Their buffers are offered
        anew."""
        ring, frames = self.receiver(pair).ring, self.received(pair)
        deadline = time.monotonic() + timeout_s
        while len(frames) < count:
            if not ring.want_calls() and not ring.wait_call(max(0, deadline - time.monotonic())):
                break
            frames += self.received(pair)
        return frames

    def received(self, pair: int = 0) -> list[bytes]:
        """What is there."""
        vring, frames = self.receiver(pair), []
        used = [(self._slots.pop((vring.index, head)), n) for head, n in vring.ring.take_all()]
        for gpa, size in used:
            frames.append(self.memory.read(gpa, size)[self.frontend.header_size :])
            self._offer(vring, gpa, SLOT_SIZE, True)
        if frames:
            vring.ring.kick()
        return frames

    def wait_used(self, pair: int = 0) -> tuple[int, int]:
        """The next used receive buffer: (head, bytes); its buffer is not offered again."""
        ring = self.receiver(pair).ring
        while (used := ring.take()) is None:
            if not ring.want_calls():
                assert ring.wait_call(PATIENCE_S), "nothing came"
        return used

    def all_sent(self, pair: int = 0) -> None:
        """Wait until the back-end has taken everything."""
        vring = self.sender(pair)
        self._reclaim(vring)
        while vring.ring.free_count < vring.size:
            if not vring.ring.want_calls():
                assert vring.ring.wait_call(PATIENCE_S), "what was sent is not taken"
            self._reclaim(vring)

    def picture(self) -> bytes:
        """All of guest memory."""
        return b"".join(self.memory.read(region.gpa, region.size) for region in self.memory.regions)

    def close(self) -> None:
        self.frontend.close()
        self.memory.close()

    def _reclaim(self, vring: Vring) -> bool:
        used = vring.ring.take_all()
        self._spare += [self._slots.pop((vring.index, head)) for head, _ in used]
        return bool(used)

    def _slot(self) -> int:
        return self._spare.pop() if self._spare else self.memory.take(SLOT_SIZE)

    def _offer(self, vring: Vring, gpa: int, size: int, write: bool) -> None:
        self._slots[vring.index, vring.ring.add([(gpa, size, write)])] = gpa


class Host(Loop):
    """A fabric, its workers, `ports` ports, and what is plugged into them."""

    def __init__(
        self,
        forward: str = "patch",
        ports: int = 2,
        *,
        mode: str = "interrupt",
        cpus: Sequence[int] | None = None,
        offer: Offer | None = None,
        witness: bool = False,
    ) -> None:
        super().__init__()
        self.witness = witness
        self.offer = offer or Offer.net()
        self.fabric = Fabric(forward)
        self.workers = Workers(self.fabric, cpus, mode)
        self.ports = [
            FabricPort(self.fabric.add_port(f"port{i}"), self.workers) for i in range(ports)
        ]
        self._reasons: dict[int, Future[str]] = {}
        self._stack = ExitStack()
        self.workers.start()

    def plug(self, port: int = 0, backend: Backend | None = None) -> socket.socket:
        """A new connection at a port; the front-end's end of its socket."""
        ours, theirs = socket.socketpair()

        async def serve() -> str:
            end = backend or self.ports[port]
            return await Connection(ours, end, self.offer, witness=self.witness).serve()

        self._reasons[port] = self.begin(serve())
        return theirs

    def listen(self, folder: Path) -> list[Path]:
        """A socket for each port, for one front-end after the other."""

        async def run(path: Path, port: FabricPort) -> None:
            async def serve(sock: socket.socket) -> str:
                return await Connection(sock, port, self.offer).serve()

            with Listener(port.name, str(path)) as end:
                await end.run(serve)

        paths = [folder / port.name for port in self.ports]
        for path, port in zip(paths, self.ports, strict=True):
            self.begin(run(path, port))
        return paths

    def vm(self, port: int = 0, **options: Any) -> Vm:
        vm = Vm(self.plug(port), **options)
        self._stack.callback(vm.close)
        return vm

    def reason(self, port: int = 0) -> str:
        """Wait for the connection's end: why."""
        return self._reasons[port].result(PATIENCE_S)

    def connected(self, port: int = 0) -> bool:
        return not self._reasons[port].done()

    def counters(self, port: int = 0) -> dict[str, int]:
        return self.ports[port].port.counters()

    def settle(self) -> None:
        """Wait until the workers have published, and counted, whatever they had in hand."""
        with self.workers.paused():
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        self.workers.stop()
        self._stack.close()


def carry(source: Vm, target: Vm, frames: Sequence[bytes], pair: int = 0) -> list[bytes]:
    """Send frames, by halves of a ring, and take what comes out at the other end."""
    got: list[bytes] = []
    step = min(source.frontend.ring_size, target.frontend.ring_size) // 2
    for start in range(0, len(frames), step):
        part = frames[start : start + step]
        source.send(part, pair)
        got += target.receive(len(part), pair)
    source.all_sent(pair)
    return got


class Flow:
    """Numbered frames from one guest to another without end, sent by a thread of its own.

    with Flow(a, b) as flow: ...; what has come is in `flow.got`, and nothing is under way then.
    """

    def __init__(self, source: Vm, target: Vm | None = None) -> None:
        self.count = 0
        self.got: list[bytes] = []
        self._source, self._target = source, target
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        while not self._stop.is_set():
            self._source.send([frame(self.count)])
            self.count += 1
        self._source.all_sent()

    def take(self, count: int) -> None:
        """Wait for so many more."""
        assert self._target is not None
        new = self._target.receive(count)
        assert len(new) >= count, f"nothing came after {len(self.got + new)} frames"
        self.got += new

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            self._drain()
        self._drain()

    def _drain(self) -> None:
        if self._target is not None:
            self.got += self._target.received()
        os.sched_yield()

    def assert_whole(self) -> None:
        """All came, each once, in order."""
        assert self._target is not None
        self.got += self._target.receive(self.count - len(self.got))
        assert [number_of(data) for data in self.got] == list(range(self.count))


def eventually(holds: Any) -> None:
    """Wait until `holds()` is true, for what has no fd to wait for."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        os.sched_yield()


def closed() -> None:
    """Wait until what front-ends have sent is closed, as far as it is to be: threads do it."""
    for thread in threading.enumerate():
        if thread.name == "vhostfast-closing":
            thread.join(PATIENCE_S)


def readable(fd: int, timeout_s: float = 0) -> bool:
    return bool(select.select([fd], [], [], timeout_s)[0])
