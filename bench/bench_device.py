"""A device in Python: bursts of 64 packets between a guest's rings and numpy arrays.

The null row is a device that looks at rings on which nothing waits.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from guest import Guest
from yard import mapped

from vhostfast.core.ring import Ring
from vhostfast.device.net import NetDevice, Packet
from vhostfast.device.worker import DeviceWorker

pytestmark = pytest.mark.benchmark(group="device")
BURST = 64
HEADER = bytes(12)
FRAME = b"\2\0\0\0\0\1\2\0\0\0\0\2\x88\xb5" + bytes(range(50))
SIZE = len(HEADER + FRAME)
PACKETS = [np.frombuffer(FRAME, np.uint8)] * BURST
PATIENCE_S = 5.0
ROUNDS = 300


class Echo(NetDevice):
    def receive(self, packets: list[Packet]) -> None:
        self.send(packets)


class Scene:
    """A guest with what it sends and room for as much, and its rings as a device has them."""

    def __init__(self, stack: ExitStack) -> None:
        self.guest = stack.enter_context(Guest(((0, 16 << 20),)))
        self.vrings = [self.guest.vring(index=index, event_idx=True) for index in (0, 1)]
        self.to_guest, self.from_guest = (vring.ring for vring in self.vrings)
        self.rings = [Ring(0), Ring(1)]
        memory = mapped(self.guest)
        for ring, vring in zip(self.rings, self.vrings, strict=True):
            addr = vring.addresses()
            ring.start(
                memory, size=vring.size, desc=addr.desc, used=addr.used, avail=addr.avail,
                event_idx=True, call_fd=vring.call_fd, kick_fd=vring.kick_fd,
            )  # fmt: skip
        self.sent = [self.guest.store(HEADER + FRAME, 64) for _ in range(BURST)]
        self.room = [self.guest.blank(SIZE, 64) for _ in range(BURST)]

    def post(self) -> None:
        """Take back the buffers for a burst, blank them and offer them anew."""
        self.to_guest.take_all()
        for gpa in self.room:
            self.guest.memory.write(gpa, bytes(SIZE))
            self.to_guest.add([(gpa, SIZE, True)], publish=False)
        self.to_guest.publish()

    def send(self) -> None:
        """Take back what was sent and send it again."""
        self.from_guest.take_all()
        for gpa in self.sent:
            self.from_guest.add([(gpa, SIZE, False)], publish=False)
        self.from_guest.publish()

    def post_and_send(self) -> None:
        self.post()
        self.send()

    def received(self) -> list[bytes]:
        """The frames in the guest's memory."""
        return [self.guest.memory.read(gpa, SIZE)[len(HEADER) :] for gpa in self.room]

    def round_trip(self) -> int:
        """Kick, and wait until the burst has come back."""
        self.from_guest.kick(force=True)
        used = len(self.to_guest.take_all())
        while used < BURST:
            if not self.to_guest.want_calls() and not self.to_guest.wait_call(PATIENCE_S):
                break
            used += len(self.to_guest.take_all())
        return used


@pytest.fixture
def scene() -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(stack)


def test_null(benchmark, scene):
    assert benchmark(lambda: [*scene.rings[1].receive(), scene.rings[0].send([])]) == [0]


def test_receive(benchmark, scene):
    got = benchmark.pedantic(scene.rings[1].receive, setup=scene.send, rounds=ROUNDS)
    assert [packet.tobytes() for packet in got] == [FRAME] * BURST


def test_send(benchmark, scene):
    sent = benchmark.pedantic(lambda: scene.rings[0].send(PACKETS), setup=scene.post, rounds=ROUNDS)
    assert sent == BURST
    assert scene.received() == [FRAME] * BURST


def test_echo(benchmark, scene):
    """Through the device's own thread: kick, wake up, `receive`, `send`, call."""
    worker = DeviceWorker("echo", Echo())
    with worker.paused():
        for ring in scene.rings:
            worker.attach(ring)
    try:
        got = benchmark.pedantic(scene.round_trip, setup=scene.post_and_send, rounds=ROUNDS)
    finally:
        with worker.paused():
            for ring in scene.rings:
                worker.detach(ring)
        worker.close()
    assert got == BURST
    assert scene.received() == [FRAME] * BURST
