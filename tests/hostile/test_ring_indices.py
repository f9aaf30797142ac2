"""Indices that lie, heads that come twice, words that are not ours poisoned, and kicks at wrong
times."""

import os
from itertools import product

import numpy as np
import pytest
from host import Host, carry
from host import frame as numbered
from hostile.scene import (
    BUFFERS,
    END,
    HEADER,
    HOLE,
    HOSTILE,
    REGIONS,
    RING,
    WRITE,
    Desc,
    Scene,
    Setting,
    cut,
    frame,
)

SIDES = [False, True]  # whether the device writes
FORWARDS = ["patch", "learn", "loopback", "device"]
both_rings = pytest.mark.parametrize("writes", SIDES, ids=["sends", "receives"])
every_way = pytest.mark.parametrize("forward", FORWARDS)


def hostile(case: str, outcome: str) -> pytest.MarkDecorator:
    return pytest.mark.hostile("rings", case, outcome)


# --- avail.idx


def whole_ring(scene: Scene) -> None:
    """A descriptor for each head, of one packet."""
    gpa = scene.packet()
    for head in range(RING):
        descs = [Desc(gpa if not scene.writes else scene.packet(), HEADER + 60)]
        scene.offer(descs, head=head)


@hostile("avail.idx ahead by the ring's size", "delivered")
@every_way
@both_rings
@pytest.mark.parametrize("base", [0, 65520, 65535])
def test_a_jump_by_the_rings_size(writes, forward, base):
    with Scene(Setting(forward), writes, base=base) as scene:
        whole_ring(scene)
        if forward == "device" and writes:
            scene.look()
            assert scene.ring.send([np.frombuffer(frame(HOSTILE, 1), np.uint8)] * 30) == RING
            scene.compare()
        elif writes:
            scene.play(count=5)
            assert len(scene.used()) == 5
        else:
            got = scene.play(room=RING)
            assert got == [frame(scene.receiver, HOSTILE)] * RING
            assert scene.used() == [(head, 0) for head in range(RING)]
        assert scene.fault is None
        scene.others_go_on()


@pytest.mark.parametrize(
    "jump",
    [
        pytest.param(RING + 1, marks=hostile("avail.idx ahead by one more", "port closes")),
        pytest.param(32768, marks=hostile("avail.idx ahead by 32768", "port closes")),
        pytest.param(-1, marks=hostile("avail.idx behind", "port closes")),
        pytest.param(-3, marks=hostile("avail.idx behind", "port closes")),
    ],
)
@every_way
@both_rings
@pytest.mark.parametrize("base", [0, 1, 65520, 65535])
def test_an_index_that_lies(writes, forward, base, jump):
    with Scene(Setting(forward), writes, base=base) as scene:
        whole_ring(scene)
        scene.vring.ring.avail["idx"] = (base + jump) & 0xFFFF
        assert scene.play() == []
        assert "avail.idx is ahead by more than the ring's size" in scene.fault
        assert scene.used() == []
        scene.others_go_on()


@hostile("avail.idx goes back after some were taken", "port closes")
@both_rings
def test_an_index_that_goes_back(writes):
    with Scene(Setting("patch"), writes) as scene:
        for head in range(3):
            scene.offer(cut(scene.packet()), head=head)
        scene.play(count=3, room=4)
        assert len(scene.used()) == 3
        scene.vring.ring.avail["idx"] = (65530 + 2) & 0xFFFF
        if writes:
            scene.send(scene.yard.guests[scene.sender], frame(HOSTILE, scene.sender))
        scene.look()
        scene.play_on()
        assert "avail.idx" in scene.fault
        assert scene.used() == []
        scene.others_go_on()


# --- Heads


@hostile("the same head twice in the avail ring", "delivered")
@pytest.mark.parametrize("forward", ["patch", "learn", "loopback"])
@both_rings
@pytest.mark.parametrize("mergeable", [False, True])
def test_a_head_that_comes_twice(writes, forward, mergeable):
    """It is taken as often as it is offered: twice sent, or filled twice, and that is its guest's
    loss."""
    with Scene(Setting(forward, mergeable=mergeable), writes) as scene:
        head = scene.offer(cut(scene.packet(), HEADER))
        scene.offer_head(head)
        got = scene.play(count=2)
        assert scene.fault is None
        assert scene.used() == [(head, (HEADER + 60) * writes)] * 2
        assert got == [] if writes else [frame(scene.receiver, HOSTILE)] * 2
        scene.others_go_on()


@hostile("one buffer twice for one mergeable packet", "delivered")
@pytest.mark.parametrize("forward", ["patch", "learn", "loopback", "device"])
def test_a_buffer_for_both_halves_of_a_packet(forward):
    with Scene(Setting(forward), writes=True) as scene:
        head = scene.offer([Desc(scene.packet(), 40)])
        scene.offer_head(head)
        scene.play()
        assert scene.used() == [(head, 40), (head, HEADER + 60 - 40)]
        assert scene.fault is None
        scene.others_go_on()


BAD_BUFFERS = {
    "in a hole": Desc(HOLE, 100),
    "partly in a hole": Desc(END - 20, 100),
    "read-only": Desc(BUFFERS + 0x800, 100, WRITE),
    "smaller than the header": Desc(BUFFERS + 0x800, HEADER - 1),
    "a loop": Desc(BUFFERS + 0x800, HEADER, next="first"),
}


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(bad, marks=hostile(f"the second buffer of a packet is {name}", "port closes"))
        for name, bad in BAD_BUFFERS.items()
    ],
    ids=BAD_BUFFERS,
)
@every_way
@pytest.mark.parametrize("log", [False, True])
def test_no_byte_goes_to_the_first_buffer_if_the_second_is_bad(forward, bad, log):
    with Scene(Setting(forward, log=log), writes=True) as scene:
        scene.offer([Desc(scene.packet(), 40)], head=0)
        scene.offer([bad], head=1)
        scene.play()
        assert scene.fault
        assert scene.used() == []
        scene.others_go_on()


# --- Buffers over the ring itself, chains over 4 GiB


@pytest.mark.parametrize(
    "area",
    [
        pytest.param("avail", marks=hostile("a buffer over its ring's avail area", "port closes")),
        pytest.param("used", marks=hostile("a buffer over its ring's used area", "delivered")),
        pytest.param("desc", marks=hostile("a buffer over its own descriptor", "delivered")),
    ],
)
@pytest.mark.parametrize("forward", ["patch", "learn"])
def test_a_buffer_over_its_own_ring(forward, area):
    """What comes in is then in its ring; nothing of it is believed, and only that guest has it."""
    with Scene(Setting(forward), writes=True) as scene:
        at = getattr(scene.vring, f"{area}_gpa") + (16 * 5 if area == "desc" else 0)
        scene.offer([Desc(at, HEADER + 60)])
        used = scene.vring.used_gpa
        own = {*range(at, at + HEADER + 60), *range(used, used + 6 + 8 * RING)}
        for _ in range(2):  # the second finds what the first has left there
            scene.send(scene.yard.guests[scene.sender], frame(HOSTILE, scene.sender))
            scene.look()
            while scene.yard.turn():
                pass
            for guest in scene.guests[1:]:
                guest.check()
            assert scene.hostile.changed() <= own
        assert (scene.fault is not None) == (area == "avail")
        scene.others_go_on()


BIG = (1 << 33, 1 << 32)  # of a sparse file


@hostile("a chain of 4 GiB less a byte", "delivered")
@hostile("two buffers of 4 GiB less a byte for one packet", "delivered")
@pytest.mark.parametrize("mergeable", [False, True])
def test_the_longest_chain(mergeable):
    setting = Setting("patch", mergeable=mergeable)
    with Scene(setting, writes=True, regions=(*REGIONS, BIG), watch=REGIONS) as scene:
        scene.offer([Desc(BIG[0], 2**32 - 1)], head=0)
        if mergeable:
            scene.offer([Desc(scene.packet(), 20)], head=1)
            scene.offer([Desc(BIG[0], 2**32 - 1)], head=2)
        got = scene.play(count=2)
        assert scene.fault is None
        heads = [(0, 72), (1, 20), (2, 52)] if mergeable else [(0, 72)]
        assert scene.used() == heads
        assert got == []
        scene.others_go_on()


@hostile("a chain of 2^32 bytes and more", "port closes")
@every_way
@both_rings
@pytest.mark.parametrize("lengths", [[2**32 - 1, 1], [2**31, 2**31], [12, 60, 2**32 - 72]])
@pytest.mark.parametrize("in_table", [False, True])
def test_a_chain_that_is_too_long(writes, forward, lengths, in_table):
    with Scene(Setting(forward), writes, regions=(*REGIONS, BIG), watch=REGIONS) as scene:
        scene.offer([Desc(BIG[0], length) for length in lengths], in_table)
        assert scene.play() == []
        assert "a chain of 4 GiB or more" in scene.fault
        assert scene.used() == []
        scene.others_go_on()


# --- Words that the guest has no business with, or that we don't need


@hostile("used.idx, used.flags, avail.flags, used_event, avail_event and free entries poisoned",
         "no effect")  # fmt: skip
@pytest.mark.parametrize("poison", [0, 0x5555, 0xFFFF])
@pytest.mark.parametrize(("forward", "event_idx"), list(product(FORWARDS, [False, True])))
@both_rings
def test_poison(writes, forward, event_idx, poison):
    with Scene(Setting(forward), writes, event_idx=event_idx) as scene:
        raw, memory = scene.vring.ring, scene.hostile.one.guest.memory
        raw.desc["addr"] = raw.desc["len"] = raw.desc["next"] = poison
        raw.desc["flags"] = poison & 7
        raw.avail["ring"] = poison
        gpa = scene.packet()
        head = scene.offer(cut(gpa, HEADER))
        scene.vring.memory.write(scene.vring.used_gpa, poison.to_bytes(2, "little") * (3 + 4 * 16))
        raw.avail["flags"] = poison
        memory.write(scene.vring.avail_gpa + 4 + 2 * RING, poison.to_bytes(2, "little"))
        got = scene.play()
        assert scene.fault is None
        assert scene.used() == [(head, (HEADER + 60) * writes)]
        if writes:
            assert memory.read(gpa, HEADER + 60)[HEADER:] == frame(HOSTILE, scene.sender)
        else:
            assert got == [frame(scene.receiver, HOSTILE)]
        scene.others_go_on()


# --- Kicks


@hostile("kicked before its ring is enabled, stopped, after GET_VRING_BASE", "no effect")
@pytest.mark.parametrize("mode", ["interrupt", "poll", "adaptive"])
def test_kicks_at_wrong_times(mode):
    with Host("patch", ports=4, mode=mode) as host:
        a = host.vm(0, start=False, sequence="virtio-user")
        b, c, d = (host.vm(port) for port in (1, 2, 3))
        a.frontend.enabled_pairs = 0
        a.start()

        def kicked() -> None:
            before = a.picture()
            for _ in range(3):
                for vring in a.frontend.rings:
                    os.eventfd_write(vring.kick_fd, 1)
                assert carry(c, d, [numbered(1)]) == [numbered(1)]
                host.settle()
            assert a.picture() == before

        a.send([numbered(7)])
        kicked()
        a.frontend.enable(0)
        assert b.receive(1) == [numbered(7)]
        a.all_sent()
        a.frontend.stop()
        a.sender().ring.attach(-1, -1)
        a.send([numbered(8)])
        kicked()
        assert b.received() == []
        assert host.connected(0)


@hostile("never kicked, though it has a kick", "no effect")
def test_a_guest_that_never_kicks():
    """Its frame waits, and nobody else does."""
    with Host("patch", ports=4, mode="interrupt") as host:
        a, b, c, d = (host.vm(port) for port in range(4))
        a.sender().ring.attach(-1, a.sender().call_fd)
        a.send([numbered(7)])
        for number in range(20):
            assert carry(c, d, [numbered(number)]) == [numbered(number)]
        os.eventfd_write(a.sender().kick_fd, 1)
        assert b.receive(1) == [numbered(7)]
