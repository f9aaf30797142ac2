"""fds are closed aside: at once as a rule, in order of need, and nobody waits who should not."""

import asyncio
import os
import socket
import threading
from collections.abc import Awaitable, Callable

import pytest
from waiting import lingering

from vhostfast.backend import closing
from vhostfast.backend.closing import WAITING_MAX, Closer, close_fds, hang_up

PATIENCE_S = 5.0


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), PATIENCE_S))


def events(count: int) -> list[int]:
    return [os.eventfd(0) for _ in range(count)]


def opened(fds: list[int]) -> list[bool]:
    return [os.path.lexists(f"/proc/self/fd/{fd}") for fd in fds]


def test_these_are_closed_and_no_others() -> None:
    fds = events(6)
    close_fds([fds[5], fds[1], fds[2], fds[0]])
    assert opened(fds) == [False, False, False, True, True, False]
    close_fds(fds[3:5])
    close_fds([])


def test_who_hangs_up_is_heard_at_once() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        left = hang_up(ours)
        assert theirs.recv(1) == b""
        assert (opened(left), hang_up(ours)) == ([True], [])
        close_fds(left)


def test_without_fds_there_is_no_thread() -> None:
    async def work() -> None:
        before = threading.active_count()
        closer = Closer("port")
        closer.close([])
        await closer.idle()
        assert threading.active_count() == before

    run(work)


def test_all_are_closed_and_it_is_told() -> None:
    async def work() -> None:
        told = asyncio.Event()
        closer, fds = Closer("port", told.set), events(3 * WAITING_MAX)
        for fd in fds:
            closer.close([fd])
        await closer.idle()
        await told.wait()
        assert not any(opened(fds))
        assert not closer.full

    run(work)


def test_one_that_waits_holds_up_those_behind_it_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By one thread; it is told once."""
    monkeypatch.setattr(closing, "LATE_S", 0.05)

    async def work() -> None:
        before, closer, other = threading.active_count(), Closer("bad"), Closer("good")
        with lingering() as fd:
            closer.close([fd])
            while opened([fd]) == [True]:
                await asyncio.sleep(0.001)
            fds = events(WAITING_MAX)
            for behind in fds:
                assert not closer.full
                closer.close([behind])
            good = events(1)
            other.close(good)
            await other.idle()
            await asyncio.sleep(0.2)
            assert closer.full
            assert (opened(good), all(opened(fds))) == ([False], True)
            assert threading.active_count() <= before + 2  # that of `other` may not have ended
        await closer.idle()
        assert not any(opened(fds))
        assert not closer.full

    run(work)
    assert ["bad" in line for line in caplog.messages] == [True]


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(closing, "NO_THREAD_S", 0.01)
    aside, refusals = closing.aside, iter(range(3))

    def scarce(work: Callable[[], None]) -> None:
        if next(refusals, None) is not None:
            raise error
        aside(work)

    monkeypatch.setattr(closing, "aside", scarce)

    async def work() -> None:
        closer, fds = Closer("port"), events(2)
        closer.close(fds[:1])
        closer.close(fds[1:])
        await closer.idle()
        assert not any(opened(fds))

    run(work)


def test_the_loop_ends_meanwhile() -> None:
    """Nobody waits for the thread, and it closes what is left."""
    fds = events(2)

    async def work(fd: int) -> None:
        closer = Closer("port")
        closer.close([fd])
        while opened([fd]) == [True]:
            await asyncio.sleep(0.001)
        closer.close(fds)

    with lingering() as fd:
        run(lambda: work(fd))
        assert all(opened(fds))
    for thread in threading.enumerate():
        if thread.name == "vhostfast-closing":
            thread.join(PATIENCE_S)
    assert not any(opened(fds))
