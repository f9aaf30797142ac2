"""Eventfds that a front-end has filled and made blocking again, for the flag is on the file that it
shares with us: nobody waits in a write to one, and the port goes on."""

import fcntl
import os
import threading

import pytest
from host import Host, Vm, carry, frame
from logfile import LogFile, log_all

from vhostfast.protocol.message import Request

FULL = 2**64 - 2


def fill(fd: int) -> None:
    """The counter as high as it goes; the next write would wait until somebody reads."""
    os.set_blocking(fd, False)
    while True:
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            break
    os.eventfd_write(fd, FULL)
    os.set_blocking(fd, True)


def assert_others_go_on(host: Host, a: Vm, b: Vm) -> None:
    frames = [frame(number) for number in range(200)]
    assert carry(a, b, frames) == frames
    assert all(host.connected(port) for port in range(3))


@pytest.mark.hostile("fds", "a call fd that is full and blocks", "no effect")
@pytest.mark.parametrize("ring", [0, 1], ids=["receives", "sends"])
@pytest.mark.parametrize("mode", ["poll", "interrupt"])
def test_a_call_fd_that_is_full_and_blocks(ring: int, mode: str) -> None:
    with Host("learn", ports=3, mode=mode) as host:
        a, b, c = (host.vm(port) for port in range(3))
        b.send([frame(0, to=1, sender=2)])
        assert a.receive(1) == c.receive(1)
        call_fd = c.frontend.rings[ring].call_fd
        fill(call_fd)
        if ring == 0:
            b.send(frame(number, to=99, sender=2) for number in range(8))
        else:
            c.send(frame(number, to=2, sender=3) for number in range(8))
            assert len(b.receive(8)) == 8
        host.settle()
        assert_others_go_on(host, a, b)
        assert os.eventfd_read(call_fd) >= FULL


@pytest.mark.hostile("fds", "a call fd replaced by one that blocks", "no effect")
def test_a_call_fd_that_is_replaced_by_one_that_blocks() -> None:
    """SET_VRING_CALL signals at once: the flag goes at any moment before."""
    with Host("learn", ports=3) as host:
        a, b, c = (host.vm(port) for port in range(3))
        b.send([frame(0, to=1, sender=2)])
        assert a.receive(1) == c.receive(1)
        fd = os.eventfd(0)
        fill(fd)
        done = threading.Event()

        def take_the_flag_away() -> None:
            while not done.is_set():
                fcntl.fcntl(fd, fcntl.F_SETFL, 0)

        thread = threading.Thread(target=take_the_flag_away)
        thread.start()
        for _ in range(100):
            c.frontend.tell_file(Request.SET_VRING_CALL, 0, fd)
        c.frontend.fence()
        done.set()
        thread.join()
        os.close(fd)
        assert_others_go_on(host, a, b)


@pytest.mark.hostile("fds", "a log fd that is full and blocks", "no effect")
def test_a_log_fd_that_is_full_and_blocks() -> None:
    with Host("learn", ports=3) as host, LogFile() as log:
        a, b, c = (host.vm(port) for port in range(3))
        b.send([frame(0, to=1, sender=2)])
        assert a.receive(1) == c.receive(1)
        fd = os.eventfd(0)
        log.base(c.frontend)
        c.frontend.request(Request.SET_LOG_FD, fds=[fd])
        log_all(c.frontend, True)
        fill(fd)
        b.send(frame(number, to=99, sender=2) for number in range(8))
        host.settle()
        assert_others_go_on(host, a, b)
        assert log.pages()
        os.close(fd)
