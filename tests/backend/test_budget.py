"""A port's share of the control plane, by the clock and on a connection."""

import errno
import os
from contextlib import contextmanager

import pytest
from host import PATIENCE_S, Host, carry, eventually, frame

from vhostfast.backend import connection
from vhostfast.backend.budget import BURST_S, SHARE, TURN_MAX_S, Budget
from vhostfast.driver.wire import Wire
from vhostfast.protocol.message import U64, Request, VringEnable, encode

FRAMES = [frame(i) for i in range(100)]


def test_a_burst_is_free_and_what_is_more_comes_back_at_the_share():
    budget = Budget(lambda: 4)
    assert budget.wait_s(100.0) == 0.0
    budget.spend(BURST_S)
    assert budget.wait_s(100.0) == 0.0
    budget.spend(0.01)
    assert budget.wait_s(100.0) == pytest.approx(0.01 * 4 / SHARE)
    assert budget.wait_s(100.1) == pytest.approx(0.01 * 4 / SHARE - 0.1)
    assert budget.wait_s(101.0) == 0.0


def test_no_more_than_a_burst_is_saved():
    budget = Budget()
    budget.wait_s(0.0)
    budget.wait_s(1e6)
    budget.spend(BURST_S + SHARE)
    assert budget.wait_s(1e6) == pytest.approx(1.0)


def test_what_the_thread_does_is_counted_and_what_it_waits_for_is_not():
    budget = Budget()
    with budget.spending():
        sum(range(100_000))
    budget.spend(BURST_S)
    assert 0 < budget.wait_s(0.0) < 1


def test_one_turn_that_takes_long_is_not_held_against_the_port(monkeypatch):
    budget, times = Budget(), iter([0.0, 100.0])
    budget.spend(BURST_S)
    monkeypatch.setattr("time.thread_time", lambda: next(times))
    with budget.spending():
        pass
    assert budget.wait_s(0.0) == pytest.approx(TURN_MAX_S / SHARE)


@pytest.mark.hostile("stream", "messages that take long, many at once", "no effect on others")
def test_a_turn_ends_when_its_time_is_up():
    """What is more is not counted; and who is in the middle has its next turn later."""

    class Slow(Budget):
        turns = 0

        @contextmanager
        def spending(self):
            self.turns += 1
            times = iter([0.0, TURN_MAX_S])
            yield lambda: next(times)

    with Host() as host:
        budget = Slow()
        host.ports[0].budget = budget
        wire = Wire(host.plug(0), PATIENCE_S)
        wire.send_bytes(encode(Request.GET_FEATURES) * 10)
        for _ in range(10):
            assert wire.receive(Request.GET_FEATURES) == U64(host.offer.features)
        assert budget.turns >= 10
        wire.close()
        host.reason(0)


@pytest.mark.hostile(
    "stream", "messages that pause the workers, without end", "no effect on others"
)
def test_who_has_used_up_its_share_waits_and_others_do_not(caplog, monkeypatch):
    """The port's share goes by port: a new front-end of it waits as well. Then both are served."""
    with Host(ports=4) as host:
        vm, a, b = host.vm(0), host.vm(2), host.vm(3)
        budget = host.ports[0].budget
        monkeypatch.setattr(connection, "LOOK_AGAIN_S", 0.001)
        budget.spend(BURST_S + 1e6)
        vm.frontend.fence()  # the last that is read,
        host.fence()  # and after it nothing is
        off = encode(Request.SET_VRING_ENABLE, VringEnable(1, 0))
        vm.frontend.wire.send_bytes(off * 100)
        for _ in range(20):
            assert carry(a, b, FRAMES) == FRAMES
            a.frontend.fence()
        assert set(host.ports[0].port.rings) == {0, 1}, "a message of it was heard"
        told = [message for message in caplog.messages if "have to wait" in message]
        assert told == [
            "port0: its messages take more than its share of the control plane: they have to wait"
        ]
        vm.close()
        assert host.reason(0) == "the peer closed the socket"
        again = host.plug(0)
        again.settimeout(PATIENCE_S)
        again.send(encode(Request.GET_FEATURES))
        host.fence()
        budget.spend(-2e6)
        assert len(again.recv(100)) == 20
        again.close()
        eventually(lambda: not host.connected(0))


def test_no_room_to_wait_for_more_messages_ends_the_connection(monkeypatch):
    """Else nobody would ever look at it again: epoll may have none when the share has come back."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Host() as host:
        vm = host.vm(0)
        monkeypatch.setattr(connection, "LOOK_AGAIN_S", 0.001)
        with monkeypatch.context() as patch:
            patch.setattr(host.loop, "add_reader", full)
            host.ports[0].budget.spend(BURST_S + 1e6)
            vm.frontend.fence()
            assert "this machine lacks something: [Errno 28]" in host.reason(0)
        vm.close()
