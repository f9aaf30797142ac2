"""NetDevice as its users meet it: on a socket, from any thread, until a signal."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dpkt
import numpy as np
import pytest
from host import PATIENCE_S, Loop, Vm, carry, eventually, frame, number_of, readable
from logfile import LogFile

import vhostfast
from vhostfast.device.net import BACKLOG_MAX, NetDevice, Packet, serve_device
from vhostfast.errors import EnvironmentLacks
from vhostfast.protocol.features import Offer
from vhostfast.protocol.message import Request

EXAMPLE = Path(__file__).parents[2] / "examples" / "ping_me.py"
FRAMES = [frame(i) for i in range(300)]


def array(data: bytes) -> Packet:
    return np.frombuffer(data, np.uint8)


class Echo(NetDevice):
    def receive(self, packets: list[Packet]) -> None:
        self.send(packets)


@contextmanager
def serving(device: NetDevice, path: Path, **options: object) -> Iterator[None]:
    loop = Loop()
    loop.begin(serve_device(device, str(path), **options))
    try:
        yield
    finally:
        loop.close()


@contextmanager
def guest(path: Path, **options: object) -> Iterator[Vm]:
    vm = Vm(str(path), **options)
    try:
        yield vm
    finally:
        vm.close()


# --- A device on a socket


def test_one_front_end_after_the_other(tmp_path):
    with serving(Echo(), tmp_path / "s"):
        for sequence in ("qemu", "virtio-user"):
            with guest(tmp_path / "s", sequence=sequence) as vm:
                assert carry(vm, vm, FRAMES) == FRAMES
    assert list(tmp_path.iterdir()) == []


def test_no_offloads_are_offered(tmp_path):
    """What a device gets is whole."""
    with serving(Echo(), tmp_path / "s"), guest(tmp_path / "s") as vm:
        assert vm.frontend.ask(Request.GET_FEATURES) == Offer.net(offloads=False).features


def test_client(tmp_path):
    with serving(Echo(), tmp_path / "s", client=True), guest(tmp_path / "s", server=True) as vm:
        assert carry(vm, vm, FRAMES) == FRAMES


def test_a_guest_with_a_device_in_python_migrates(tmp_path):
    """All that the device's answers write is marked, as the kernel confirms."""
    device = Echo()
    event_fd = os.eventfd(0, os.EFD_NONBLOCK)
    with (
        serving(device, tmp_path / "s", witness=True),
        guest(tmp_path / "s") as vm,
        LogFile() as log,
    ):
        vm.frontend.request(Request.SET_LOG_FD, fds=[event_fd], ack=True)
        assert carry(vm, vm, FRAMES) == FRAMES
        log.begin(vm.frontend)
        assert carry(vm, vm, FRAMES) == FRAMES
        assert readable(event_fd, PATIENCE_S)
        for vring in vm.frontend.rings:
            vm.frontend.stop_ring(vring)
        memory, bits = vm.picture(), log.bytes()
        device.send([array(FRAMES[0])])
        eventually(lambda: device.backlog)
        assert (vm.picture(), log.bytes()) == (memory, bits)
        assert len(log.pages()) > 10
        assert device.counters["log_pages_missed"] == 0
    os.close(event_fd)


def test_mode_of_the_socket(tmp_path):
    with serving(Echo(), tmp_path / "s", mode=0o660):
        eventually(lambda: (tmp_path / "s").exists())
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o660


def test_a_socket_that_can_t_be_made_leaves_no_thread(tmp_path):
    loop = Loop()
    before = threading.active_count()
    with pytest.raises(EnvironmentLacks, match="no-such-folder"):
        loop.begin(serve_device(Echo(), str(tmp_path / "no-such-folder" / "s"))).result(PATIENCE_S)
    assert threading.active_count() == before
    loop.close()


def test_a_base_device_drops_and_counts(tmp_path):
    device = NetDevice()
    with serving(device, tmp_path / "s"), guest(tmp_path / "s") as vm:
        vm.send(FRAMES)
        vm.all_sent()
        eventually(lambda: device.counters["rx_packets"] == len(FRAMES))
        assert vm.received() == []


# --- receive


class Keeping(NetDevice):
    """Keeps what comes, and scribbles on it."""

    def __init__(self) -> None:
        super().__init__()
        self.packets: list[Packet] = []
        self.threads: set[str] = set()

    def receive(self, packets: list[Packet]) -> None:
        self.threads.add(threading.current_thread().name)
        self.packets += [packet.copy() for packet in packets]
        for packet in packets:
            packet[:] = 0


def test_packets_are_private_arrays_without_header(tmp_path):
    device = Keeping()
    with serving(device, tmp_path / "s"), guest(tmp_path / "s") as vm:
        position = vm.memory.position
        vm.send([frame(7, size=333)])
        vm.all_sent()
        eventually(lambda: device.packets)
        (packet,) = device.packets
        assert (packet.dtype, packet.shape) == (np.uint8, (333,))
        assert bytes(packet) == frame(7, size=333)
        assert vm.memory.read(position, 345)[12:] == frame(7, size=333), "the guest's own"
        assert device.threads == {"vhostfast-s"}


# --- send


def test_send_from_another_thread_wakes_an_idle_device(tmp_path):
    device = NetDevice()
    with serving(device, tmp_path / "s"), guest(tmp_path / "s") as vm:
        for number in range(200):
            device.send([array(frame(number))])
            assert vm.receive(1) == [frame(number)]


def test_several_threads_send_and_each_one_s_order_is_kept(tmp_path):
    device = NetDevice()
    count = 500

    def send(sender: int) -> None:
        for number in range(count):
            device.send([array(frame(number, sender=sender))])

    with serving(device, tmp_path / "s"), guest(tmp_path / "s") as vm:
        threads = [threading.Thread(target=send, args=(sender,)) for sender in range(3)]
        for thread in threads:
            thread.start()
        got = vm.receive(3 * count)
        for thread in threads:
            thread.join()
        for sender in range(3):
            own = [number_of(data) for data in got if data[11] == sender]
            assert own == list(range(count))


def test_sent_arrays_may_be_used_again(tmp_path):
    device = NetDevice()
    packet = array(frame(0)).copy()
    for number in range(10):
        packet[14:22] = list(number.to_bytes(8, "big"))
        device.send([packet])
    with serving(device, tmp_path / "s"), guest(tmp_path / "s") as vm:
        assert [number_of(data) for data in vm.receive(10)] == list(range(10))


def test_any_array_of_bytes_will_do(tmp_path):
    device = NetDevice()
    backwards = array(frame(1)[::-1])[::-1]
    strided = np.repeat(array(frame(2)), 2)[::2]
    device.send(packet for packet in (backwards, strided))
    with serving(device, tmp_path / "s"), guest(tmp_path / "s") as vm:
        assert vm.receive(2) == [frame(1), frame(2)]


@pytest.mark.parametrize(
    ("packet", "what"),
    [
        (np.zeros(64, np.uint16), r"uint16\[64\]"),
        (np.zeros((2, 32), np.uint8), r"uint8\[2, 32\]"),
        (np.zeros(13, np.uint8), r"uint8\[13\]"),
        (np.zeros(65590, np.uint8), r"uint8\[65590\]"),
        (b"bytes are not an array", r"\|S22\[\]"),
        (None, r"object\[\]"),
    ],
    ids=["uint16", "two dimensions", "13 bytes", "65590 bytes", "bytes", "None"],
)
def test_what_is_no_packet(packet, what):
    device = NetDevice()
    with pytest.raises(ValueError, match=rf"a packet is {what}, must be uint8, one dimension"):
        device.send([array(frame(1)), packet])
    assert len(device.backlog) == 0, "all or none"


def test_the_smallest_and_the_largest_packet(tmp_path):
    device = NetDevice()
    with serving(device, tmp_path / "s"), guest(tmp_path / "s") as vm:
        big = array(bytes(i % 251 for i in range(65589)))
        device.send([array(frame(1, size=14)), big])
        used = [vm.wait_used() for _ in range(1 + 33)]  # buffers of 2048 bytes
        got = b"".join(vm.memory.read(vm._slots.pop((0, head)), size) for head, size in used)
        assert got[12:26] == frame(1, size=14)
        assert int.from_bytes(got[36:38], "little") == 33
        assert got[38:] == bytes(big)


def test_the_backlog_is_bounded_and_counted(tmp_path):
    device = NetDevice()
    device.send(array(frame(i)) for i in range(BACKLOG_MAX - 1))
    device.send(array(frame(BACKLOG_MAX - 1 + i)) for i in range(5))
    device.send([array(frame(0))])
    assert len(device.backlog) == BACKLOG_MAX
    assert device.counters["tx_dropped_full"] == 5
    with serving(device, tmp_path / "s"), guest(tmp_path / "s") as vm:
        assert [number_of(data) for data in vm.receive(BACKLOG_MAX)] == list(range(BACKLOG_MAX))
        eventually(lambda: device.counters["tx_packets"] == BACKLOG_MAX)


# --- serve, in a process of its own

PROGRAM = """
import sys, vhostfast
class Echo(vhostfast.NetDevice):
    def receive(self, packets):
        self.send(packets)
vhostfast.serve(Echo(), sys.argv[1])
print("served")
"""


@contextmanager
def program(*arguments: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, *arguments, str(path)]
    process = subprocess.Popen(command, text=True, stdout=-1, stderr=-1)
    try:
        deadline = time.monotonic() + 4 * PATIENCE_S
        while not path.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_at_a_signal(number, tmp_path):
    with program("-c", PROGRAM, path=tmp_path / "s") as process, guest(tmp_path / "s") as vm:
        assert carry(vm, vm, FRAMES) == FRAMES
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_S)
        assert out == "served\n"
        assert f" INFO s: listening on {tmp_path}/s\n" in err
        assert re.search(rf" INFO s: pid {os.getpid()} \(uid \d+\) connected\n", err)
        assert process.returncode == 0
        assert list(tmp_path.iterdir()) == []


def test_serve_leaves_the_logging_of_its_program_as_it_is(tmp_path):
    own = "import logging; logging.basicConfig(format='own %(message)s', level='INFO')"
    with program("-c", own + PROGRAM, path=tmp_path / "s") as process:
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE_S)
        assert set(re.findall("^[^ ]+", err, re.MULTILINE)) == {"own"}


def test_names_are_public():
    assert vhostfast.NetDevice is NetDevice
    assert vhostfast.serve_device is serve_device


# --- The example

OURS, GUEST = bytes([2, 0, 0, 0, 0, 1]), bytes([2, 0, 0, 0, 0, 9])
IP, GUEST_IP = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 9])


def arp(target: bytes = IP, operation: int = dpkt.arp.ARP_OP_REQUEST) -> bytes:
    body = dpkt.arp.ARP(sha=GUEST, spa=GUEST_IP, tha=bytes(6), tpa=target, op=operation)
    kind = dpkt.ethernet.ETH_TYPE_ARP
    whole = dpkt.ethernet.Ethernet(dst=b"\xff" * 6, src=GUEST, type=kind, data=body)
    return bytes(whole).ljust(60, b"\0")


def ping(sequence: int, data: bytes, target: bytes = IP, kind: int = dpkt.icmp.ICMP_ECHO) -> bytes:
    echo = dpkt.icmp.ICMP.Echo(id=77, seq=sequence, data=data)
    icmp = dpkt.icmp.ICMP(type=kind, data=echo)
    ip = dpkt.ip.IP(src=GUEST_IP, dst=target, p=dpkt.ip.IP_PROTO_ICMP, data=icmp)
    ip.len = len(ip)
    return bytes(dpkt.ethernet.Ethernet(dst=OURS, src=GUEST, data=ip))


def checksum(data: bytes) -> int:
    """RFC 1071, the plain way; 0 over data that holds its own right checksum."""
    padded = data + bytes(len(data) % 2)
    total = sum(int.from_bytes(padded[i : i + 2], "big") for i in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def udp(size: int) -> bytes:
    """A datagram whose source port begins with 8, as an echo request does."""
    body = dpkt.udp.UDP(sport=0x0800, dport=9, data=bytes(size))
    body.ulen = len(body)
    ip = dpkt.ip.IP(src=GUEST_IP, dst=IP, p=dpkt.ip.IP_PROTO_UDP, data=body)
    ip.len = len(ip)
    return bytes(dpkt.ethernet.Ethernet(dst=OURS, src=GUEST, data=ip))


IGNORED = [
    arp(target=GUEST_IP),
    arp(operation=dpkt.arp.ARP_OP_REPLY),
    arp()[:41],
    ping(1, b"", target=GUEST_IP),
    ping(1, b"", kind=dpkt.icmp.ICMP_ECHOREPLY),
    *(ping(1, b"")[:size] for size in (14, 33, 34, 35, 37, 41)),
    udp(30),
    frame(1),
]


@pytest.fixture(scope="module")
def pinged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("ping") / "s"
    with program(str(EXAMPLE), path=path) as process:
        assert process.stdout
        assert "ping 10.0.0.1" in process.stdout.readline()
        yield path


def test_ping_me_answers_arp(pinged):
    with guest(pinged) as vm:
        vm.send([arp()])
        (answer,) = vm.receive(1)
        whole = dpkt.ethernet.Ethernet(answer)
        assert (whole.dst, whole.src) == (GUEST, OURS)
        assert whole.data.op == dpkt.arp.ARP_OP_REPLY
        assert (whole.data.sha, whole.data.spa) == (OURS, IP)
        assert (whole.data.tha, whole.data.tpa) == (GUEST, GUEST_IP)
        assert len(answer) == 60


def test_ping_me_answers_echo_requests(pinged):
    """Also those at which the checksum wraps: whatever it was, the answer's is right."""
    bodies = [bytes([i, 255 - i]) * (i % 30) + i.to_bytes(2, "big") for i in range(256)]
    requests = [ping(i, body) for i, body in enumerate(bodies)]
    requests += [ping(i, (0xF700 + i).to_bytes(2, "big")) for i in range(0x200)]
    with guest(pinged) as vm:
        answers = carry(vm, vm, requests)
    for request, answer in zip(requests, answers, strict=True):
        asked, whole = dpkt.ethernet.Ethernet(request), dpkt.ethernet.Ethernet(answer)
        assert (whole.dst, whole.src) == (GUEST, OURS)
        assert (whole.data.src, whole.data.dst) == (IP, GUEST_IP)
        assert whole.data.data.type == dpkt.icmp.ICMP_ECHOREPLY
        assert bytes(whole.data.data.data) == bytes(asked.data.data.data)
        assert checksum(answer[14:34]) == 0
        assert checksum(answer[34:]) == 0


def test_ping_me_survives_and_ignores_the_rest(pinged):
    with guest(pinged) as vm:
        vm.send([*IGNORED, arp()])
        assert [data[20:22] for data in vm.receive(1)] == [b"\0\2"]


def test_the_example_has_at_most_20_lines_of_code():
    source = EXAMPLE.read_text()
    docstring, _, code = source[3:].partition('"""\n')
    assert '"""' not in docstring + code
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
