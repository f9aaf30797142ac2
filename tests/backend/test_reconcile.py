"""The world follows the record: whatever a front-end says, in whatever order, under traffic."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from random import Random

import pytest
from host import BY_TABLE, Flow, Host, carry, eventually, frame, number_of, readable
from logfile import LogFile

from vhostfast.backend import reconcile
from vhostfast.backend.reconcile import shape_of
from vhostfast.backend.worker import FabricPort, Workers
from vhostfast.core.fabric import Port
from vhostfast.driver import Frontend, GuestMemory
from vhostfast.driver.frontend import FEATURES
from vhostfast.errors import ProtocolError
from vhostfast.protocol.features import Offer, VirtioFeature
from vhostfast.protocol.message import (
    LOG_PAGE,
    U64,
    MemoryTable,
    Region,
    Request,
    VringAddr,
    VringBase,
    VringEnable,
    VringSize,
    VringState,
)
from vhostfast.protocol.session import Session, Vring

FRAMES = [frame(i) for i in range(100)]


def clear(fd: int) -> None:
    """Forget the signals that have come so far."""
    with suppress(BlockingIOError):
        os.eventfd_read(fd)


# --- What a ring is

V = VirtioFeature
SENT, RECEIVED = VirtioFeature(0x3801), VirtioFeature(0x382)


@pytest.mark.parametrize(
    ("features", "received", "sent"),
    [
        (V(0), 0, 0),
        (V.CSUM, 0, 1),
        (V.GUEST_CSUM, 1, 0),
        (V.CSUM | V.HOST_TSO4, 0, 3),
        (V.GUEST_CSUM | V.GUEST_TSO6 | V.CSUM, 5, 1),
        (V.GUEST_CSUM | V.GUEST_TSO4 | V.GUEST_ECN, 11, 0),
        (SENT, 0, 15),
        (SENT | RECEIVED, 15, 15),
        (SENT & ~V.CSUM | RECEIVED, 15, 0),  # without the checksum the others count for nothing
        (SENT | RECEIVED & ~V.GUEST_CSUM, 0, 15),
    ],
)
def test_offloads_are_those_of_the_rings_direction(features, received, sent):
    session = Session(Offer.net(), features=features)
    shapes = [shape_of(session, Vring(index), VringAddr(index, 0, 0, 0, 0, 0)) for index in (2, 3)]
    assert [shape.offloads for shape in shapes] == [received, sent]


# --- When a ring runs


def configuration(frontend: Frontend) -> list[Callable[[], object]]:
    """All that two rings need to run, a call a message."""
    steps: list[Callable[[], object]] = [frontend.tell_memory]

    def add(request: Request, payload: object) -> None:
        steps.append(lambda: frontend.request(request, payload))

    for vring in frontend.rings:
        add(Request.SET_VRING_NUM, VringSize(vring.index, vring.size))
        add(Request.SET_VRING_BASE, VringBase(vring.index, 0))
        add(Request.SET_VRING_ADDR, vring.addresses())
        add(Request.SET_VRING_ENABLE, VringEnable(vring.index, 1))
        for request, fd in (
            (Request.SET_VRING_KICK, vring.kick_fd),
            (Request.SET_VRING_CALL, vring.call_fd),
        ):
            steps.append(lambda r=request, i=vring.index, fd=fd: frontend.tell_file(r, i, fd))
    return steps


def test_any_order_starts_the_rings_and_they_are_looked_at_without_a_kick():
    with Host() as host:
        neighbour = host.vm(1)
        for seed in range(60):
            vm = host.vm(0, start=False, sequence="virtio-user")
            vm.frontend.request(Request.SET_FEATURES, U64(vm.frontend.features))
            vm.sender().ring.attach(-1, vm.sender().call_fd)
            vm.send([frame(seed)])
            steps = configuration(vm.frontend)
            Random(seed).shuffle(steps)
            for step in steps:
                step()
            assert neighbour.receive(1) == [frame(seed)], f"seed {seed}"
            vm.frontend.fence()
            vm.post(4)
            neighbour.send([frame(seed)])
            assert vm.receive(1) == [frame(seed)], f"seed {seed}"
            vm.close()
            host.reason(0)


def test_a_ring_waits_for_the_last_of_them():
    with Host() as host:
        for last in range(6):
            vm = host.vm(0, start=False, sequence="virtio-user")
            needed = configuration(vm.frontend)[:6]  # memory, and ring 0's all but its call
            needed.append(needed.pop(last))
            for step in needed[:-1]:
                step()
            vm.frontend.fence()
            assert not host.ports[0].port.rings
            needed[-1]()
            vm.frontend.fence()
            assert list(host.ports[0].port.rings) == [0]
            vm.close()
            host.reason(0)


@pytest.mark.parametrize("sequence", ["qemu", "virtio-user"])
@pytest.mark.parametrize("base", [0, 65500])
def test_both_sequences_and_any_base(sequence, base):
    with Host() as host:
        a, b = (host.vm(port, start=False, sequence=sequence) for port in range(2))
        a.start(base=base)
        b.start(base=base)
        assert carry(a, b, FRAMES) == FRAMES
        assert carry(b, a, FRAMES) == FRAMES
        assert a.frontend.stop() == b.frontend.stop() == 2 * [base + 100 & 0xFFFF]
        a.start()
        b.start()
        assert carry(a, b, FRAMES) == FRAMES


@pytest.mark.hostile("rings", "buffers on offer in a ring that is disabled", "no effect")
def test_a_disabled_ring_is_left_alone():
    with Host() as host:
        a, b = host.vm(0), host.vm(1)
        a.frontend.enable(0, False)
        before = a.picture()
        a.sender().ring.attach(-1, -1)
        b.send(FRAMES[:20])  # for a ring that does not run: dropped
        b.all_sent()
        assert a.picture() == before
        assert host.counters(1)["rx_dropped_no_receiver"] == 20
        a.send(FRAMES[:5])
        assert b.receive(1, timeout_s=0.01) == []
        a.frontend.enable(0, True)
        assert b.receive(5) == FRAMES[:5]


def test_without_protocol_features_rings_begin_enabled():
    with Host() as host:
        features = FEATURES & ~VirtioFeature.PROTOCOL_FEATURES
        a, b = (host.vm(port, features=features) for port in range(2))
        assert a.frontend.protocol_features == 0
        assert carry(a, b, FRAMES) == FRAMES


def test_with_protocol_features_rings_wait_to_be_enabled():
    with Host() as host:
        a, b = host.vm(0, start=False, sequence="virtio-user"), host.vm(1)
        a.frontend.enabled_pairs = 0
        a.start()
        a.send(FRAMES[:3])
        assert b.receive(1, timeout_s=0.01) == []
        a.frontend.enable(0)
        assert b.receive(3) == FRAMES[:3]


def test_four_queue_pairs_each_in_order():
    with Host() as host:
        a, b = (host.vm(port, start=False, queue_pairs=4) for port in range(2))
        for vm in (a, b):
            vm.start(fill=False)
            for pair in range(4):
                vm.post(32, pair)
        for pair in range(4):
            a.send([frame(100 * pair + i) for i in range(32)], pair)
        for pair in range(4):
            assert [number_of(data) for data in b.receive(32, pair)] == [
                100 * pair + i for i in range(32)
            ]
        b.frontend.enable(3, False)  # three are left: what came on 3 goes to 0
        a.send([frame(1)], 3)
        assert b.receive(1, 0) == [frame(1)]


def test_a_message_about_a_ring_costs_the_same_among_many(monkeypatch):
    """Or a guest of many queue pairs uses up its share of the control plane by one migration."""
    looks = []
    monkeypatch.setattr(
        reconcile, "shape_of", lambda *given: looks.append(given) or shape_of(*given)
    )
    counts = []
    with Host() as host, LogFile(1 << 20) as log:
        for port, pairs in enumerate((2, 32)):
            looks.clear()
            vm = host.vm(port, start=False, queue_pairs=pairs)
            vm.start(fill=False)
            log.begin(vm.frontend)
            vm.frontend.stop()
            assert host.ports[port].port.rings == {}
            counts.append(len(looks) / pairs)
    assert counts[1] <= counts[0] < 40


def test_an_unknown_ring_has_base_0():
    with Host() as host:
        vm = host.vm(0)
        for index in (77, 255):
            reply = vm.frontend.request(Request.GET_VRING_BASE, VringState(index, 12345))
            assert reply == VringState(index, 0)


def test_after_reset_device_a_ring_waits_for_all_to_be_told_again():
    """Its old base is forgotten with the rest: SET_VRING_BASE may come last."""
    with Host() as host:
        a, b = host.vm(0), host.vm(1)
        a.frontend.request(Request.RESET_DEVICE, ack=True)
        frontend = a.frontend
        frontend.request(Request.SET_FEATURES, U64(frontend.features), ack=True)
        for vring in frontend.rings:
            vring.ring.reset()
            frontend.request(Request.SET_VRING_ENABLE, VringEnable(vring.index, 1))
            frontend.request(Request.SET_VRING_NUM, VringSize(vring.index, vring.size))
            frontend.request(Request.SET_VRING_ADDR, vring.addresses())
            frontend.tell_file(Request.SET_VRING_KICK, vring.index, vring.kick_fd)
            assert vring.index not in host.ports[0].port.rings
            frontend.request(Request.SET_VRING_BASE, VringBase(vring.index, 0), ack=True)
        a.send(FRAMES[:3])
        assert b.receive(3) == FRAMES[:3]


# --- When a ring has stopped, and where it goes on

STOPS: dict[str, Callable[[Frontend], object]] = {
    "GET_VRING_BASE": lambda frontend: frontend.stop_ring(frontend.receive_ring()),
    "RESET_OWNER": lambda frontend: frontend.request(Request.RESET_OWNER, ack=True),
    "RESET_DEVICE": lambda frontend: frontend.request(Request.RESET_DEVICE, ack=True),
    "SET_VRING_ENABLE 0": lambda frontend: frontend.enable(0, False),
    "no memory": lambda frontend: frontend.request(
        Request.SET_MEM_TABLE,
        MemoryTable((Region(1 << 40, 4096, 1 << 41, 0),)),
        frontend.memory.fds[:1],
        ack=True,
    ),
}


@pytest.mark.hostile(
    "messages", "a stop or reset amid traffic", "no effect: not a byte after the answer"
)
@pytest.mark.hostile("rings", "buffers on offer after GET_VRING_BASE or another stop", "no effect")
@pytest.mark.parametrize("stop", STOPS)
def test_not_a_byte_is_written_once_it_is_answered(stop):
    for _ in range(5):
        with Host(mode="poll") as host:
            a, b = host.vm(0), host.vm(1, ring_size=1024)

            def lost() -> int:
                return host.counters(0)["rx_dropped_no_receiver"]

            with Flow(a):
                while b.receiver().ring.used["idx"] < 10:
                    os.sched_yield()
                STOPS[stop](b.frontend)
                before = b.picture()
                for vring in b.frontend.rings:
                    clear(vring.call_fd)
                eventually(lambda: lost() > 20)
            assert b.picture() == before
            assert not any(readable(vring.call_fd) for vring in b.frontend.rings)


def test_it_goes_on_at_used_idx_whatever_base_says(caplog):
    caplog.set_level(logging.INFO, "vhostfast")
    with Host() as host:
        a, b = host.vm(0), host.vm(1)
        assert carry(a, b, FRAMES) == FRAMES
        assert a.frontend.stop() == [0, 100]
        a.frontend.rings[0].base, a.frontend.rings[1].base = 0, 7
        caplog.clear()
        a.frontend.resume()
        assert carry(a, b, FRAMES) == FRAMES
        odd = [message for message in caplog.messages if "going on there" in message]
        assert odd == ["port0: vring 1: base 7 was given, used.idx is 100: going on there"]


def test_stop_and_resume_under_traffic_loses_nothing():
    with Host() as host:
        a, b = host.vm(0), host.vm(1)
        frontend, vring = a.frontend, a.sender()
        with Flow(a, b) as flow:
            for _ in range(30):
                flow.take(10)
                assert frontend.stop_ring(vring) == vring.ring.used["idx"]
                frontend.tell_ring(vring)
                frontend.tell_file(Request.SET_VRING_KICK, 1, vring.kick_fd)
                frontend.tell_file(Request.SET_VRING_CALL, 1, vring.call_fd)
        flow.assert_whole()


# --- Memory


def maps_of(memory: GuestMemory) -> int:
    """How often the memory's file is mapped in this process."""
    inode = str(os.fstat(memory.fds[0]).st_ino)
    with open("/proc/self/maps") as maps:
        return sum(line.split()[4] == inode for line in maps)


def cut(memory: GuestMemory, at: int) -> MemoryTable:
    """The same memory, its last region told as two."""
    *others, last = memory.regions
    rest = Region(last.gpa + at, last.size - at, last.uva + at, last.mmap_offset + at)
    return MemoryTable((*others, Region(last.gpa, at, last.uva, last.mmap_offset), rest))


@pytest.mark.hostile("memory", "a new table amid traffic", "delivered")
def test_memory_is_replaced_under_traffic_and_nothing_is_lost():
    with Host() as host:
        a, b = (host.vm(port, protocol_features=BY_TABLE) for port in (0, 1))
        maps = maps_of(a.memory), maps_of(b.memory)
        with Flow(a, b) as flow:
            for i in range(40):
                flow.take(10)
                for vm in (a, b):
                    table = cut(vm.memory, 0x90800 + 0x1001 * i)
                    fds = [*vm.memory.fds, vm.memory.fds[-1]]
                    vm.frontend.request(Request.SET_MEM_TABLE, table, fds, ack=True)
                    assert maps_of(vm.memory) == maps[vm is b], "the old map is still there"
        flow.assert_whole()
        for vm in (a, b):
            vm.frontend.tell_memory()
        assert (maps_of(a.memory), maps_of(b.memory)) == maps


def test_the_same_table_again_keeps_the_map():
    with Host() as host:
        a, b = host.vm(0), host.vm(1)
        before = host.ports[0].port.rings[1].memory
        clear(a.sender().call_fd)
        a.frontend.tell_memory()
        assert host.ports[0].port.rings[1].memory is before
        table = cut(a.memory, 0x90800)
        a.frontend.request(
            Request.SET_MEM_TABLE, table, [*a.memory.fds, a.memory.fds[-1]], ack=True
        )
        assert host.ports[0].port.rings[1].memory is not before
        assert not readable(a.sender().call_fd), "only a new call is signalled"
        assert carry(a, b, FRAMES) == FRAMES


Pause = AbstractContextManager[None]


class Watched(FabricPort):
    """`pause` is what its pauses are: told of the port, and of who stops the workers."""

    def __init__(self, host: Host, index: int, pause: Callable[[Port, Workers], Pause]) -> None:
        super().__init__(host.ports[index].port, host.workers)
        self.paused = partial(pause, self.port, host.workers)


def test_old_memory_is_unmapped_after_the_pause():
    """It can take milliseconds, and the other ports wait."""
    seen: list[int] = []

    @contextmanager
    def pause(_: Port, workers: Workers) -> Iterator[None]:
        with workers.paused():
            yield
            seen.append(maps_of(vm.memory))

    with Host() as host:
        host.ports[0] = Watched(host, 0, pause)
        vm = host.vm(0, start=False)
        vm.start()
        seen.clear()
        fds = [*vm.memory.fds, vm.memory.fds[-1]]
        vm.frontend.request(Request.SET_MEM_TABLE, cut(vm.memory, 0x90800), fds, ack=True)
        own, before, after = 1, 2, 2  # side by side, two pieces are one map to the kernel
        assert seen == [own + before + after]
        assert maps_of(vm.memory) == own + after


@pytest.mark.hostile("memory", "a new table in which one of two rings is misaligned", "port closes")
def test_where_one_ring_cannot_move_none_runs():
    """Half of them in the new memory, which then vanished, had ended the process."""
    left: list[set[int]] = []

    @contextmanager
    def pause(port: Port, workers: Workers) -> Iterator[None]:
        try:
            with workers.paused():
                yield
        except ProtocolError:
            left.append(set(port.rings))
            raise

    size = 1 << 20
    with Host("learn", ports=3) as host, GuestMemory(((0, size + LOG_PAGE),)) as new:
        host.ports[0] = Watched(host, 0, pause)
        vm, a, b = (host.vm(i, regions=((0, size),), protocol_features=BY_TABLE) for i in range(3))
        (old,) = vm.memory.regions
        first, second = (vm.frontend.addresses(vring) for vring in vm.frontend.rings)
        at = (second.desc - old.uva) // LOG_PAGE * LOG_PAGE
        assert first.used < old.uva + at < second.desc < second.used
        low, high = cut(vm.memory, at).regions
        table = MemoryTable((low, replace(high, mmap_offset=at + 8)))
        vm.frontend.request(Request.SET_MEM_TABLE, table, [new.fds[0]] * 2)
        assert "vring 1: desc is" in host.reason(0)
        assert left == [set()]
        assert carry(a, b, FRAMES) == FRAMES


@pytest.mark.hostile("memory", "the same table of another file", "delivered")
def test_the_same_table_of_another_file_is_another_memory():
    with (
        Host() as host,
        GuestMemory([(0, 0x100000)]) as first,
        GuestMemory([(0, 0x100000)]) as next_,
    ):
        vm = host.vm(0, memory=first, ring_size=16, fill=False)
        next_.view(0, 0x100000)[:] = first.view(0, 0x100000)  # as the kernel does on a migration
        next_.write(0xFFFFF, b"\x77")
        vm.frontend.request(Request.SET_MEM_TABLE, next_.table, next_.fds, ack=True)
        assert host.ports[0].port.rings[0].memory.read(0xFFFFF, 1)[0] == 0x77
        vm.frontend.close()
        host.reason(0)


# --- Kick and call


@pytest.mark.hostile("fds", "a new kick for a running ring", "delivered")
@pytest.mark.parametrize("mode", ["interrupt", "poll"])
def test_a_new_kick_on_a_running_ring(mode):
    with Host(mode=mode) as host:
        a, b = host.vm(0), host.vm(1)
        old = a.sender().kick_fd
        for _ in range(3):
            new = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            a.frontend.tell_file(Request.SET_VRING_KICK, 1, new)
            a.frontend.fence()
            a.sender().ring.attach(new, a.sender().call_fd)
            assert carry(a, b, FRAMES) == FRAMES
            os.close(new)
        a.sender().ring.attach(old, a.sender().call_fd)


def test_a_new_call_on_a_running_ring_is_signalled_once():
    with Host() as host:
        a, b = host.vm(0), host.vm(1)
        assert carry(a, b, FRAMES) == FRAMES
        new = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        clear(b.receiver().call_fd)
        b.frontend.tell_file(Request.SET_VRING_CALL, 0, new)
        b.frontend.fence()
        assert os.eventfd_read(new) == 1
        b.receiver().ring.attach(b.receiver().kick_fd, new)
        assert carry(a, b, FRAMES) == FRAMES
        assert not readable(b.receiver().call_fd), "the old one is signalled still"
        b.receiver().ring.attach(-1, -1)
        os.close(new)


@pytest.mark.hostile("fds", "NOFD: rings without call and kick", "delivered")
@pytest.mark.hostile("rings", "no kick at all: polled", "delivered")
@pytest.mark.parametrize("mode", ["poll", "interrupt", "adaptive"])
def test_rings_without_call_and_without_kick(mode):
    """No kick means that we have to poll, whatever the mode."""
    with Host(mode=mode) as host:
        a, b = host.vm(0, start=False), host.vm(1)
        for vring in a.frontend.rings:
            vring.ring.attach(-1, -1)
        a.start()
        for vring in a.frontend.rings:
            a.frontend.tell_file(Request.SET_VRING_KICK, vring.index, -1)
            a.frontend.tell_file(Request.SET_VRING_CALL, vring.index, -1)
        a.frontend.fence()
        for vring in a.frontend.rings:
            clear(vring.call_fd)
        for number in range(20):
            a.send([frame(number)])
            assert b.receive(1) == [frame(number)]
            b.send([frame(number)])
            eventually(lambda: a.receiver().ring.used["idx"] > number)  # noqa: B023
        assert len(a.received()) == 20
        assert not any(readable(vring.call_fd) for vring in a.frontend.rings)
