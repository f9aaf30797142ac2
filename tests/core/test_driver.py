"""The driver's half of a split ring, against a back-end in plain Python that reads raw words."""

import os

import numpy as np
import pytest
from guest import Guest
from plain_backend import PlainBackend

from vhostfast.core.driver import DriverRing, Mapping
from vhostfast.errors import ProtocolError

CHAINS = (
    [(0x1000, 64, False)],
    [(0x1000, 12, False), (0x2000, 1500, False)],
    [(0x1000, 12, True), (0x2000, 1500, True), (0xFFFF_FFFF_0000, 0xFFFF_FFFF, True)],
    [(0x1000, 1, False), (0x2000, 2, True)],
)


@pytest.mark.parametrize("base", [0, 1, 32767, 65533, 65535])
@pytest.mark.parametrize("event_idx", [False, True])
def test_every_chain_arrives_and_returns_across_the_wrap(base: int, event_idx: bool) -> None:
    with Guest() as guest:
        vring = guest.vring(8, base=base, event_idx=event_idx)
        backend = PlainBackend(vring)
        for number in range(40):
            chain = CHAINS[number % len(CHAINS)]
            head = vring.ring.add(chain, indirect=number % 3 == 0)
            assert backend.pop() == (head, chain)
            assert vring.ring.take() is None
            backend.push(head, number)
            assert vring.ring.take() == (head, number)
        assert vring.ring.free_count == 8
        assert vring.ring.used_index == vring.ring.avail_index == (base + 40) % 65536


def test_a_full_ring_and_any_order_of_return() -> None:
    with Guest() as guest:
        vring = guest.vring(8)
        backend = PlainBackend(vring)
        for _ in range(5):
            heads = [vring.ring.add([(n, 1, False), (n, 2, False)]) for n in range(4)]
            with pytest.raises(ValueError, match="1 descriptors needed, 0 free"):
                vring.ring.add([(0, 1, False)])
            popped = [backend.pop() for _ in heads]
            assert popped == [(h, [(n, 1, False), (n, 2, False)]) for n, h in enumerate(heads)]
            for head in (heads[2], heads[0], heads[3], heads[1]):
                backend.push(head, head)
            assert [head for head, _ in vring.ring.take_all()] == [
                heads[2], heads[0], heads[3], heads[1],
            ]  # fmt: skip


def test_nothing_is_visible_before_publish() -> None:
    with Guest() as guest:
        vring = guest.vring(4, base=65535)
        vring.ring.add([(0, 1, False)], publish=False)
        vring.ring.add([(1, 1, False)], publish=False)
        assert vring.ring.avail["idx"] == 65535
        vring.ring.publish()
        assert vring.ring.avail["idx"] == 1


@pytest.mark.parametrize(
    ("number", "limit"),
    [(0, "at least one buffer"), (9, "9 buffers; an indirect table has 8")],
)
def test_an_indirect_chain_fits_its_table(number: int, limit: str) -> None:
    with Guest() as guest, pytest.raises(ValueError, match=limit):
        guest.vring(4).ring.add([(0, 1, False)] * number, indirect=True)


# --- A back-end that breaks the rules is caught ---------------------------------------------------


def test_an_id_that_is_not_on_offer_is_refused() -> None:
    with Guest() as guest:
        vring = guest.vring(4)
        backend = PlainBackend(vring)
        head = vring.ring.add([(0, 1, False), (1, 1, False)])
        vring.ring.add([(2, 1, False)])
        backend.push(head, 0)
        assert vring.ring.take() == (head, 0)
        backend.push(head, 0)  # twice
        with pytest.raises(ProtocolError, match="used ring: id is 0, must be the head of a chain"):
            vring.ring.take()


@pytest.mark.parametrize("bad", [3, 4, 0xFFFF_FFFF])
def test_an_id_that_never_was_a_head_is_refused(bad: int) -> None:
    with Guest() as guest:
        vring = guest.vring(4)
        vring.ring.add([(0, 1, False)])
        PlainBackend(vring).push(bad, 0)
        with pytest.raises(ProtocolError, match=f"id is {bad}"):
            vring.ring.take()


@pytest.mark.parametrize("ahead", [2, 100, 65535])
def test_a_used_index_ahead_of_the_offer_is_refused(ahead: int) -> None:
    with Guest() as guest:
        vring = guest.vring(4, base=7)
        vring.ring.add([(0, 1, False)])
        vring.ring.used["idx"] = (7 + ahead) % 65536
        with pytest.raises(ProtocolError, match=r"used ring: idx is \d+, must be 7 to 8"):
            vring.ring.take()


# --- Suppression, both ways (2.7.7, 2.7.10) -------------------------------------------------------


def test_kicks_by_flag() -> None:
    with Guest() as guest:
        ring = guest.vring(4).ring
        assert not ring.kick()  # nothing offered
        ring.add([(0, 1, False)])
        assert ring.kick()
        ring.used["flags"] = 1
        ring.add([(0, 1, False)])
        assert not ring.kick()
        assert ring.kick(force=True)
        assert ring.kicks == 2


@pytest.mark.parametrize(
    ("base", "added", "event", "wanted"),
    [
        (0, 1, 0, True),
        (0, 1, 1, False),
        (0, 3, 2, True),
        (0, 3, 3, False),
        (65534, 3, 65535, True),
        (65534, 3, 0, True),
        (65534, 3, 1, False),
        (65534, 3, 65533, False),
    ],
)
def test_kicks_by_event_index(base: int, added: int, event: int, wanted: bool) -> None:
    with Guest() as guest:
        ring = guest.vring(4, base=base, event_idx=True).ring
        ring.used["avail_event"] = event
        ring.used["flags"] = 1  # ignored with EVENT_IDX
        for _ in range(added):
            ring.add([(0, 1, False)])
        assert ring.kick_wanted() is wanted
        assert not ring.kick_wanted()  # tested once


def test_calls_wanted_or_not() -> None:
    with Guest() as guest:
        flagged, indexed = guest.vring(4).ring, guest.vring(4, base=5, event_idx=True).ring
        flagged.want_calls(False)
        assert flagged.avail["flags"] == 1
        assert not flagged.want_calls()
        assert flagged.avail["flags"] == 0
        assert not indexed.want_calls()
        assert (indexed.avail["used_event"], indexed.avail["flags"]) == (5, 0)
        indexed.want_calls(False)
        assert indexed.avail["used_event"] == 4
        indexed.used["idx"] = 6
        assert indexed.want_calls()  # something came meanwhile


def test_a_call_is_waited_for() -> None:
    with Guest() as guest:
        vring = guest.vring(4)
        assert not vring.ring.wait_call(0)
        os.eventfd_write(vring.call_fd, 3)
        assert vring.ring.wait_call(0)
        assert not vring.ring.wait_call(0)


# --- Areas ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 3, 65536])
def test_a_size_that_is_no_power_of_two(size: int) -> None:
    area = np.zeros(1 << 21, np.uint8)
    with pytest.raises(ValueError, match="power of two"):
        DriverRing(area, area, area, size=size)


def test_areas_too_small_or_askew() -> None:
    area = np.zeros(64, np.uint64).view(np.uint8)
    with pytest.raises(ValueError, match="avail has 11 bytes, needs 12"):
        DriverRing(area[:64], area[64:75], area[128:], size=4)
    with pytest.raises(ValueError, match="avail has 12 bytes, needs 14"):
        DriverRing(area[:64], area[64:76], area[128:], size=4, event_idx=True)
    with pytest.raises(ValueError, match="used must be aligned to 4"):
        DriverRing(area[:64], area[64:], area[130:], size=4)


def test_reset_begins_anew() -> None:
    with Guest() as guest:
        vring = guest.vring(4, event_idx=True)
        vring.ring.add([(0, 1, False)] * 3)
        vring.ring.reset(99)
        assert vring.ring.free_count == 4
        assert str(vring.ring.avail) == "(0, 99, [0, 0, 0, 0], 99)"
        assert vring.ring.used["idx"] == vring.ring.avail_index == 99
        assert not vring.ring.desc["addr"].any()


def test_a_map_that_cannot_be() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        Mapping(-1, 4096)
