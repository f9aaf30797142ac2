"""Workers: each mode delivers, sleeps where it may, misses no kick, and rests when told."""

import os
import random
import select
import threading

import pytest
from host import Flow, Host, Vm, carry, eventually, frame, number_of

from vhostfast.backend.worker import FabricPort, Workers
from vhostfast.core.fabric import Fabric, Worker
from vhostfast.driver.frontend import FEATURES
from vhostfast.errors import Disconnected, UsageError
from vhostfast.protocol.features import VirtioFeature

MODES = ["poll", "interrupt", "adaptive"]
FRAMES = [frame(i) for i in range(1000)]
EVENT_IDX = {"event_idx": FEATURES, "flags": FEATURES & ~VirtioFeature.EVENT_IDX}
TICKS = os.sysconf("SC_CLK_TCK")


def worker_of(host: Host) -> Worker:
    (worker,) = host.workers._workers
    return worker


def cpu_ticks(name: str) -> int:
    """CPU time of our thread of that name so far."""
    (thread,) = (thread for thread in threading.enumerate() if thread.name == name)
    with open(f"/proc/self/task/{thread.native_id}/stat") as stat:
        return sum(map(int, stat.read().rpartition(")")[2].split()[11:13]))


# --- Modes


@pytest.mark.parametrize("features", EVENT_IDX.values(), ids=EVENT_IDX)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_delivers(mode, features):
    with Host(mode=mode) as host:
        a, b = (host.vm(port, features=features) for port in range(2))
        slept = worker_of(host).sleeps  # while there was no ring
        assert carry(a, b, FRAMES) == FRAMES
        assert carry(b, a, FRAMES) == FRAMES
        assert (worker_of(host).sleeps == slept) == (mode == "poll")
        host.settle()
        busy, packets = host.workers.cycles()
        assert packets == 2000
        assert busy > 0


@pytest.mark.parametrize("features", EVENT_IDX.values(), ids=EVENT_IDX)
@pytest.mark.parametrize("mode", MODES)
def test_no_kick_and_no_call_is_lost(mode, features):
    """One packet at a time: each finds the worker about to sleep, and its guest too."""
    with Host(mode=mode) as host:
        a, b = (host.vm(port, features=features) for port in range(2))
        for number in range(1500):
            a.send([frame(number)])
            assert b.receive(1) == [frame(number)]
            b.send([frame(number)])
            assert a.receive(1) == [frame(number)]


@pytest.mark.parametrize("mode", ["interrupt", "adaptive"])
def test_a_full_receiver_s_kick_wakes_the_worker(mode):
    with Host(mode=mode) as host:
        a, b = host.vm(0), host.vm(1, fill=False)
        worker = worker_of(host)
        for number in range(200):
            slept = worker.sleeps
            a.send([frame(number)])
            if number % 2:  # let it find the ring full, and sleep
                eventually(lambda slept=slept: worker.sleeps > slept)
            b.memory.position = b.frontend._memory_position
            b.post(1)
            head, size = b.wait_used()
            gpa = b._slots.pop((0, head))
            assert number_of(b.memory.read(gpa, size)[12:]) == number


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["interrupt", "adaptive"])
def test_an_idle_worker_sleeps(mode):
    with Host(mode=mode) as host:
        a, b = host.vm(0), host.vm(1)
        for number in range(20):
            slept = worker_of(host).sleeps
            a.send([frame(number)])
            assert b.receive(1) == [frame(number)]
            eventually(lambda slept=slept: worker_of(host).sleeps > slept)
        sleeps, ticks = worker_of(host).sleeps, cpu_ticks("vhostfast-0")
        select.select([], [], [], 0.3)
        assert worker_of(host).sleeps <= sleeps + 1
        assert cpu_ticks("vhostfast-0") - ticks <= 0.3 * TICKS / 3
        a.send([frame(1)])
        assert b.receive(1) == [frame(1)]


# --- Several workers


def test_two_workers_share_receive_rings_and_lose_only_what_they_count():
    """Four guests flood a fifth; frames of each sender stay in order."""
    cpus = sorted(os.sched_getaffinity(0))
    with Host("learn", ports=5, mode="interrupt", cpus=[cpus[0], cpus[-1]]) as host:
        target = host.vm(4, ring_size=1024)
        target.send([frame(0, to=1, sender=9)])  # where 9 is
        target.all_sent()
        senders = [host.vm(port) for port in range(4)]
        for vm in senders:
            vm.received()
        count, got = 3000, []
        threads = [
            threading.Thread(target=flood, args=(vm, number, count))
            for number, vm in enumerate(senders)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            got += target.received()
        host.settle()
        got += target.received()
        lost = host.counters(4)["tx_dropped_full"]
        assert len(got) + lost == 4 * count
        assert len(got) == host.counters(4)["tx_packets"]
        for number in range(4):
            own = [number_of(data) for data in got if data[11] == 20 + number]
            assert own == sorted(set(own))
        assert all(host.counters(port)["rx_packets"] == count for port in range(4))
        assert sum(host.counters(port)["tx_packets"] for port in range(4)) == 0
        assert host.workers.cycles()[1] == 4 * count + 1


def flood(vm: Vm, number: int, count: int) -> None:
    vm.send(frame(i, to=9, sender=20 + number) for i in range(count))
    vm.all_sent()


def test_more_workers_than_rings():
    with Host(cpus=[sorted(os.sched_getaffinity(0))[0]] * 4) as host:
        a = host.vm(0)
        b = host.vm(1)
        assert carry(a, b, FRAMES) == FRAMES
        assert carry(b, a, FRAMES) == FRAMES


# --- Pauses


@pytest.mark.parametrize("mode", MODES)
def test_workers_rest_while_paused(mode):
    """Inside of a pause nothing moves; outside nothing is lost."""
    with Host(mode=mode) as host:
        a, b = host.vm(0), host.vm(1)
        with Flow(a, b) as flow:
            for _ in range(50):
                with host.workers.paused():
                    used = b.receiver().ring.used["idx"]
                    before = host.workers.cycles()
                    for _ in range(random.randrange(50)):
                        os.sched_yield()
                    assert b.receiver().ring.used["idx"] == used
                    assert host.workers.cycles() == before
                flow.take(1)
        flow.assert_whole()


def test_a_pause_ends_even_if_what_is_done_in_it_fails():
    with Host() as host:
        a, b = host.vm(0), host.vm(1)
        with pytest.raises(ZeroDivisionError), host.workers.paused():
            raise ZeroDivisionError
        assert carry(a, b, FRAMES) == FRAMES


class NoMemory:
    """A fabric that can't be laid out."""

    def lay_out(self) -> None:
        raise MemoryError


@pytest.mark.hostile("process", "no memory for a new layout of the workers", "port closes")
def test_a_pause_ends_even_if_there_is_no_memory_for_a_layout():
    with Host(ports=4) as host:
        a, b = host.vm(0), host.vm(1)
        host.workers.fabric = NoMemory()
        c = host.vm(2, start=False)
        with pytest.raises(Disconnected):
            c.start()
        host.workers.fabric = host.fabric
        with pytest.raises(MemoryError):  # leaving pauses as well
            host.reason(2)
        assert carry(a, b, FRAMES) == FRAMES
        assert carry(host.vm(2), host.vm(3), FRAMES) == FRAMES


def test_ports_are_added_and_removed_under_traffic():
    with Host("learn") as host:
        a, b = host.vm(0), host.vm(1)
        b.send([frame(0, to=1, sender=2)])
        assert a.receive(1)
        with Flow(a, b) as flow:
            for number in range(20):
                with host.workers.paused():
                    port = host.fabric.add_port(f"more{number}")
                flow.take(5)
                with host.workers.paused():
                    host.fabric.remove_port(port)
        host.settle()
        flow.got += b.received()
        lost = host.counters(1)["tx_dropped_full"]
        assert len(flow.got) + lost == flow.count


# --- Starts and stops


def test_it_stops_and_starts_again():
    with Host() as host:
        a, b = host.vm(0), host.vm(1)
        for _ in range(20):
            host.workers.stop()
            host.workers.stop()
            a.send(FRAMES[:10])
            assert b.received() == []
            with host.workers.paused():  # of workers that do not run
                pass
            host.workers.start()
            assert b.receive(10) == FRAMES[:10]


def test_ports_before_and_after_the_start():
    fabric = Fabric("patch")
    workers = Workers(fabric)
    first = FabricPort(fabric.add_port("a"), workers)
    workers.start()
    with workers.paused():
        second = FabricPort(fabric.add_port("b"), workers)
    assert (first.name, second.name) == ("a", "b")
    assert first.fault is None
    workers.stop()


def test_pinned_threads_carry_their_number():
    cpus = sorted(os.sched_getaffinity(0))
    fabric = Fabric("patch")
    workers = Workers(fabric, cpus=[cpus[-1]], mode="interrupt")
    workers.start()
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "vhostfast-0")
    eventually(lambda: os.sched_getaffinity(thread.native_id) == {cpus[-1]})
    assert os.sched_getaffinity(0) == set(cpus)
    workers.stop()


def test_a_cpu_that_is_not_there():
    fabric = Fabric("patch")
    cpus = sorted(os.sched_getaffinity(0))
    with pytest.raises(UsageError, match=r"--cpus: there is no CPU 4096 .* it has 0"):
        Workers(fabric, cpus=[cpus[0], 4096])
    with pytest.raises(ValueError, match="mode is 'hard'"):
        Workers(fabric, mode="hard")
