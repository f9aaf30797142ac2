"""Reconcile: the world made to match what a front-end has said, with real memfds and rings.

Nobody walks the rings, so a pause costs nothing here. A null row records the same messages, and
leaves the world as it is.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext

import pytest
from guest import Guest

from vhostfast.backend.reconcile import World
from vhostfast.core.ring import Ring
from vhostfast.driver.frontend import FEATURES
from vhostfast.protocol.features import Offer
from vhostfast.protocol.message import (
    U64,
    Message,
    Payload,
    Request,
    VringBase,
    VringEnable,
    VringFile,
    VringSize,
)
from vhostfast.protocol.session import Session

pytestmark = pytest.mark.benchmark(group="reconcile")
REGIONS = ((0, 64 << 20),)


class Still:
    """A dataplane without a thread."""

    name = "still"

    def __init__(self) -> None:
        self.rings: dict[int, Ring] = {}

    def paused(self) -> AbstractContextManager[None]:
        return nullcontext()

    def attach(self, ring: Ring) -> None:
        self.rings[ring.index] = ring

    def detach(self, ring: Ring) -> None:
        del self.rings[ring.index]

    def count(self, event: str, amount: int = 1) -> None:
        raise AssertionError(f"{event}: nothing here goes wrong")


class Scene:
    """A connection whose two rings run, and a second memory like its first."""

    def __init__(self, stack: ExitStack) -> None:
        self.dataplane = Still()
        self.world = World(self.dataplane)
        stack.callback(self.world.close)
        self.session = Session(Offer.net())
        self.guests = [stack.enter_context(Guest(REGIONS)) for _ in range(2)]
        pairs = [[guest.vring(index=index) for index in (0, 1)] for guest in self.guests]
        self.vrings = pairs[0]
        self.tell(Request.SET_FEATURES, U64(FEATURES))
        self.swap_memory(0)
        for vring in self.vrings:
            self.tell(Request.SET_VRING_NUM, VringSize(vring.index, vring.size))
            self.tell(Request.SET_VRING_BASE, VringBase(vring.index, 0))
            self.tell(Request.SET_VRING_ADDR, vring.addresses())
            self.tell(Request.SET_VRING_ENABLE, VringEnable(vring.index, 1))
        self.start()
        self.world.reconcile(self.session)

    def tell(self, request: Request, payload: Payload, *fds: int) -> None:
        """Record it. The fds are the guests', whatever the session thinks."""
        self.session.apply(Message(request, payload, fds, False))
        self.session.discarded.clear()

    def swap_memory(self, which: int) -> None:
        memory = self.guests[which].memory
        self.tell(Request.SET_MEM_TABLE, memory.table, *memory.fds)

    def start(self) -> None:
        for vring in self.vrings:
            self.tell(Request.SET_VRING_CALL, VringFile(vring.index, True), vring.call_fd)
            self.tell(Request.SET_VRING_KICK, VringFile(vring.index, True), vring.kick_fd)

    def stop(self) -> None:
        for vring in self.vrings:
            self.tell(Request.GET_VRING_BASE, VringBase(vring.index, 0))

    def running(self) -> list[int]:
        return [index for index, ring in self.dataplane.rings.items() if ring.running]


@pytest.fixture
def scene() -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(stack)


REAL = pytest.mark.parametrize("real", [False, True], ids=["null", "reconciled"])


def test_nothing_to_do(benchmark, scene):
    benchmark(scene.world.reconcile, scene.session)
    assert scene.running() == [0, 1]


@REAL
def test_memory_is_swapped_and_swapped_back(benchmark, scene, real):
    before = scene.dataplane.rings[0].memory

    def swap() -> None:
        for which in (1, 0):
            scene.swap_memory(which)
            if real:
                scene.world.reconcile(scene.session)

    benchmark(swap)
    assert scene.running() == [0, 1]
    assert (scene.dataplane.rings[0].memory is not before) == real


@REAL
def test_two_rings_are_stopped_and_started(benchmark, scene, real):
    before = scene.dataplane.rings[0]

    def restart() -> None:
        for step in (scene.stop, scene.start):
            step()
            if real:
                scene.world.reconcile(scene.session)

    benchmark(restart)
    assert scene.running() == [0, 1]
    assert (scene.dataplane.rings[0] is not before) == real
