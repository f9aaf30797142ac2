"""Frames by way of DPDK's virtio-user and a back-end under test, compared byte by byte.

One testpmd joins each virtio-user port to a pcap port and forwards between the two:

    in0.pcap ─ net_pcap0 ─ net_virtio_user0 ─ socket 0 ─┐
    out0.pcap ◂────┘                                     back-end
    in1.pcap ─ net_pcap1 ─ net_virtio_user1 ─ socket 1 ─┘
    out1.pcap ◂────┘

so ports 2i are files, ports 2i+1 guests' cards. Stopping a pcap port puts all it received on disk,
starting it reads its source again: one testpmd carries any number of batches.
"""

from __future__ import annotations

import random
import re
import struct
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import dpkt
from testpmd import Testpmd

ETHERNET_SIZES = range(60, 1515)  # every size of a frame, without its checksum

Batch = Sequence[Sequence[bytes]]  # the frames of one port, a sequence a queue
MBUF_HEADROOM = 128  # bytes that DPDK keeps before the data


def mac(port: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, port + 1])


BROADCAST = b"\xff" * 6


def frames(stream: int, source: bytes, target: bytes, sizes: Iterable[int]) -> list[bytes]:
    """UDP frames of `sizes` bytes (at least 60), no two alike, the same for the same arguments."""
    noise = random.Random(stream)
    made = []
    for number, size in enumerate(sizes):
        payload = struct.pack(">HI", stream, number) + noise.randbytes(size - 48)
        udp = dpkt.udp.UDP(sport=1000 + stream, dport=9, data=payload, ulen=8 + len(payload))
        packet = dpkt.ip.IP(src=source[-4:], dst=target[-4:], p=dpkt.ip.IP_PROTO_UDP, data=udp)
        packet.len = len(packet)
        made.append(bytes(dpkt.ethernet.Ethernet(src=source, dst=target, data=packet)))
    return made


def shuffled(sizes: Sequence[int]) -> list[int]:
    """The same sizes in another order, always the same one."""
    return random.Random(0).sample(sizes, len(sizes))


def faults(streams: Sequence[Sequence[bytes]], received: Sequence[bytes]) -> list[str]:
    """What is wrong with `received` if every stream should have arrived whole and in order.

    Streams may be interleaved. Empty when all is well.
    """
    place = {frame: (s, n) for s, stream in enumerate(streams) for n, frame in enumerate(stream)}
    found = []
    foreign = [frame for frame in received if frame not in place]
    if foreign:
        found.append(f"{len(foreign)} not sent by anybody, first {foreign[0][:80].hex(' ')}")
    for index, stream in enumerate(streams):
        seen = [place[f][1] for f in received if f in place and place[f][0] == index]
        lost = sorted(set(range(len(stream))) - set(seen))
        if lost:
            sizes = [len(stream[n]) for n in lost[:5]]
            found.append(f"stream {index}: {len(lost)} lost, first {lost[:5]} of {sizes} bytes")
        if len(seen) > len(set(seen)):
            found.append(f"stream {index}: {len(seen) - len(set(seen))} arrived twice")
        if seen != sorted(seen):
            found.append(f"stream {index}: out of order")
    return found


class Exchange(Testpmd):
    """virtio-user cards on `sockets`, fed from pcap files in `folder`.

    `device` is what follows the path in a card's arguments ("mrg_rxbuf=0,server=1"), `queues` the
    queue pairs of each card, `mtu` theirs in bytes. `buffer_size` makes each receive buffer that
    many bytes, so that a longer frame needs several (mergeable); frames are sent in as many pieces.
    Frames wait for two seconds where a ring is full, so only a back-end loses any.
    """

    __test__ = False

    def __init__(
        self,
        folder: Path,
        sockets: Sequence[Path],
        device: str = "",
        *,
        queues: int = 1,
        mtu: int = 1500,
        buffer_size: int = 2048,
    ) -> None:
        self.folder = folder
        self.queues = queues
        self.cards = len(sockets)
        vdevs = []
        for card, socket in enumerate(sockets):
            self._write_sources(card, [[]] * queues)
            files = [
                f"rx_pcap={self._file('in', card, q)},tx_pcap={self._file('out', card, q)}"
                for q in range(queues)
            ]
            vdevs.append(f"net_pcap{card},{','.join(files)}")
            control = ",cq=1" if queues > 1 else ""
            address = ":".join(f"{byte:02x}" for byte in mac(card))
            user = f"net_virtio_user{card},path={socket},mac={address},queues={queues}{control}"
            vdevs.append(f"{user},{device}" if device else user)
        options = [f"--rxq={queues}", f"--txq={queues}", "--no-flush-rx", "--disable-link-check"]
        options += ["--disable-device-start", f"--mbuf-size={MBUF_HEADROOM + buffer_size}"]
        threads = 2 * self.cards * queues  # one a direction, or a full ring would hold up another
        super().__init__("virtio-user", folder, vdevs, options=options, threads=threads)
        self.mtu = mtu
        self.scattered = buffer_size < mtu + 18

    def ready(self, timeout_s: float = 40) -> None:
        """Configure and start the ports, as soon as the back-end is there."""
        super().ready(timeout_s)
        for port in range(1, 2 * self.cards, 2):
            self.command(f"port config mtu {port} {self.mtu}")
            if self.scattered:
                self.command(f"port config {port} rx_offload scatter on")
        started = self.command("port start all")
        assert "fail" not in started.lower(), started
        self.command("set fwd io retry")
        self.command("set burst tx delay 100 retry 20000")

    def receive_paths(self) -> set[str]:
        """The receive functions that DPDK chose: "mergeable buffer", "inorder", "standard" …"""
        return set(re.findall(r"virtio: using (.+) Rx path", self.output))

    def transfer(self, sent: Sequence[Batch], expected: Sequence[int]) -> list[Batch]:
        """Send a batch on each card; what each card received, a sequence a queue.

        Waits until card i has received `expected[i]` frames, or half a minute: whether that is all
        it should have received, the caller's comparison tells.
        """
        self.send(sent)
        self.await_arrival(expected)
        return self.collect()

    def send(self, sent: Sequence[Batch]) -> None:
        """Begin to send a batch on each card."""
        self._pcap_ports("stop")
        for card, batch in enumerate(sent):
            self._write_sources(card, batch)
        self._pcap_ports("start")
        self.command("clear port stats all")
        self.start()

    def await_arrival(self, expected: Sequence[int], timeout_s: float = 30) -> bool:
        """Wait until card i has received at least `expected[i]` frames since `send`."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            stats = self.stats()
            arrived = [stats[2 * card].tx_packets for card in range(self.cards)]
            if all(a >= e for a, e in zip(arrived, expected, strict=True)):
                return True
            time.sleep(0.02)
        return False

    def await_quiet(self) -> None:
        """Wait until nothing has arrived for a tenth of a second."""
        before = None
        while before != (before := self.stats()):
            time.sleep(0.1)

    def collect(self) -> list[Batch]:
        """Stop forwarding; all that each card received since `send`."""
        self.stop()
        self._pcap_ports("stop")
        return [self._read_sinks(card) for card in range(self.cards)]

    def await_reconnection(self, since: int) -> None:
        """Wait until every card that listens has had a new back-end since `output` was that long.

        A card says so when the back-end has acknowledged its last message.
        """
        for _ in range(self.cards):
            since = self.wait_for("virtio-user reconnection succeeds", since).end()

    def restart_card(self, card: int) -> None:
        """Stop a card and start it again, as `ip link set down` and `up` do."""
        self.command(f"port stop {2 * card + 1}")
        self.command(f"port start {2 * card + 1}")

    def _pcap_ports(self, verb: str) -> None:
        for card in range(self.cards):
            self.command(f"port {verb} {2 * card}")

    def _file(self, kind: str, card: int, queue: int) -> Path:
        return self.folder / f"{kind}{card}.{queue}.pcap"

    def _write_sources(self, card: int, batch: Batch) -> None:
        for queue, frames_of_queue in enumerate(batch):
            with self._file("in", card, queue).open("wb") as file:
                writer = dpkt.pcap.Writer(file, snaplen=65535)
                for frame in frames_of_queue:
                    writer.writepkt(frame, ts=0)

    def _read_sinks(self, card: int) -> Batch:
        received = []
        for queue in range(self.queues):
            with self._file("out", card, queue).open("rb") as file:
                received.append([frame for _, frame in dpkt.pcap.Reader(file)])
        return received
