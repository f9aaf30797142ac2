"""Two QEMU guests talk through the switch: ping, and TCP both ways at once, its content hashed.

VHOSTFAST_PEER_BACKEND=dpdk puts DPDK's back-end in the switch's place: what fails there too is the
fault of the test, of the guest or of QEMU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from child import DIES_WITH_US, Child
from dpdk_backends import Switch, Vhost
from qemu import MEMORY, Card, Guest

pytestmark = [pytest.mark.peers, pytest.mark.timeout(180)]

MRG_RXBUF, INDIRECT_DESC, EVENT_IDX = 1 << 15, 1 << 28, 1 << 29
TOGGLED = MRG_RXBUF | INDIRECT_DESC | EVENT_IDX
PING_ME = Path(__file__).parents[2] / "examples" / "ping_me.py"
EXCHANGE_SIZE = 8_000_000  # bytes each way


@dataclass(frozen=True, slots=True)
class Variant:
    """A card, and what its driver must report: the features of `TOGGLED`, its rings' size.

    Who makes the socket, and how the switch forwards.
    """

    options: Sequence[str] = ()
    features: int = TOGGLED
    entries: int = 256
    server: bool = False
    forward: str = "patch"


VARIANTS = {
    "default": Variant(),
    "event_idx=off": Variant(("event_idx=off",), TOGGLED & ~EVENT_IDX),
    "mrg_rxbuf=off": Variant(("mrg_rxbuf=off",), TOGGLED & ~MRG_RXBUF),
    "indirect_desc=off": Variant(("indirect_desc=off",), TOGGLED & ~INDIRECT_DESC),
    "all three off": Variant(("event_idx=off", "mrg_rxbuf=off", "indirect_desc=off"), 0),
    "1024 entries": Variant(("rx_queue_size=1024", "tx_queue_size=1024"), entries=1024),
    "QEMU is the server": Variant(server=True),
    "the switch learns": Variant(forward="learn"),
}


def sockets(folder: Path) -> list[Path]:
    return [folder / "a.sock", folder / "b.sock"]


@contextmanager
def two_guests(
    folder: Path,
    options: Sequence[str] = (),
    queue_pairs: int = 1,
    server: bool = False,
    reconnect: bool = False,
) -> Iterator[tuple[Guest, Guest]]:
    """Guests a and b, up and with an address, on cards of the same kind."""
    with ExitStack() as stack:
        guests = []
        for number, socket in enumerate(sockets(folder), 1):
            card = Card(socket, number, options, queue_pairs, server, reconnect)
            guests.append(stack.enter_context(Guest(socket.stem, folder, card)))
        for guest in guests:
            guest.ready()
        yield guests[0], guests[1]


def start_backend(folder: Path, client: bool = False, forward: str = "patch") -> Switch | Vhost:
    """The back-end of both guests; with `client` it connects to sockets that QEMU will make.

    DPDK only patches: with two ports nobody can tell.
    """
    if os.environ.get("VHOSTFAST_PEER_BACKEND") == "dpdk":
        return Vhost(folder, sockets(folder), client=client, queues=2)
    return Switch(
        folder, sockets(folder), client=client, queues=None, forward=forward, adaptive=True
    )


@contextmanager
def backend(folder: Path, client: bool = False, forward: str = "patch") -> Iterator[Child]:
    """A back-end that is ready, and that must end well if the test is through."""
    with start_backend(folder, client, forward) as running:
        running.ready()
        yield running
        assert running.close() == 0


def ping(a: Guest, b: Guest, count: int = 5, cpu: int = 0) -> None:
    answer = a.run(f"taskset {1 << cpu} ping -c {count} -i 0.1 -W 2 {b.card.address}")
    assert ", 0% packet loss" in answer, answer


def make_content(guests: Sequence[Guest], size: int, file: str = "/tmp/sent") -> list[str]:
    """Random bytes in a file of each guest; their hashes."""
    for guest in guests:
        guest.begin(f"head -c {size} /dev/urandom > {file}; sha256sum < {file}")
    return [guest.result().split()[0] for guest in guests]


def hashes_received(guests: Sequence[Guest], file: str = "/tmp/received") -> list[str]:
    return [guest.run(f"sha256sum < {file}").split()[0] for guest in guests]


def exchange(a: Guest, b: Guest, size: int = EXCHANGE_SIZE) -> None:
    """Each sends the other a file, over one connection and at once; what came is what was sent."""
    sent = make_content((a, b), size)
    a.begin(f"guest exchange listen {a.card.address} 5000 /tmp/sent /tmp/received")
    b.run(f"guest exchange connect {a.card.address} 5000 /tmp/sent /tmp/received", 60)
    a.result()
    assert hashes_received((b, a)) == sent


def exchange_two(a: Guest, b: Guest) -> None:
    """As `exchange`, over two connections at once: each end's process stays on a CPU of its own."""
    cpus = (0, 1)
    sent = make_content((a, b), EXCHANGE_SIZE)
    for guest, verb in ((a, "listen"), (b, "connect")):
        streams = " ".join(
            f"taskset {1 << cpu} guest exchange {verb} {a.card.address} {5000 + cpu}"
            f" /tmp/sent /tmp/received{cpu} & process{cpu}=$!;"
            for cpu in cpus
        )
        guest.begin(f"{streams} wait $process0 && wait $process1")
    for guest in (b, a):
        guest.result(60)
    for cpu in cpus:
        assert hashes_received((b, a), f"/tmp/received{cpu}") == sent


def talk(a: Guest, b: Guest) -> None:
    ping(a, b)
    ping(b, a)
    exchange(a, b)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_guests_talk(folder: Path, variant: Variant) -> None:
    with (
        backend(folder, variant.server, variant.forward) as running,
        two_guests(folder, variant.options, server=variant.server) as (a, b),
    ):
        for guest in (a, b):
            assert guest.features() & TOGGLED == variant.features
            rings = guest.counters()
            assert (rings["rx_entries"], rings["tx_entries"]) == (variant.entries,) * 2
        talk(a, b)
        assert " WARNING " not in running.output


def test_two_queue_pairs(folder: Path) -> None:
    """What a CPU sends goes through the queue of that CPU, and arrives in the same queue."""
    count = 20
    with backend(folder), two_guests(folder, ("mq=on",), queue_pairs=2) as (a, b):
        for queue in (0, 1):
            before = [guest.counters() for guest in (a, b)]
            ping(a, b, count, cpu=queue)
            ping(b, a, count, cpu=queue)
            for guest, old in zip((a, b), before, strict=True):
                new = guest.counters()
                for name in (f"tx_queue_{queue}_packets", f"rx_queue_{queue}_packets"):
                    assert new[name] - old[name] >= count, name
        exchange_two(a, b)


def test_a_guest_that_reboots_talks_again(folder: Path) -> None:
    with backend(folder), two_guests(folder) as (a, b):
        talk(a, b)
        a.reboot()
        talk(a, b)
        a.reset()
        talk(b, a)


def test_a_switch_that_was_killed_serves_the_same_guests_again(folder: Path) -> None:
    """In the middle of a stream, which then goes on and arrives whole."""
    with ExitStack() as stack:
        first = stack.enter_context(start_backend(folder))
        first.ready()
        a, b = stack.enter_context(two_guests(folder, reconnect=True))
        ping(a, b)
        sent = make_content((a, b), 4 * EXCHANGE_SIZE)
        a.begin(f"guest exchange listen {a.card.address} 5000 /tmp/sent /tmp/received")
        b.run(
            f"guest exchange connect {a.card.address} 5000 /tmp/sent /tmp/received &"
            " echo $! > /tmp/process;"
            " until [ $(stat -c %s /tmp/received || echo 0) -gt 1000000 ]; do usleep 10000; done"
        )
        first.kill()
        arrived = int(b.run("stat -c %s /tmp/received"))
        assert arrived < 4 * EXCHANGE_SIZE, "killed too late: the stream had ended"
        stack.enter_context(backend(folder))
        b.run(f"until ping -c 1 -W 1 {a.card.address}; do :; done")
        a.result(90)  # TCP waits the longer, the longer the line was dead
        b.run("while kill -0 $(cat /tmp/process) 2>/dev/null; do usleep 10000; done", 90)
        assert hashes_received((b, a)) == sent
        talk(a, b)


UNSHARED = {
    "private file": f"memory-backend-memfd,id=ram,size={MEMORY},share=off",
    "no file": f"memory-backend-ram,id=ram,size={MEMORY}",
}


@pytest.mark.parametrize("memory", UNSHARED.values(), ids=UNSHARED.keys())
def test_memory_that_is_not_shared_is_named(folder: Path, memory: str) -> None:
    """The first looks well until nothing ever arrives; the second never comes at all."""
    with backend(folder) as running:
        card = Card(sockets(folder)[0])
        with Guest("a", folder, card, memory) as guest:
            guest.ready()
            guest.run("! ping -c 2 -W 1 10.0.0.2")
            running.wait_for(r"p0: .*not shared.*share=on", timeout_s=10)


def test_a_device_in_python_answers_ping(folder: Path) -> None:
    """The example of the README, as it stands."""
    socket = folder / "a.sock"
    card = Card(socket, number=2, reconnect=True)  # QEMU waits for a socket that isn't there yet
    with (
        Child("ping_me", [*DIES_WITH_US, sys.executable, str(PING_ME), str(socket)]),
        Guest("b", folder, card) as guest,
    ):
        guest.ready()
        answer = guest.run("ping -c 20 -i 0.1 -s 1400 10.0.0.1")
        assert "20 packets received, 0% packet loss" in answer
