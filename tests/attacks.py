"""A front-end that means ill, as a process to be killed: python tests/attacks.py SOCKET SEED

Acts at random at one socket, for ever, and says the name of each on stdout. What it provokes is its
own affair; whoever started it looks at the others. It sends from other memory than it receives in:
an honest frame that it cut and sent on would look like one that the switch has garbled.
"""

import os
import random
import socket
import sys
import time
from array import array
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from logfile import LogFile

from vhostfast.driver import Frontend, GuestMemory
from vhostfast.driver.traffic import Load, Station, Traffic, mac
from vhostfast.errors import Disconnected, ProtocolError
from vhostfast.protocol.message import Request

MAC = mac(666)
# The other end has closed the socket, refused something, or is too busy to let us in.
EXPECTED = (ConnectionError, BlockingIOError, TimeoutError, ProtocolError, Disconnected)
FLOW = 63  # of what it sends, so that nobody takes it for his own
MIB = 1 << 20
RINGS, BUFFERS = (0, 4 * MIB), (16 * MIB, 4 * MIB)


class Attacker:
    """Its chances, and where it connects to."""

    def __init__(self, path: str, seed: int) -> None:
        self.path = path
        self.chance = random.Random(seed)
        self.numbers = np.random.default_rng(seed)

    def front_end(self, memory: GuestMemory, **options: object) -> Frontend:
        return Frontend(self.path, memory, timeout_s=5.0, **options)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5.0)
        sock.connect(self.path)
        return sock

    def act(self) -> None:
        act = self.chance.choice(ACTS)
        print(act.__name__, flush=True)
        with suppress(*EXPECTED):
            act(self)


def send(frontend: Frontend, seconds: float, target: bytes, *, receives: bool = False) -> None:
    """Frames at full speed."""
    station = Station(frontend, MAC, target, flow=FLOW, receives=receives)
    Traffic([station], Load(sizes=(64, 1500)), idle="wait").run(seconds, linger_s=0.01)


def truncate(it: Attacker) -> None:
    """Memory, or the log, gone amid traffic: one of two files, or both."""
    with (
        GuestMemory((RINGS, BUFFERS), separate=True, sealed=False) as memory,
        LogFile() as log,
        it.front_end(memory) as frontend,
    ):
        frontend.start()
        if it.chance.random() < 0.5:
            log.begin(frontend)
        for gpa in (BUFFERS[0], BUFFERS[0] + 4096):
            frontend.receive_ring().ring.add([(gpa, 2048, True)])
            frontend.transmit_ring().ring.add([(gpa + 2048, 1000, False)])
        files = [*memory.fds, log.fd]
        for fd in it.chance.sample(files, it.chance.randint(1, len(files))):
            os.ftruncate(fd, 4096 * it.chance.randrange(2))
        os.eventfd_write(frontend.transmit_ring().kick_fd, 1)
        time.sleep(0.05)
        frontend.fence()


def garbage(it: Attacker) -> None:
    """Bytes that are no message, or a message whose every field is chance, fds of any kind."""
    kinds: list[Callable[[], int]] = [
        lambda: os.eventfd(0),
        lambda: os.memfd_create("garbage"),
        lambda: os.open("/dev/null", os.O_RDWR),
        lambda: os.dup(0),
    ]
    for _ in range(it.chance.randrange(1, 40)):
        with it.connect() as sock:
            for _ in range(it.chance.randrange(1, 20)):
                size = it.chance.choice((0, 8, 12, 40, it.chance.randrange(300)))
                words = [it.chance.randrange(50), it.chance.choice((1, 9, 5)), size]
                data = array("I", words).tobytes() + it.chance.randbytes(size)
                fds = [it.chance.choice(kinds)() for _ in range(it.chance.choice((0, 1, 1, 9)))]
                if it.chance.random() < 0.1:
                    data = it.chance.randbytes(40)
                try:
                    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))])
                except ConnectionError:
                    break
                finally:
                    for fd in fds:
                        os.close(fd)


def bad_rings(it: Attacker) -> None:
    """Descriptors, avail and used rings of chance, rewritten while they are looked at."""
    for _ in range(5):
        with GuestMemory(((0, MIB), (2 * MIB, MIB))) as memory, it.front_end(memory) as frontend:
            frontend.start()
            end = time.monotonic() + 0.05
            while time.monotonic() < end:
                for vring in frontend.rings:
                    desc = vring.ring.desc
                    first = 3 * MIB if vring.index % 2 else 2 * MIB  # half is outside of memory
                    places = it.numbers.integers(first, first + 2 * MIB, vring.size)
                    desc["addr"] = places % (4 * MIB)
                    desc["len"] = it.numbers.integers(
                        0, 1 << it.chance.randrange(1, 32), vring.size
                    )
                    desc["flags"] = it.numbers.integers(0, 8, vring.size)
                    desc["next"] = it.numbers.integers(0, 2 * vring.size, vring.size)
                    avail = vring.ring.avail
                    avail["ring"] = it.numbers.integers(0, vring.size + 1, vring.size)
                    avail["idx"] += it.chance.randrange(vring.size + 2)
                    os.eventfd_write(vring.kick_fd, 1)
                frontend.fence()


def flood(it: Attacker) -> None:
    """To whoever it may be, and to nobody."""
    with GuestMemory(((0, 8 << 20),)) as memory, it.front_end(memory) as frontend:
        frontend.start()
        send(frontend, 0.2, it.chance.choice((mac(667), b"\xff" * 6)))


def never_takes(it: Attacker) -> None:
    """A receiver without a buffer, or one that never looks at them."""
    with GuestMemory(((0, 8 << 20),)) as memory, it.front_end(memory) as frontend:
        frontend.start()
        if it.chance.random() < 0.5:
            for _ in range(frontend.ring_size):
                frontend.receive_ring().ring.add([(memory.take(2048), 2048, True)])
        time.sleep(0.3)


def long_chains(it: Attacker) -> None:
    """As many pieces as the ring has entries, of a byte each, again and again."""
    with (
        GuestMemory(((0, 8 << 20),)) as memory,
        it.front_end(memory, ring_size=4096) as frontend,
    ):
        frontend.start()
        ring, gpa = frontend.transmit_ring().ring, memory.take(64)
        for _ in range(20):
            ring.add([(gpa, 1, False)] * 4096)
            ring.kick()
            while ring.take() is None:
                time.sleep(0.001)
                frontend.fence()


def kicks(it: Attacker) -> None:
    """Without a word to say."""
    with GuestMemory(((0, 1 << 20),)) as memory, it.front_end(memory) as frontend:
        frontend.start()
        for _ in range(20000):
            os.eventfd_write(frontend.transmit_ring().kick_fd, 1)
            if os.eventfd_read(frontend.transmit_ring().kick_fd) > 1 << 30:
                return


def messages(it: Attacker) -> None:
    """Thousands that are answered, and the answers never read; or that make the workers rest."""
    with GuestMemory(((0, 1 << 20),)) as memory, it.front_end(memory) as frontend:
        frontend.start()
        rests = it.chance.random() < 0.5
        for _ in range(1000 if rests else 20000):
            if rests:
                frontend.enable(0, False)
                frontend.enable(0, True)
            else:
                frontend.wire.send(Request.GET_FEATURES)


def half_a_message(it: Attacker) -> None:
    """And then nothing."""
    with it.connect() as sock:
        sock.send(array("I", [1, 1, 0]).tobytes()[: it.chance.randrange(1, 12)])
        time.sleep(0.2)


def comes_and_goes(it: Attacker) -> None:
    """As fast as it is let in."""
    for _ in range(100):
        with it.connect():
            pass


ACTS = (
    truncate, garbage, bad_rings, flood, never_takes, long_chains, kicks, messages, half_a_message,
    comes_and_goes,
)  # fmt: skip


def main() -> None:
    attacker = Attacker(sys.argv[1], int(sys.argv[2]))
    while True:
        attacker.act()


if __name__ == "__main__":
    main()
