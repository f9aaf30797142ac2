"""DPDK 22.11's virtio-user as the front-end of the switch's ports: every frame, byte for byte.

The same runs against DPDK's own back-end as a control: what fails there too is no fault of ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest
from dpdk_backends import Switch, Vhost
from dpdk_exchange import BROADCAST, ETHERNET_SIZES, Batch, Exchange, faults, frames, mac, shuffled

pytestmark = [pytest.mark.peers, pytest.mark.slow]

BURST_MAX = 64  # frames that a back-end may have in hand when it is killed


@dataclass(frozen=True)
class Variant:
    """A card's arguments, and the receive function DPDK must then choose on the switch."""

    name: str
    device: str = ""
    path: str = "mergeable buffer"
    queues: int = 1
    mtu: int = 1500
    buffer_size: int = 2048

    @property
    def listens(self) -> bool:
        return "server=1" in self.device


DEFAULT = Variant("default")
SERVER = Variant("server", "server=1")
MERGEABLE = Variant("mergeable", "mrg_rxbuf=1", buffer_size=576)
VARIANTS = [
    DEFAULT,
    Variant("in_order=0", "in_order=0"),
    Variant("mrg_rxbuf=0", "mrg_rxbuf=0", path="standard"),
    Variant("vectorized", "vectorized=1,mrg_rxbuf=0,in_order=0", path="vectorized"),
    MERGEABLE,
    Variant("jumbo", "mrg_rxbuf=1", mtu=9000),
    Variant("two_pairs", queues=2),
    Variant("ring=1024", "queue_size=1024"),
    Variant("ring=64", "queue_size=64,mrg_rxbuf=0,in_order=0", path="standard"),
    SERVER,
    Variant("server_two_pairs", "server=1", queues=2),
]


both_back_ends = pytest.mark.parametrize("back_end", [Switch, Vhost])
# DPDK's own comes back when it likes: once in a few runs a new one has no prompt after 20 s.
our_back_end = pytest.mark.parametrize("back_end", [Switch])


class Rig:
    """Cards of one variant and the back-end under them; all ends when `stack` does, cards first."""

    def __init__(self, stack: ExitStack, folder: Path, variant: Variant, cards: int = 2) -> None:
        self.stack = stack
        self.folder = folder
        self.variant = variant
        self.sockets = [folder / f"{card}.sock" for card in range(cards)]

    def back_end(self, kind: type[Switch | Vhost], **options: str) -> Switch | Vhost:
        card = self.variant
        queues = card.queues if kind is Vhost else None  # the switch takes what the card brings
        child = kind(self.folder, self.sockets, client=card.listens, queues=queues, **options)
        self.stack.enter_context(child)
        child.ready()
        return child

    def exchange(self) -> Exchange:
        card = self.variant
        child = Exchange(
            self.folder,
            self.sockets,
            card.device,
            queues=card.queues,
            mtu=card.mtu,
            buffer_size=card.buffer_size,
        )
        self.stack.enter_context(child)
        child.ready()
        return child


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def both_ways(sizes: Sequence[int], queues: int = 1, batch: int = 0) -> list[Batch]:
    """For each of two cards and each queue a stream of its own, to the other card."""
    return [
        [
            frames(100 * batch + 10 * card + queue, mac(card), mac(1 - card), sizes)
            for queue in range(queues)
        ]
        for card in (0, 1)
    ]


def count(batch: Batch) -> int:
    return sum(map(len, batch))


def swap(exchange: Exchange, sent: Sequence[Batch]) -> list[Batch]:
    """Send both ways, see that every frame is there, whole, once and in order."""
    received = exchange.transfer(sent, [count(sent[1]), count(sent[0])])
    assert_swapped(sent, received)
    return received


def assert_swapped(sent: Sequence[Batch], received: Sequence[Batch]) -> None:
    for card in (0, 1):
        assert faults(sent[1 - card], list(chain(*received[card]))) == [], f"card {card}"


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_size_arrives(stack: ExitStack, tmp_path: Path, variant: Variant) -> None:
    rig = Rig(stack, tmp_path, variant)
    rig.back_end(Switch)
    exchange = rig.exchange()
    longest = variant.mtu + 14
    sizes = [*shuffled(ETHERNET_SIZES), *range(1514, longest, 37), longest]
    received = swap(exchange, both_ways(sizes, variant.queues))
    assert exchange.receive_paths() == {variant.path}
    assert all(queue for batch in received for queue in batch), "a queue was left out"


@pytest.mark.parametrize("variant", [DEFAULT, MERGEABLE, SERVER], ids=lambda v: v.name)
def test_control(stack: ExitStack, tmp_path: Path, variant: Variant) -> None:
    """The same on DPDK's own back-end: the cards, the files and the comparison are right."""
    rig = Rig(stack, tmp_path, variant)
    rig.back_end(Vhost)
    swap(rig.exchange(), both_ways(shuffled(ETHERNET_SIZES), variant.queues))


@both_back_ends
def test_bursts(stack: ExitStack, tmp_path: Path, back_end: type[Switch | Vhost]) -> None:
    """Frames one by one, by odd numbers, and by more than the back-end takes at once."""
    rig = Rig(stack, tmp_path, DEFAULT)
    rig.back_end(back_end)
    exchange = rig.exchange()
    for batch, burst in enumerate((1, 7, 32, 200)):
        exchange.command(f"set burst {burst}")
        swap(exchange, both_ways(shuffled(range(60, 1515, 3)), batch=batch))


@both_back_ends
def test_card_restarts(stack: ExitStack, tmp_path: Path, back_end: type[Switch | Vhost]) -> None:
    """A card that is stopped and started again finds its rings where it left them."""
    rig = Rig(stack, tmp_path, DEFAULT)
    rig.back_end(back_end)
    exchange = rig.exchange()
    for batch in range(3):
        swap(exchange, both_ways(shuffled(range(60, 1515, 7)), batch=batch))
        for card in (0, 1):
            exchange.restart_card(card)


@both_back_ends
def test_front_end_killed(stack: ExitStack, tmp_path: Path, back_end: type[Switch | Vhost]) -> None:
    """A front-end that dies frees its ports for the next."""
    rig = Rig(stack, tmp_path, DEFAULT)
    rig.back_end(back_end)
    for batch in range(2):
        exchange = rig.exchange()
        swap(exchange, both_ways(shuffled(range(60, 1515, 7)), batch=batch))
        exchange.kill()


@our_back_end
def test_back_end_killed_between_frames(
    stack: ExitStack, tmp_path: Path, back_end: type[Switch | Vhost]
) -> None:
    """The next back-end goes on where the last one was: nothing is lost, nothing comes twice."""
    rig = Rig(stack, tmp_path, SERVER)
    first = rig.back_end(back_end)
    exchange = rig.exchange()
    swap(exchange, both_ways(shuffled(ETHERNET_SIZES)))
    before = len(exchange.output)
    first.kill()
    rig.back_end(back_end)
    exchange.await_reconnection(before)
    swap(exchange, both_ways(shuffled(ETHERNET_SIZES), batch=1))


@our_back_end
def test_back_end_killed_under_load(
    stack: ExitStack, tmp_path: Path, back_end: type[Switch | Vhost]
) -> None:
    """Nothing damaged or out of order, at most what was in hand comes twice; then all is well.

    Frames may be lost: those the dead one held, and those for a card that is not back yet.
    """
    rig = Rig(stack, tmp_path, SERVER)
    first = rig.back_end(back_end)
    exchange = rig.exchange()
    sent = both_ways(shuffled(ETHERNET_SIZES) * 4)
    exchange.send(sent)
    assert exchange.await_arrival([500, 500])
    before = len(exchange.output)
    first.kill()
    rig.back_end(back_end)
    exchange.await_reconnection(before)
    exchange.await_quiet()
    received = exchange.collect()
    for card in (0, 1):
        (stream,), (arrived,) = sent[1 - card], received[card]
        seen = set(arrived)
        once = list(dict.fromkeys(arrived))
        assert once == [frame for frame in stream if frame in seen]
        assert len(arrived) - len(once) <= BURST_MAX
    swap(exchange, both_ways(shuffled(ETHERNET_SIZES), batch=1))


def test_learn(stack: ExitStack, tmp_path: Path) -> None:
    """A broadcast reaches all others; then a known card's frames reach it alone."""
    rig = Rig(stack, tmp_path, DEFAULT, cards=3)
    rig.back_end(Switch, forward="learn")
    exchange = rig.exchange()
    sizes = shuffled(range(60, 1515, 20))  # fewer than a ring holds: learn drops, not waits
    for card in range(3):
        shout(exchange, card, sizes, batch=card)
    sent = [*both_ways(sizes, batch=3), [[]]]
    received = exchange.transfer(sent, [len(sizes), len(sizes), 0])
    assert_swapped(sent, received)
    assert received[2] == [[]]
    shout(exchange, 0, sizes, batch=4)  # before it card 2 would hear what it missed until now


def shout(exchange: Exchange, card: int, sizes: Sequence[int], batch: int) -> None:
    """A card broadcasts: the others hear that and nothing else, it hears nothing."""
    sound = frames(100 * batch, mac(card), BROADCAST, sizes)
    sent = [[sound] if card == other else [[]] for other in range(3)]
    heard = [[] if card == other else sound for other in range(3)]
    received = exchange.transfer(sent, [len(stream) for stream in heard])
    for other in range(3):
        assert faults([heard[other]], received[other][0]) == [], f"{card} to {other}"
