"""The session, told through encode and decode as on a socket, by the front-ends' sequences."""

from dataclasses import replace
from itertools import count, permutations
from struct import pack

import pytest

from vhostfast.errors import ProtocolError
from vhostfast.protocol.features import MEMORY_SLOTS_MAX, Offer, ProtocolFeature, VirtioFeature
from vhostfast.protocol.message import (
    EMPTY,
    HEADER_SIZE,
    LOG_BYTE_SPAN,
    SPEC,
    U64,
    LogBase,
    Mac,
    MemoryTable,
    OneRegion,
    Region,
    RegionKey,
    Request,
    VringAddr,
    VringFile,
    VringState,
    decode,
    decode_reply,
    encode,
)
from vhostfast.protocol.session import EFFECTS, REPLIES, Session

R = Request
PF = VirtioFeature.PROTOCOL_FEATURES
LOG_ALL = VirtioFeature.LOG_ALL
NET = Offer.net(2)
GPA, UVA, SIZE = 0x100000, 0x7F00_0000_0000, 0x100000
MEMORY = MemoryTable((Region(GPA, SIZE, UVA, 0),))
LOG = LogBase(0x1000, 0)
FDS = count(1000)


class Talk:
    """A front-end and the session it talks to; fds are numbers that are never used twice."""

    def __init__(self, offer=NET, acked=NET.protocol_features):
        self.session = Session(offer)
        self.given = []
        if acked is not None:
            self.tell(R.SET_PROTOCOL_FEATURES, U64(acked))

    def message(self, request, payload=EMPTY, need_reply=False, fd_count=None):
        for known in (payload.fd_count(), SPEC[request].fds[0]):
            fd_count = known if fd_count is None else fd_count
        fds = [next(FDS) for _ in range(fd_count)]
        data = encode(request, payload, need_reply=need_reply)
        return decode(data[:HEADER_SIZE], data[HEADER_SIZE:], fds, self.session)

    def tell(self, request, payload=EMPTY, need_reply=False, fd_count=None):
        """The answer, decoded; None if there is none."""
        message = self.message(request, payload, need_reply, fd_count)
        self.session.apply(message)
        self.given += message.fds
        assert sorted(self.session.fds()) == sorted(self.given), "each fd has one place"
        answer = self.session.reply(message)
        return answer and decode_reply(request, answer[:HEADER_SIZE], answer[HEADER_SIZE:])

    def refused(self, match, request, payload=EMPTY):
        message = self.message(request, payload)
        with pytest.raises(ProtocolError, match=match) as caught:
            self.session.apply(message)
        assert caught.value.request == request.name
        assert sorted(self.session.fds()) == sorted(self.given)

    def runs(self, index=0):
        vring = self.session.vrings.get(index)
        return vring is not None and self.session.wants_running(vring)

    def ring_messages(self, index=0, flags=0):
        return [
            (R.SET_VRING_NUM, VringState(index, 256)),
            (R.SET_VRING_BASE, VringState(index, 0)),
            (R.SET_VRING_ADDR, addr(index, flags)),
            (R.SET_VRING_KICK, VringFile(index, True)),
            (R.SET_VRING_CALL, VringFile(index, True)),
        ]

    def start(self, index=0, features=PF, flags=0):
        """As QEMU does."""
        self.tell(R.SET_VRING_ENABLE, VringState(index, 1))
        self.tell(R.SET_FEATURES, U64(features))
        self.tell(R.SET_MEM_TABLE, MEMORY)
        for request, payload in self.ring_messages(index, flags):
            self.tell(request, payload)


def addr(index=0, flags=0, log=GPA, offset=0):
    desc = UVA + 0x10000 * index + offset
    return VringAddr(index, flags, desc, desc + 0x2000, desc + 0x1000, log)


@pytest.fixture
def talk():
    return Talk()


def test_the_tables_are_those_of_spec():
    assert set(REPLIES) == {request for request in SPEC if SPEC[request].reply}
    assert set(EFFECTS) | set(REPLIES) == set(SPEC)


# --- When a ring runs -----------------------------------------------------------------------------


def test_qemu_start(talk):
    talk.start()
    assert talk.runs()


@pytest.mark.parametrize("last", range(6))
def test_a_ring_runs_at_the_last_thing_it_needs_whatever_that_is(talk, last):
    talk.tell(R.SET_FEATURES, U64(PF))
    needed = [
        (R.SET_MEM_TABLE, MEMORY),
        (R.SET_VRING_ENABLE, VringState(0, 1)),
        *talk.ring_messages()[:4],
    ]
    needed = needed[last:] + needed[:last]
    for request, payload in needed:
        assert not talk.runs()
        talk.tell(request, payload)
    assert talk.runs()


def test_call_is_not_needed_and_no_order_is(talk):
    messages = talk.ring_messages()[:4]
    for order in permutations(messages):
        other = Talk()
        other.tell(R.SET_MEM_TABLE, MEMORY)
        other.tell(R.SET_VRING_ENABLE, VringState(0, 1))
        for request, payload in order:
            other.tell(request, payload)
        assert other.runs()


def test_without_protocol_features_every_ring_begins_enabled():
    talk = Talk(acked=None)
    talk.tell(R.SET_VRING_NUM, VringState(0, 256))
    talk.tell(R.SET_FEATURES, U64(0))
    talk.tell(R.SET_VRING_NUM, VringState(1, 256))
    assert all(talk.session.vrings[index].enabled for index in (0, 1))


def test_with_protocol_features_no_ring_begins_enabled(talk):
    talk.tell(R.SET_VRING_NUM, VringState(0, 256))
    talk.tell(R.SET_FEATURES, U64(PF))
    talk.tell(R.SET_VRING_NUM, VringState(1, 256))
    assert not any(vring.enabled for vring in talk.session.vrings.values())


def test_disabled_and_enabled_again(talk):
    talk.start()
    talk.tell(R.SET_VRING_ENABLE, VringState(0, 0))
    assert not talk.runs()
    talk.tell(R.SET_VRING_ENABLE, VringState(0, 1))
    assert talk.runs()


def test_kick_and_call_without_fd(talk):
    talk.start()
    talk.tell(R.SET_VRING_KICK, VringFile(0, False))
    talk.tell(R.SET_VRING_CALL, VringFile(0, False))
    talk.tell(R.SET_VRING_ERR, VringFile(0, False))
    vring = talk.session.vrings[0]
    assert (vring.kick, vring.call, vring.err) == (None, None, None)
    assert talk.runs()


END = SIZE - 0x2000 - (6 + 8 * 256)  # where addr() would just fit, were it a multiple of 16


@pytest.mark.parametrize(
    ("offset", "runs"),
    [(0, True), (END // 16 * 16, True), (END // 16 * 16 + 16, False), (-16, False), (SIZE, False)],
)
def test_a_ring_runs_only_where_all_of_it_is_known_memory(talk, offset, runs):
    talk.start()
    talk.tell(R.SET_VRING_ADDR, addr(offset=offset))
    assert talk.runs() is runs


def test_the_last_byte_of_a_region_is_known(talk):
    talk.start()
    fits = UVA + SIZE - 8 - 8 * 256  # 6 + 8 * 256 bytes, from a multiple of 4
    for used, runs in ((fits, True), (fits + 4, False)):
        talk.tell(R.SET_VRING_ADDR, VringAddr(0, 0, UVA, used, UVA + 0x1000, 0))
        assert talk.runs() is runs


def test_memory_replaced_under_a_ring_that_lies_elsewhere(talk):
    talk.start()
    talk.tell(R.SET_MEM_TABLE, MemoryTable((Region(0, SIZE, 0x1000, 0),)))
    assert not talk.runs()
    talk.tell(R.SET_MEM_TABLE, MEMORY)
    assert talk.runs()


def test_what_no_front_end_has_told(talk):
    talk.tell(R.SET_VRING_ENABLE, VringState(0, 1))
    vring = talk.session.vrings[0]
    assert vring.areas() == []
    assert not vring.configured()


# --- Stopping and resetting -----------------------------------------------------------------------


def test_get_vring_base_stops_and_answers_what_the_world_wrote(talk):
    talk.start()
    talk.tell(R.SET_VRING_ERR, VringFile(0, True))
    message = talk.message(R.GET_VRING_BASE, VringState(0, 0x557A))
    vring = talk.session.vrings[0]
    old = [vring.kick, vring.call]
    talk.session.apply(message)
    assert not talk.runs()
    assert talk.session.discarded == old
    assert vring.err is not None
    vring.base = 77  # as whoever stops the ring does
    answer = talk.session.reply(message)
    assert answer[HEADER_SIZE:] == pack("=II", 0, 77)


def test_get_vring_base_of_a_ring_never_named(talk):
    assert talk.tell(R.GET_VRING_BASE, VringState(3, 0x557A)) == VringState(3, 0)
    assert talk.tell(R.GET_VRING_BASE, VringState(3, 0x557A)) == VringState(3, 0)


def test_qemu_stops_and_starts_again_without_enabling(talk):
    talk.start()
    talk.tell(R.GET_VRING_BASE, VringState(0, 0))
    talk.tell(R.SET_FEATURES, U64(PF))
    for request, payload in talk.ring_messages()[:4]:
        assert not talk.runs()
        talk.tell(request, payload)
    assert talk.runs()


def test_reset_owner_keeps_memory_and_features(talk):
    talk.tell(R.SET_OWNER)
    talk.start()
    assert talk.session.owner
    talk.tell(R.RESET_OWNER)
    assert not talk.session.owner
    assert not talk.runs()
    assert talk.session.features == PF
    assert talk.session.regions
    assert talk.session.discarded == []
    talk.tell(R.SET_VRING_ENABLE, VringState(0, 1))
    assert not talk.runs(), "it takes a new KICK"
    talk.tell(R.SET_VRING_KICK, VringFile(0, True))
    assert talk.runs()


def test_reset_device_keeps_memory_protocol_features_and_err(talk):
    talk.tell(R.SET_VRING_ERR, VringFile(0, True))
    talk.tell(R.SET_STATUS, U64(0xF))
    talk.start()
    err = talk.session.vrings[0].err
    talk.tell(R.RESET_DEVICE)
    vring = talk.session.vrings[0]
    assert not vring.configured()
    assert (vring.started, vring.enabled, vring.kick, vring.call) == (False, False, None, None)
    assert vring.err == err
    assert talk.session.features == 0
    assert talk.session.status == 0
    assert talk.session.regions
    assert talk.session.protocol_features == NET.protocol_features
    talk.start()
    assert talk.runs()


def test_dpdk_reconnects_with_a_stop_first():
    talk = Talk(acked=None)
    for index in range(4):
        talk.tell(R.SET_VRING_ENABLE, VringState(index, 0))
    for index in range(4):
        assert talk.tell(R.GET_VRING_BASE, VringState(index, 0x557A)) == VringState(index, 0)
    talk.tell(R.SET_PROTOCOL_FEATURES, U64(0x10009))
    talk.start()
    assert talk.runs()


# --- Features -------------------------------------------------------------------------------------


def test_what_is_asked_and_answered(talk):
    assert talk.tell(R.GET_FEATURES) == U64(NET.features)
    assert talk.tell(R.GET_PROTOCOL_FEATURES) == U64(NET.protocol_features)
    assert talk.tell(R.GET_QUEUE_NUM) == U64(2)
    assert talk.tell(R.GET_STATUS) == U64(0)
    talk.tell(R.SET_STATUS, U64(0x10B))
    assert talk.tell(R.GET_STATUS) == U64(0xB)
    talk.tell(R.NET_SET_MTU, U64(9000))
    assert talk.session.mtu == 9000


def test_features_not_offered():
    talk = Talk(NET, NET.protocol_features)
    talk.refused("without 0x400: not offered", R.SET_FEATURES, U64(PF | VirtioFeature.GUEST_UFO))
    talk.refused("without 0x8000000000000000", R.SET_FEATURES, U64(1 << 63))
    talk.refused("without 0x200: not offered", R.SET_PROTOCOL_FEATURES, U64(0x200))
    talk.refused("not offered", R.SET_PROTOCOL_FEATURES, U64(1 << 63))
    assert talk.session.features == 0
    assert talk.session.protocol_features == NET.protocol_features


def test_only_log_all_changes_while_a_ring_runs(talk):
    talk.start()
    talk.tell(R.SET_FEATURES, U64(PF))
    talk.refused("while rings run", R.SET_FEATURES, U64(PF | VirtioFeature.MRG_RXBUF))
    talk.refused("while rings run", R.SET_FEATURES, U64(0))
    talk.tell(R.SET_LOG_BASE, LOG)
    talk.tell(R.SET_FEATURES, U64(PF | LOG_ALL))
    talk.tell(R.SET_FEATURES, U64(PF))
    talk.tell(R.GET_VRING_BASE, VringState(0, 0))
    talk.tell(R.SET_FEATURES, U64(PF | VirtioFeature.MRG_RXBUF))


def test_size_and_base_of_a_running_ring(talk):
    talk.start()
    talk.tell(R.SET_VRING_NUM, VringState(0, 256))
    talk.refused("size is 512, must be 256 while", R.SET_VRING_NUM, VringState(0, 512))
    talk.refused("base is 9", R.SET_VRING_BASE, VringState(0, 9))
    talk.tell(R.SET_VRING_ENABLE, VringState(0, 0))
    talk.tell(R.SET_VRING_NUM, VringState(0, 512))
    talk.tell(R.SET_VRING_BASE, VringState(0, 9))
    assert talk.session.vrings[0].size == 512
    assert talk.session.vrings[0].base == 9


def test_status_0_leaves_the_rings_alone(talk):
    talk.start()
    talk.tell(R.SET_STATUS, U64(0))
    assert talk.runs()


def test_rarps_wait_for_the_switch_before_anything_is_set_up(talk):
    talk.tell(R.SEND_RARP, Mac(b"RT\x00\x12\x34\x56"))
    assert talk.session.rarps == [b"RT\x00\x12\x34\x56"]


# --- The migration log ----------------------------------------------------------------------------


def test_a_migration_that_begins_and_is_cancelled(talk):
    talk.start()
    assert talk.tell(R.SET_LOG_BASE, LOG) == LOG, "the 16 bytes go back"
    talk.tell(R.SET_FEATURES, U64(PF | LOG_ALL))
    talk.tell(R.SET_VRING_ADDR, addr(flags=1))
    assert talk.runs()
    assert talk.session.vrings[0].logged_end() == GPA + 6 + 8 * 256
    talk.tell(R.SET_FEATURES, U64(PF))
    talk.tell(R.SET_VRING_ADDR, addr())
    assert talk.runs()
    assert talk.session.vrings[0].logged_end() == 0
    assert talk.session.log is None


def test_a_restart_amid_a_migration_waits_for_the_log(talk):
    talk.start(features=PF | LOG_ALL, flags=1)
    assert not talk.runs()
    talk.tell(R.SET_LOG_BASE, LOG)
    assert talk.runs()


def test_the_log_is_replaced(talk):
    talk.tell(R.SET_LOG_BASE, LOG)
    first = talk.session.log
    talk.tell(R.SET_LOG_BASE, LogBase(0x2000, 0x1000))
    second = talk.session.log
    assert talk.session.discarded == [first.fd]
    assert (second.size, second.offset) == (0x2000, 0x1000)


def test_the_log_is_forgotten_when_the_last_ring_stops(talk):
    talk.start(0)
    talk.start(1)
    talk.tell(R.SET_LOG_BASE, LOG)
    talk.tell(R.GET_VRING_BASE, VringState(0, 0))
    assert talk.session.log
    talk.tell(R.GET_VRING_BASE, VringState(1, 0))
    assert talk.session.log is None


@pytest.mark.parametrize("reset", [R.RESET_OWNER, R.RESET_DEVICE])
def test_the_log_is_forgotten_at_a_reset(talk, reset):
    talk.start()
    talk.tell(R.SET_LOG_BASE, LOG)
    talk.tell(reset)
    assert talk.session.log is None


def test_log_fd_is_replaced(talk):
    talk.tell(R.SET_LOG_FD)
    first = talk.session.log_fd
    talk.tell(R.SET_LOG_FD)
    assert talk.session.discarded == [first]


EXACT = (GPA + SIZE) // LOG_BYTE_SPAN


def test_a_log_that_is_too_small_for_the_memory(talk):
    talk.start()
    talk.refused("end of logged memory is 0x200000", R.SET_LOG_BASE, LogBase(EXACT - 1, 0))
    talk.tell(R.SET_LOG_BASE, LogBase(EXACT, 0))


def test_memory_that_is_too_large_for_the_log(talk):
    talk.start()
    talk.tell(R.SET_LOG_BASE, LogBase(EXACT, 0))
    grown = MemoryTable((Region(GPA, SIZE + 1, UVA, 0),))
    talk.refused("end of logged memory", R.SET_MEM_TABLE, grown)
    talk.tell(R.SET_MEM_TABLE, MEMORY)


def test_a_used_ring_that_ends_beyond_the_log(talk):
    talk.start()
    talk.tell(R.SET_LOG_BASE, LogBase(EXACT, 0))
    fits = GPA + SIZE - 6 - 8 * 256
    talk.refused("end of logged memory", R.SET_VRING_ADDR, addr(0, 1, fits + 1))
    talk.refused("end of logged memory", R.SET_VRING_ADDR, addr(0, 1, (1 << 64) - 1))
    talk.tell(R.SET_VRING_ADDR, addr(0, 0, fits + 1))
    talk.tell(R.SET_VRING_ADDR, addr(0, 1, fits))
    talk.tell(R.SET_VRING_ENABLE, VringState(0, 0))
    talk.refused("end of logged memory", R.SET_VRING_NUM, VringState(0, 512))
    talk.refused("end of logged memory", R.SET_LOG_BASE, LogBase(EXACT - 1, 0))


# --- Regions one by one ---------------------------------------------------------------------------

FIRST = MEMORY.regions[0]
NEXT = Region(GPA + SIZE, SIZE, UVA + SIZE, SIZE)  # behind it, in all respects


def test_a_ring_runs_while_its_region_is_there(talk):
    talk.start()
    talk.tell(R.ADD_MEM_REG, OneRegion(NEXT))
    assert talk.runs()
    talk.tell(R.REM_MEM_REG, RegionKey.of(FIRST))
    assert not talk.runs()
    talk.tell(R.ADD_MEM_REG, OneRegion(FIRST))
    assert talk.runs()


def test_a_region_that_is_told_again_is_there_once(talk):
    talk.tell(R.ADD_MEM_REG, OneRegion(FIRST))
    before = talk.session.regions
    talk.tell(R.ADD_MEM_REG, OneRegion(FIRST), need_reply=True)
    assert talk.session.regions is before
    assert talk.session.discarded == talk.given[1:]


ALIKE = [replace(FIRST, uva=0), replace(FIRST, mmap_offset=0x1000), replace(FIRST, size=SIZE - 1)]
ACROSS = [Region(GPA - 1, 2, 0, 0), Region(GPA + SIZE - 1, 1, 0, 0), Region(0, SIZE * 9, 0, 0)]


@pytest.mark.parametrize("other", ALIKE + ACROSS)
def test_a_region_that_overlaps_another_is_refused(talk, other):
    talk.tell(R.ADD_MEM_REG, OneRegion(FIRST))
    talk.refused("no overlap", R.ADD_MEM_REG, OneRegion(other))
    for neighbour in (Region(GPA - 1, 1, UVA, 0), Region(GPA + SIZE, 1, UVA, 0)):
        talk.tell(R.ADD_MEM_REG, OneRegion(neighbour))


def test_so_many_slots_and_no_more(talk):
    regions = [Region(GPA + SIZE * i, SIZE, UVA, 0) for i in range(MEMORY_SLOTS_MAX)]
    for region in regions:
        talk.tell(R.ADD_MEM_REG, OneRegion(region))
    last = OneRegion(Region(0, 1, 0, 0))
    talk.refused("number of regions is 510, must be at most 509", R.ADD_MEM_REG, last)
    talk.tell(R.ADD_MEM_REG, OneRegion(regions[7]))  # is there
    talk.tell(R.REM_MEM_REG, RegionKey.of(regions[7]))
    talk.tell(R.ADD_MEM_REG, last)
    assert talk.tell(R.GET_MAX_MEM_SLOTS) == U64(509)


def test_slots_are_the_port_s():
    talk = Talk(Offer.net(2, memory_slots=1))
    assert talk.tell(R.GET_MAX_MEM_SLOTS) == U64(1)
    talk.tell(R.ADD_MEM_REG, OneRegion(FIRST))
    talk.refused("number of regions is 2, must be at most 1", R.ADD_MEM_REG, OneRegion(NEXT))
    talk.tell(R.SET_MEM_TABLE, MemoryTable((FIRST, NEXT)))  # which has its own limit


def test_regions_together_have_their_port_s_share_of_addresses():
    talk = Talk(Offer.net(2, memory_max=2 * SIZE))
    talk.tell(R.ADD_MEM_REG, OneRegion(FIRST))
    talk.tell(R.ADD_MEM_REG, OneRegion(NEXT))
    more = OneRegion(Region(0, 1, 0, 0))
    talk.refused("bytes of guest memory is 0x200001", R.ADD_MEM_REG, more)
    talk.tell(R.REM_MEM_REG, RegionKey.of(NEXT))
    talk.tell(R.ADD_MEM_REG, more)


def test_a_region_beyond_the_log_is_refused(talk):
    talk.start()
    talk.tell(R.SET_LOG_BASE, LogBase(EXACT, 0))
    talk.refused("end of logged memory is 0x300000", R.ADD_MEM_REG, OneRegion(NEXT))
    talk.tell(R.SET_LOG_BASE, LogBase(2 * EXACT, 0))
    talk.tell(R.ADD_MEM_REG, OneRegion(NEXT))


@pytest.mark.parametrize("fd_count", [0, 1])
@pytest.mark.parametrize(
    "key", [RegionKey(0, 0, 0), replace(RegionKey.of(FIRST), uva=0), RegionKey.of(NEXT)]
)
def test_removing_what_is_not_there_changes_nothing(talk, key, fd_count):
    talk.tell(R.ADD_MEM_REG, OneRegion(FIRST))
    talk.tell(R.REM_MEM_REG, key, fd_count=fd_count)
    assert [region for region, _ in talk.session.regions] == [FIRST]
    assert talk.session.discarded == talk.given[1:]


PARTS = [Region(0, 0x1000, UVA + 0x800, 0), Region(0x1000, 0x1000, UVA - SIZE, 0)]


@pytest.mark.parametrize("order", list(permutations([FIRST, *PARTS])))
def test_areas_may_lie_in_any_of_regions_that_share_uvas(talk, order):
    talk.start()
    talk.tell(R.REM_MEM_REG, RegionKey.of(FIRST))
    for region in order:
        talk.tell(R.ADD_MEM_REG, OneRegion(region))
    assert talk.runs()
    talk.tell(R.REM_MEM_REG, RegionKey.of(FIRST))
    assert not talk.runs()


def test_a_table_replaces_all_of_them(talk):
    talk.tell(R.ADD_MEM_REG, OneRegion(NEXT))
    talk.tell(R.SET_MEM_TABLE, MEMORY)
    talk.tell(R.ADD_MEM_REG, OneRegion(NEXT))
    talk.tell(R.ADD_MEM_REG, OneRegion(FIRST))
    assert [region for region, _ in talk.session.regions] == [FIRST, NEXT]


# --- Answers --------------------------------------------------------------------------------------

SETTERS = [
    (R.SET_OWNER, EMPTY),
    (R.RESET_OWNER, EMPTY),
    (R.SET_FEATURES, U64(PF)),
    (R.SET_MEM_TABLE, MEMORY),
    (R.ADD_MEM_REG, OneRegion(MEMORY.regions[0])),
    (R.REM_MEM_REG, RegionKey.of(MEMORY.regions[0])),
    (R.SET_VRING_KICK, VringFile(0, True)),
    (R.SET_VRING_ENABLE, VringState(0, 1)),
    (R.RESET_DEVICE, EMPTY),
    (R.SET_STATUS, U64(1)),
]


@pytest.mark.parametrize(("request_", "payload"), SETTERS)
def test_an_acknowledgement_only_if_asked_for(talk, request_, payload):
    assert talk.tell(request_, payload) is None
    assert talk.tell(request_, payload, need_reply=True) == U64(0)


def test_need_reply_is_ignored_without_reply_ack():
    talk = Talk(acked=ProtocolFeature.STATUS)
    assert talk.tell(R.SET_STATUS, U64(1), need_reply=True) is None
    assert talk.tell(R.GET_STATUS, need_reply=True) == U64(1)


def test_the_request_that_agrees_on_reply_ack_is_acknowledged():
    talk = Talk(acked=None)
    assert talk.tell(R.SET_PROTOCOL_FEATURES, U64(8), need_reply=True) == U64(0)


@pytest.mark.parametrize("acked", [ProtocolFeature.REPLY_ACK, ProtocolFeature(0)])
@pytest.mark.parametrize(
    ("header", "tellable"),
    [
        (pack("=III", R.SET_FEATURES, 9, 8), True),
        (pack("=III", R.SET_FEATURES, 1, 8), False),
        (pack("=III", R.SET_FEATURES, 13, 8), False),
        (pack("=III", 24, 9, 12), True),
        (pack("=III", 24, 1, 12), False),
        (pack("=III", R.GET_VRING_BASE, 9, 8), False),
        (pack("=III", R.SET_LOG_BASE, 9, 16), False),
        (pack("=III", R.SET_FEATURES, 8, 8), False),
        (b"", False),
    ],
)
def test_failures(acked, header, tellable):
    answer = Talk(acked=acked).session.failure(header)
    if tellable and acked:
        assert answer == pack("=IIIQ", header[0], 5, 8, 1)
    else:
        assert answer is None
