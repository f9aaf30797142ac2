"""Receive buffers of very many pieces cost their own port its share, and nobody else."""

from itertools import count

import pytest
from yard import Shape, Yard

from vhostfast.driver import mac

PIECES = 30_000  # one such buffer is more than a port may owe
RECEIVER, HONEST = mac(1), mac(2)


def frame(target: bytes, number: int) -> bytes:
    return target + mac(9) + b"\x88\xb5" + number.to_bytes(2, "big") + bytes(50)


@pytest.mark.hostile(
    "packets", "receive buffers of 30,000 pieces", "delivered, no effect on others"
)
@pytest.mark.parametrize("mergeable", [True, False])
@pytest.mark.parametrize("fits", [True, False])
def test_receive_buffers_of_very_many_pieces(mergeable: bool, fits: bool) -> None:
    receiver = Shape(size=32768, mergeable=mergeable)
    with Yard("learn", shapes=(Shape(size=64), receiver, Shape(size=64))) as yard:
        sender, costly, honest = yard.guests
        for address, guest in ((RECEIVER, costly), (HONEST, honest)):
            yard.fabric.learn(address, guest.port)
        costly.post(2000 if fits else 20, *[0] * PIECES)

        def exchange(number: int) -> int:
            """How many were dropped for what the receiver costs."""
            before = costly.port.counters()["tx_dropped_costly"]
            honest.post(200)
            sender.send(frame(RECEIVER, number))
            sender.send(frame(HONEST, number))
            moved = 0
            for _ in range(1_000_000):  # a turn is cut behind so many pieces, or its port sits out
                moved += yard.worker.turn(forgive=False)
                if moved == 2:
                    break
            assert honest.received() == [frame(HONEST, number)]
            return costly.port.counters()["tx_dropped_costly"] - before

        assert exchange(0) == 0
        assert costly.received() == [frame(RECEIVER, 0)] * fits
        counters = costly.port.counters()
        reason = "tx_dropped_full" if mergeable else "tx_dropped_too_big"
        assert counters[reason] == (not fits)
        # It owes, but where this machine takes a while for others that may be paid for already.
        number = next(number for number in count(1) if exchange(number))
        if fits:
            costly.post(200)
        for _ in range(300):  # time that nobody wants pays for it
            yard.worker.turn(forgive=False)
        assert exchange(number + 1) == 0
        assert costly.received() == [frame(RECEIVER, number + 1)] * fits
