"""What a connection survives, and what ends it: always with a reason, and at nobody else's cost."""

import errno
import logging
import os
import resource
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
from host import PATIENCE_S, Flow, Host, carry, closed, frame, mac

from vhostfast.backend.worker import FabricPort
from vhostfast.core.ring import Ring
from vhostfast.driver.frontend import FEATURES
from vhostfast.driver.wire import Wire
from vhostfast.errors import Disconnected, ProtocolError
from vhostfast.protocol.features import Offer, VirtioFeature
from vhostfast.protocol.message import (
    U64,
    Mac,
    MemoryTable,
    Region,
    Request,
    VringAddr,
    VringState,
    encode,
)

FRAMES = [frame(i) for i in range(100)]
FOUR_KIB = Region(0, 4096, 1 << 40, 0)


def open_fds() -> int:
    closed()
    return len(os.listdir("/proc/self/fd"))


def _memfd(size: int) -> int:
    fd = os.memfd_create("memory")
    os.ftruncate(fd, size)
    return fd


@pytest.mark.parametrize("need_reply", [False, True])
def test_without_reply_ack_nothing_is_acknowledged(need_reply):
    """Not even where it is asked for: the front-end would take it for another's answer."""
    with Host() as host:
        sock = host.plug(0)
        sock.settimeout(PATIENCE_S)
        sock.send(encode(Request.SET_OWNER, need_reply=need_reply) + encode(Request.GET_FEATURES))
        answer = encode(Request.GET_FEATURES, U64(host.offer.features), reply=True)
        assert sock.recv(100) == answer
        sock.send(encode(Request.SET_FEATURES, U64(1 << 10), need_reply=need_reply))
        assert sock.recv(100) == b""
        assert "not offered" in host.reason(0)
        sock.close()


@pytest.mark.hostile("memory", "more memory than there are addresses", "port closes")
def test_memory_that_is_too_large_to_map():
    with Host(offer=Offer.net(memory_max=1 << 48)) as host:
        vm = host.vm(0)
        fd = _memfd(1 << 47)
        with pytest.raises(ProtocolError, match="refused"):
            vm.frontend.request(
                Request.SET_MEM_TABLE, MemoryTable((Region(0, 1 << 47, 0, 0),)), [fd], ack=True
            )
        assert "guest memory: mmap is Cannot allocate memory" in host.reason(0)
        os.close(fd)


@pytest.mark.hostile("rings", "areas half outside of a region", "no effect: it waits")
@pytest.mark.parametrize("field", ["desc", "avail", "used"])
def test_a_ring_that_lies_in_no_region_waits(field):
    """Its memory may be told later; half of it is not enough."""
    with Host() as host:
        vm = host.vm(0, start=False)
        vm.start()
        vring = vm.sender()
        vm.frontend.stop_ring(vring)
        addr = vring.addresses()
        last = vm.memory.regions[-1]
        values = {"desc": addr.desc, "avail": addr.avail, "used": addr.used}
        values[field] = last.uva + last.size - 16
        bad = VringAddr(1, 0, values["desc"], values["used"], values["avail"], 0)
        vm.frontend.request(Request.SET_VRING_ADDR, bad, ack=True)
        vm.frontend.tell_file(Request.SET_VRING_KICK, 1, vring.kick_fd)
        vm.frontend.fence()
        assert list(host.ports[0].port.rings) == [0]
        vm.frontend.request(Request.SET_VRING_ADDR, addr, ack=True)
        assert set(host.ports[0].port.rings) == {0, 1}


# --- What this machine lacks


class Lacking(FabricPort):
    """A port whose rings can't be attached: as if epoll had no room for another kick."""

    def __init__(self, host: Host, error: Callable[[], Exception]) -> None:
        super().__init__(host.ports[0].port, host.workers)
        self.attach = self.fail
        self.error = error

    def fail(self, ring: Ring) -> None:
        raise self.error()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            lambda: OSError(errno.ENOSPC, "No space left on device"),
            "lacks something: [Errno 28] No space left",
        ),
        (MemoryError, "lacks something: memory"),
    ],
)
def test_what_the_machine_lacks_ends_the_connection(error, reason):
    with Host(ports=4) as host:
        a, b = host.vm(2), host.vm(3)
        host.ports[0] = Lacking(host, error)
        vm = host.vm(0, start=False)
        with pytest.raises(Disconnected):
            vm.start()
        assert reason in host.reason(0)
        assert carry(a, b, FRAMES) == FRAMES


def test_a_bug_of_ours_ends_the_connection_and_is_told():
    with Host(ports=4) as host:
        host.ports[0] = Lacking(host, ZeroDivisionError)
        vm = host.vm(0, start=False)
        with pytest.raises(Disconnected):
            vm.start()
        with pytest.raises(ZeroDivisionError):
            host.reason(0)


@pytest.mark.hostile("process", "no file descriptor left for what a message brings", "port closes")
def test_no_fd_left_for_what_a_message_brings():
    with Host(ports=4) as host:
        vm, a, b = host.vm(0), host.vm(2), host.vm(3)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard)
        )
        try:
            filled = []
            with suppress(OSError):
                while True:
                    filled.append(os.dup(0))
            vm.frontend.tell_file(Request.SET_VRING_ERR, 0, vm.frontend.rings[0].err_fd)
            assert "number of fds" in host.reason(0)
            assert carry(a, b, FRAMES) == FRAMES
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in filled:
                os.close(fd)


# --- Ends, and beginnings again


@pytest.mark.hostile("process", "a front-end that leaves in traffic and comes back", "delivered")
def test_it_leaves_with_rings_running_and_comes_back():
    with Host() as host:
        b = host.vm(1)
        for _ in range(3):
            a = host.vm(0)
            with Flow(b):
                assert a.receive(20)
                a.close()
                assert host.reason(0) == "the peer closed the socket"
        a = host.vm(0)
        assert carry(a, b, FRAMES) == FRAMES
        assert host.counters(0)["connections"] == 4


def test_200_front_ends_leave_nothing_behind():
    with Host() as host:
        b = host.vm(1)
        host.vm(0).close()
        host.reason(0)
        b.frontend.fence()
        before = open_fds(), threading.active_count()
        for number in range(200):
            a = host.vm(0, fill=False, ring_size=16, queue_pairs=1 + number % 3)
            a.send([frame(number)])
            assert b.receive(1) == [frame(number)]
            a.close()
            host.reason(0)
            assert (open_fds(), threading.active_count()) == before


@pytest.mark.hostile("rings", "a broken ring: its port is served again at once", "port closes")
@pytest.mark.parametrize("ring", ["sends", "receives"])
def test_a_guest_that_breaks_its_ring(ring, caplog):
    with Host() as host:
        a, b = host.vm(0, fill=False), host.vm(1)
        driver = (a.sender() if ring == "sends" else a.receiver()).ring
        place = driver.avail_index % driver.size
        driver.add([(0x40000, 64, ring == "receives")], publish=False)
        driver.avail["ring"][place] = 9999
        driver.publish()
        driver.kick(force=True)
        if ring == "receives":
            b.send(FRAMES[:1])
        reason = "the guest broke its ring: a head or next descriptor outside of its table"
        assert host.reason(0) == reason
        assert f"port0: {reason}" in caplog.messages
        assert (host.counters(0)["faults"], host.counters(1)["faults"]) == (1, 0)
        b.send(FRAMES[:3])  # nobody is there to take it
        b.all_sent()
        again = host.vm(0)
        assert host.connected(1)
        assert carry(again, b, FRAMES) == FRAMES
        assert carry(b, again, FRAMES) == FRAMES


# --- What has its effect elsewhere


@pytest.mark.parametrize("forward", ["learn", "patch"])
@pytest.mark.parametrize("started", [True, False], ids=["running", "before memory"])
def test_send_rarp_announces_at_once(started, forward):
    with Host(forward, ports=3) as host:
        others = [host.vm(port) for port in (1, 2)]
        vm = host.vm(0, start=started)
        vm.frontend.request(Request.SEND_RARP, Mac(mac(9)), ack=True)
        vm.frontend.fence()
        expected = (
            b"\xff" * 6 + mac(9) + bytes.fromhex("8035 0001 0800 06 04 0003")
            + mac(9) + bytes(4) + mac(9) + bytes(4) + bytes(18)
        )  # fmt: skip
        assert len(expected) == 60
        reached = others if forward == "learn" else others[:1]
        for other in reached:
            assert other.received() == [expected]
        if forward == "learn":
            assert host.fabric.find(mac(9)) == host.ports[0].port
        if started:
            assert vm.received() == []


def test_net_set_mtu_bounds_what_the_guest_is_sent():
    with Host() as host:
        a, b = host.vm(0), host.vm(1, start=False, features=FEATURES | VirtioFeature.MTU)
        b.frontend.request(Request.NET_SET_MTU, U64(1000), ack=True)
        b.start()
        a.send([frame(1, size=1018), frame(2, size=1019), frame(3)])
        assert b.receive(2) == [frame(1, size=1018), frame(3)]
        assert host.counters(1)["tx_dropped_too_big"] == 1
        b.frontend.request(Request.NET_SET_MTU, U64(1001), ack=True)
        a.send([frame(2, size=1019)])
        assert b.receive(1) == [frame(2, size=1019)]


@pytest.mark.hostile("messages", "NET_SET_MTU without the feature", "no effect")
def test_net_set_mtu_is_only_told_where_the_guest_did_not_take_it():
    with Host() as host:
        a, b = host.vm(0), host.vm(1)
        b.frontend.request(Request.NET_SET_MTU, U64(1000), ack=True)
        a.send([frame(1, size=1500)])
        assert b.receive(1) == [frame(1, size=1500)]


def test_status_is_kept_and_resets_nothing():
    with Host() as host:
        a, b = host.vm(0), host.vm(1)
        assert a.frontend.ask(Request.GET_STATUS) == 0xF
        a.frontend.request(Request.SET_STATUS, U64(0), ack=True)
        assert a.frontend.ask(Request.GET_STATUS) == 0
        assert carry(a, b, FRAMES) == FRAMES


@pytest.mark.hostile("messages", "a vring beyond the queue pairs offered", "port closes")
def test_fewer_queues_are_offered_and_held_to():
    with Host(offer=Offer.net(2)) as host:
        vm = host.vm(0, queue_pairs=2)
        assert vm.frontend.ask(Request.GET_QUEUE_NUM) == 2
        vm.frontend.wire.send(Request.GET_VRING_BASE, VringState(4, 0))
        assert "vring index is 4, must be under 4" in host.reason(0)


# --- Load


@pytest.mark.hostile("stream", "100,000 messages in a row", "no effect on others")
@pytest.mark.slow
def test_a_flood_of_messages_leaves_others_served():
    with Host(ports=3) as host:
        sock, vm = host.plug(2), host.vm(0)
        flood = encode(Request.SET_OWNER) * 1000
        sender = threading.Thread(target=lambda: [sock.sendall(flood) for _ in range(100)])
        sender.start()
        served = 0
        while sender.is_alive():
            vm.frontend.fence()
            served += 1
            sender.join(0.01)
        sock.close()
        assert host.reason(2) == "the peer closed the socket"
        assert served > 20


@pytest.mark.hostile("stream", "answers that are never read", "port closes")
def test_who_never_reads_its_answers_is_dropped():
    with Host(ports=4) as host:
        sock, a, b = host.plug(0), host.vm(2), host.vm(3)
        sock.settimeout(PATIENCE_S)
        with suppress(ConnectionError):
            while True:
                sock.sendall(encode(Request.GET_FEATURES) * 100)
        assert "answers left unread" in host.reason(0)
        assert carry(a, b, FRAMES) == FRAMES
        sock.close()


@pytest.mark.hostile("stream", "2,000 answers that are read late", "delivered")
def test_answers_wait_for_a_slow_reader():
    with Host() as host:
        wire = Wire(host.plug(0), PATIENCE_S)
        count = 2000
        wire.send_bytes(encode(Request.GET_FEATURES) * count)
        for _ in range(count):  # until what the socket does not take is waiting
            host.fence()
        for _ in range(count):
            assert wire.receive(Request.GET_FEATURES) == U64(host.offer.features)
        wire.close()


def test_what_happened_is_in_the_log_under_the_port_s_name(caplog):
    caplog.set_level(logging.DEBUG, "vhostfast")
    with Host() as host:
        vm = host.vm(0)
        vm.close()
        host.reason(0)
    assert "port0: vring 1 runs, 64 entries" in caplog.messages
    assert "port0: vring 1 stopped at 0" in caplog.messages
    assert "port0: disconnected: the peer closed the socket" in caplog.messages
    assert any(message.startswith("port0: ADD_MEM_REG ") for message in caplog.messages)
    assert all(record.name == "vhostfast" for record in caplog.records if "port0" in record.message)
