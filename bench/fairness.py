"""What one port that means ill takes from two that don't, all three on one worker.

    python bench/fairness.py [--rounds 24] [--seconds 2] [--json FILE]

Rings: two guests send each other 64-byte frames, and a third does what the row says. Guests are
made ready outside of the time that counts, and turns of the worker are timed by its own cycle
counter; so a figure is how much of the worker's time is left to the two, the rest is the third's.
Rows take turns; a figure is the lower quartile of the rounds, for whoever else wants the CPU only
adds to it.

Control: a whole switch, whose front-end does what the row says; the figure is the share of a CPU
that its worker had, which polls. "alone" tells what others on this machine left to it.

Exit code 1: a row is below the fair share of two beside one that does as they do: half.
"""

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vhostfast.core import memory as mapped
from vhostfast.core.fabric import Fabric, Worker
from vhostfast.core.ring import Ring
from vhostfast.driver import Frontend, GuestMemory, Vring, mac
from vhostfast.errors import EnvironmentLacks

SHARE = 0.5
MEMORY = ((0, 64 << 20),)
HEADER_SIZE, BUFFER_SIZE, TURNS = 12, 2112, 200
SEGMENT_SIZE, SEGMENTS = 31, 2048  # bytes, and as many as one packet may be cut into
CSUM_TSO4 = 3  # csrc's enum offload
ALONE, WORKER_CPU = "alone", 0
NOBODY = mac(77)  # what is for it goes to all


class Guest:
    """Rings of a guest at a port; what it sends stays in its ring and is offered again.

    `pieces` more follow what it sends, `room` more its only receive buffer, which it offers for
    each frame.
    """

    def __init__(self, fabric: Fabric, number: int, stack: ExitStack, sends: list[bytes],
                 *, pieces: int = 0, size: int = 256, buffers: bool = True,
                 room: int = 0) -> None:  # fmt: skip
        self.memory = stack.enter_context(GuestMemory(MEMORY))
        self.port = fabric.add_port(f"port{number}")
        regions = zip(self.memory.regions, self.memory.fds, strict=True)
        space = mapped.GuestMemory((r.gpa, r.size, r.uva, r.mmap_offset, fd) for r, fd in regions)
        self.vrings = []
        for index, ring_size in enumerate((32768 if room else 1024, size)):
            vring = stack.enter_context(Vring(self.memory, index, ring_size))
            ring, place = Ring(index), vring.addresses()
            ring.start(
                space, size=ring_size, desc=place.desc, used=place.used, avail=place.avail,
                mergeable=True, header_size=HEADER_SIZE, offloads=CSUM_TSO4 * index,
            )  # fmt: skip
            vring.ring.want_calls(False)
            self.port.attach(ring)
            self.vrings.append(vring)
        self._offer(sends, pieces, buffers, room)

    def _offer(self, sends: list[bytes], pieces: int, buffers: bool, room: int) -> None:
        receive, send = (vring.ring for vring in self.vrings)
        posted = []
        for _ in range(buffers and (1 if room else receive.size)):
            buffer = self.memory.take(BUFFER_SIZE)
            chain = [(buffer, BUFFER_SIZE, True)] + [(buffer, 0, True)] * room
            posted.append(receive.add(chain, publish=False))
        heads = []
        for data in sends:
            gpa = self.memory.take(len(data))
            self.memory.write(gpa, data)
            chain = [(gpa, len(data), False)] + [(gpa, 1, False)] * pieces
            heads.append(send.add(chain, publish=False))
        for ring, offered in ((receive, posted), (send, heads)):
            for slot in range(ring.size if offered else 0):
                ring.avail["ring"][slot] = offered[slot % len(offered)]
        self._full = [bool(posted) * receive.size, bool(heads) * send.size]

    def ready(self) -> None:
        """All that was used is on offer again."""
        for vring, count in zip(self.vrings, self._full, strict=True):
            ring = vring.ring
            ring.avail["idx"] = (int(ring.used["idx"]) + count) % 65536


def frame(target: bytes, source: bytes, size: int = 64) -> bytes:
    return bytes(HEADER_SIZE) + target + source + b"\x88\xb5" + bytes(size - 14)


def tiny_segments() -> bytes:
    """A TCP packet that is cut into as many as there may be."""
    payload = SEGMENT_SIZE * SEGMENTS
    header = struct.pack("<BBHHHHH", 1, 1, 54, SEGMENT_SIZE, 34, 16, 0)
    ip = struct.pack(">BBHHHBBH8x", 0x45, 0, 40 + payload, 0, 0, 64, 6, 0)
    tcp = struct.pack(">HHIIBBHHH", 1, 2, 0, 0, 0x50, 0x10, 1000, 0, 0)
    return header + NOBODY + mac(9) + b"\x08\x00" + ip + tcp + bytes(payload)


THIRD: dict[str, dict[str, object]] = {
    ALONE: {"sends": []},
    "sends as they do": {"sends": [frame(mac(1), mac(9))] * 256},
    "floods": {"sends": [frame(NOBODY, mac(9))] * 256},
    "floods 1500 B": {"sends": [frame(NOBODY, mac(9), 1500)] * 256},
    "never takes its packets": {"sends": [], "buffers": False},
    "chains of 1024 pieces": {"sends": [frame(NOBODY, mac(9))], "pieces": 1023, "size": 1024},
    "chains of 32768 pieces": {"sends": [frame(NOBODY, mac(9))], "pieces": 32767, "size": 32768},
    "takes into 1024 pieces": {"sends": [], "room": 1023},
    "takes into 32768 pieces": {"sends": [], "room": 32767},
    "floods, takes into 32768": {"sends": [frame(NOBODY, mac(9))] * 256, "room": 32767},
    "TCP packets of 2048 segments": {"sends": [tiny_segments()]},
}


class Yard:
    """Two honest guests and a third on a fabric with one worker."""

    def __init__(self, row: str, stack: ExitStack) -> None:
        self.fabric = Fabric("learn")
        stack.callback(self.fabric.close)
        self.worker = Worker(self.fabric, "poll")
        ways = ((mac(2), mac(1)), (mac(1), mac(2)))
        # Some of what each sends is for the third, who may or may not take it.
        sends = [[frame(to, me)] * 240 + [frame(mac(9), me)] * 16 for to, me in ways]
        self.guests = [Guest(self.fabric, number, stack, data) for number, data in enumerate(sends)]
        self.third = Guest(self.fabric, 2, stack, **THIRD[row])
        self.fabric.learn(mac(9), self.third.port)
        self.fabric.lay_out()
        self.honest = [guest.port for guest in self.guests]

    def cost(self) -> float:
        """Cycles for each packet of the honest, of so many turns."""
        before, counted = self.worker.busy_cycles, self.sent()
        for _ in range(TURNS):
            for guest in (*self.guests, self.third):
                guest.ready()
            self.worker.turn(forgive=False)
        sent = self.sent() - counted
        assert sent > 0
        return (self.worker.busy_cycles - before) / sent

    def sent(self) -> int:
        return sum(port.counters()["rx_packets"] for port in self.honest)


def rings(rounds: int) -> dict[str, float]:
    """What is left to the two of the worker's time, by row."""
    costs: dict[str, list[float]] = {row: [] for row in THIRD}
    with ExitStack() as stack:
        yards = {row: Yard(row, stack) for row in THIRD}
        for _ in range(rounds):
            for row, yard in yards.items():
                costs[row].append(yard.cost())
    low = {
        row: statistics.quantiles(found, n=4, method="inclusive")[0] for row, found in costs.items()
    }
    return {row: low[ALONE] / cost for row, cost in low.items()}


# --- Control --------------------------------------------------------------------------------------


def kicks(frontend: Frontend) -> None:
    os.eventfd_write(frontend.transmit_ring().kick_fd, 1)


def rests(frontend: Frontend) -> None:
    for on in (False, True):
        frontend.enable(0, on)


CONTROL: dict[str, Callable[[Frontend], None]] = {
    ALONE: lambda _: time.sleep(0.01),
    "kicks without end": kicks,
    "messages without end": Frontend.fence,
    "messages that let the workers rest": rests,
}


def worker_of(pid: int) -> Path:
    """The switch's thread that is on WORKER_CPU alone; others come and go."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):
            if int(thread.name) != pid and os.sched_getaffinity(int(thread.name)) == {WORKER_CPU}:
                return thread
    raise EnvironmentLacks(f"no thread of process {pid} is on CPU {WORKER_CPU} alone")


def ran_ns(thread: Path) -> int:
    """For how long it has run."""
    return int((thread / "schedstat").read_text().split()[0])


def control(seconds: float) -> dict[str, float]:
    """The share of a CPU that the worker had, by row."""
    shares = {}
    with tempfile.TemporaryDirectory() as folder, GuestMemory(MEMORY) as space:
        path = f"{folder}/a"
        options = [f"--port=a=vhost-user:{path}", f"--cpus={WORKER_CPU}", "--forward=loopback"]
        command = [sys.executable, "-m", "vhostfast", "switch", *options, "--mode=poll"]
        switch = subprocess.Popen([*command, "--log-level=error"], stdout=subprocess.DEVNULL)
        try:
            with Frontend(path, space) as frontend:
                frontend.start()
                worker = worker_of(switch.pid)
                for row, act in CONTROL.items():
                    began, before = time.monotonic_ns(), ran_ns(worker)
                    while time.monotonic_ns() < began + seconds * 1e9:
                        act(frontend)
                    spent = time.monotonic_ns() - began
                    shares[row] = (ran_ns(worker) - before) / spent
        finally:
            switch.terminate()
            switch.wait()
    return shares


def main() -> int:
    parser = argparse.ArgumentParser(description="What a hostile port takes from two honest ones.")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {"rings": rings(arguments.rounds), "control": control(arguments.seconds)}
    if arguments.json:
        arguments.json.write_text(json.dumps(found))
    table = Table("a third port", "left to the two", "of alone")
    unfair = []
    for kind, shares in found.items():
        table.add_section()
        for row, share in shares.items():
            ratio = share / shares[ALONE]
            table.add_row(f"{kind}: {row}", f"{share:.3f}", f"{ratio:.3f}")
            if ratio < SHARE:
                unfair.append(row)
    Console().print(table)
    if unfair:
        print(f"below the fair share, {SHARE}: {', '.join(unfair)}")
    return 1 if unfair else 0


if __name__ == "__main__":
    sys.exit(main())
