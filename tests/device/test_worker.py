"""A device's thread: it sleeps until it is kicked, holds nobody up, and gives up a bad guest."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from host import PATIENCE_S, Host, Vm, carry, eventually, frame, number_of

from vhostfast.device.net import NetDevice, Packet
from vhostfast.device.worker import DeviceWorker
from vhostfast.driver import GuestMemory
from vhostfast.driver.frontend import FEATURES
from vhostfast.protocol.features import VirtioFeature
from vhostfast.protocol.message import Request

EVENT_IDX = {"event_idx": FEATURES, "flags": FEATURES & ~VirtioFeature.EVENT_IDX}


class Echo(NetDevice):
    def receive(self, packets: list[Packet]) -> None:
        self.send(packets)


class Station:
    """A device on its worker, and front-ends that come to it."""

    def __init__(self, device: NetDevice) -> None:
        self.device = device
        self.worker = DeviceWorker("device", device)
        self.host = Host(ports=1)

    def vm(self, **options: object) -> Vm:
        vm = Vm(self.host.plug(0, self.worker), **options)
        self.host._stack.callback(vm.close)
        return vm

    def reason(self) -> str:
        return self.host.reason(0)


@contextmanager
def station(device: NetDevice) -> Iterator[Station]:
    result = Station(device)
    with result.host:
        yield result
    result.worker.close()


@pytest.mark.parametrize("features", EVENT_IDX.values(), ids=EVENT_IDX)
def test_no_kick_is_lost(features):
    with station(Echo()) as here:
        vm = here.vm(features=features)
        for number in range(1000):
            vm.send([frame(number)])
            assert vm.receive(1) == [frame(number)]


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads take turns at any moment, not only when one waits."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("eager_threads")
def test_what_comes_while_it_goes_to_sleep_is_seen():
    """The second packet of each round comes without a kick, sooner or later after the first."""
    with station(NetDevice()) as here:  # which sends nothing, for that would wake it too
        vm = here.vm()
        for number in range(1500):
            vm.send([frame(number)])
            for _ in range(number % 40):
                os.sched_yield()
            vm.send([frame(number)])
            vm.all_sent()


def test_bursts_come_back_in_order():
    frames = [frame(i, size=60 + i % 1400) for i in range(2000)]
    with station(Echo()) as here:
        vm = here.vm()
        assert carry(vm, vm, frames) == frames
        counters = here.device.counters
        assert counters["rx_packets"] == counters["tx_packets"] == 2000
        assert counters["connections"] == 1


def test_queue_pairs_come_in_and_all_goes_out_by_the_first():
    with station(Echo()) as here:
        vm = here.vm(queue_pairs=3)
        for pair in range(3):
            vm.send([frame(pair)], pair)
            assert vm.receive(1, 0) == [frame(pair)]


def test_what_the_guest_has_no_buffers_for_waits():
    with station(Echo()) as here:
        vm = here.vm(fill=False)
        vm.send(frame(i) for i in range(64))
        vm.all_sent()
        for number in range(64):  # each wakes the device by the receive ring's kick
            vm.post(1)
            head, size = vm.wait_used()
            data = vm.memory.read(vm._slots.pop((0, head)), size)
            assert number_of(data[12:]) == number


def test_rings_without_a_kick_are_polled():
    with station(Echo()) as here:
        vm = here.vm()
        for vring in vm.frontend.rings:
            vring.ring.attach(-1, vring.call_fd)
            vm.frontend.tell_file(Request.SET_VRING_KICK, vring.index, -1)
        vm.frontend.fence()
        for number in range(20):
            vm.send([frame(number)])
            assert vm.receive(1) == [frame(number)]


class Slow(NetDevice):
    """Its receive lasts until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.go_on = threading.Event(), threading.Event()

    def receive(self, packets: list[Packet]) -> None:
        self.entered.set()
        assert self.go_on.wait(PATIENCE_S)
        self.send(packets)


def test_a_slow_device_does_not_hold_up_a_message():
    with station(Slow()) as here:
        vm = here.vm()
        vm.send([frame(1)])
        assert here.device.entered.wait(PATIENCE_S)
        assert vm.frontend.stop() == [0, 1]
        before = vm.picture()
        here.device.go_on.set()
        eventually(lambda: len(here.device.backlog) == 1)
        assert vm.picture() == before, "written after the stop"
        vm.frontend.resume()
        assert vm.receive(1) == [frame(1)]


def test_nothing_is_written_once_the_rings_have_stopped():
    with station(Echo()) as here:
        for _ in range(20):
            vm = here.vm()
            vm.send(frame(i) for i in range(30))
            vm.frontend.stop()
            before = vm.picture()
            here.device.send([np.zeros(60, np.uint8)] * 10)
            here.host.fence()
            assert vm.picture() == before
            vm.close()
            here.reason()


def test_what_waited_for_a_guest_is_not_for_the_next():
    with station(NetDevice()) as here:
        vm = here.vm(fill=False)
        here.device.send([np.frombuffer(frame(1), np.uint8)] * 10)
        vm.close()
        here.reason()
        vm = here.vm()
        here.device.send([np.frombuffer(frame(2), np.uint8)])
        assert vm.receive(1) == [frame(2)]
        assert here.device.counters["tx_dropped_full"] == 10


class Failing(Echo):
    """Fails at frame 13."""

    def __init__(self) -> None:
        super().__init__()
        self.failed, self.called_again = False, threading.Event()

    def receive(self, packets: list[Packet]) -> None:
        if self.failed:
            self.called_again.set()
        self.failed = any(number_of(bytes(packet)) == 13 for packet in packets)
        assert not self.failed, "unlucky"
        super().receive(packets)


def test_a_device_that_fails_closes_its_port_and_serves_the_next_guest(caplog):
    with station(Failing()) as here:
        for _ in range(3):
            vm = here.vm()
            vm.send([frame(1)])
            assert vm.receive(1) == [frame(1)]
            vm.send([frame(13)])
            assert here.reason().startswith("the device failed: AssertionError('unlucky")
            assert here.device.counters["rx_packets"] % 2 == 0
            vm.close()
        assert here.device.counters["faults"] == 3
        logged = [record for record in caplog.records if record.exc_info]
        assert [record.message for record in logged] == ["device: the device failed"] * 3
        caplog.clear()


def test_a_device_that_failed_is_handed_no_more(caplog):
    with station(Failing()) as here:
        vm = here.vm(ring_size=512)
        go_on = threading.Event()
        here.host.loop.call_soon_threadsafe(go_on.wait, PATIENCE_S)  # the connection can't end yet
        vm.send(frame(13) for _ in range(500))
        called_again = here.device.called_again.wait(0.05)
        go_on.set()
        here.reason()
        assert not called_again
    caplog.clear()  # of tracebacks, and all that they hold


@pytest.mark.hostile("rings", "a broken ring of a device in Python", "port closes")
@pytest.mark.parametrize("ring", [0, 1])
def test_a_guest_that_breaks_its_ring_is_given_up(ring):
    with station(Echo()) as here:
        vm = here.vm(fill=False)
        driver = vm.frontend.rings[ring].ring
        driver.add([(1 << 50, 64, ring == 0)])
        driver.kick(force=True)
        if ring == 0:
            here.device.send([np.zeros(60, np.uint8)])
        assert here.reason() == "the guest broke its ring: a buffer outside of guest memory"
        assert here.device.counters["faults"] == 1
        vm = here.vm()
        vm.send([frame(1)])
        assert vm.receive(1)[-1] == frame(1)


@pytest.mark.parametrize("ring", [0, 1])
@pytest.mark.parametrize("region", [0, 1], ids=["rings", "buffers"])
def test_a_guest_whose_memory_vanishes_is_given_up(ring, region):
    with station(Echo()) as here:
        regions = ((0, 0x10000), (0x100000, 0x100000))
        memory = GuestMemory(regions, separate=True, sealed=False)
        vm = here.vm(memory=memory, start=False)
        vm.start(fill=False)
        memory.position = 0x100000
        vm.post(8)
        vm.sender().ring.add([(memory.take(64), 64, False)])
        os.ftruncate(memory.fds[region], 0)
        if ring == 0:
            here.device.send([np.zeros(60, np.uint8)])
        os.eventfd_write(vm.sender().kick_fd, 1)
        assert here.reason().startswith("guest memory is gone: its file was cut short")
        assert here.device.counters["faults"] == 1
        vm = here.vm()
        vm.send([frame(1)])
        assert vm.receive(1)[-1] == frame(1)


def test_close_stops_the_thread():
    device = NetDevice()
    worker = DeviceWorker("device", device)
    assert "vhostfast-device" in {thread.name for thread in threading.enumerate()}
    fds = len(os.listdir("/proc/self/fd"))
    worker.close()
    assert "vhostfast-device" not in {thread.name for thread in threading.enumerate()}
    assert len(os.listdir("/proc/self/fd")) == fds - 2


@pytest.mark.hostile(
    "packets", "a ring full of what is no packet, for a device in Python", "dropped and counted"
)
def test_what_is_no_packet_holds_nothing_up():
    """Nobody kicks for what comes behind it: a full ring is looked at in several turns."""
    with station(Echo()) as here:
        vm = here.vm(ring_size=256)
        vm.send([b"short"] * 255 + [frame(1)])
        assert vm.receive(1) == [frame(1)]
        assert here.device.counters["rx_dropped_malformed"] == 255
        assert here.device.counters["rx_packets"] == 1


def test_a_packet_that_no_buffer_can_hold_is_dropped_and_counted():
    features = FEATURES & ~VirtioFeature.MRG_RXBUF
    with station(Echo()) as here:
        vm = here.vm(features=features)
        here.device.send([np.zeros(3000, np.uint8), np.frombuffer(frame(1), np.uint8)])
        assert vm.receive(1) == [frame(1)]
        assert here.device.counters["tx_dropped_too_big"] == 1
        assert here.device.counters["tx_packets"] == 1
