"""Decode: a message of a front-end, from bytes to checked values."""

import pytest

from vhostfast.errors import ProtocolError
from vhostfast.protocol.features import Offer
from vhostfast.protocol.message import (
    EMPTY,
    HEADER_SIZE,
    U64,
    MemoryTable,
    Message,
    Region,
    Request,
    VringAddr,
    VringFile,
    decode,
    encode,
)
from vhostfast.protocol.session import Session

pytestmark = pytest.mark.benchmark(group="decode")
STATE = Session(Offer.net())
TABLE = MemoryTable(tuple(Region(i << 30, 1 << 30, i << 32, i << 30) for i in range(8)))
MESSAGES = [
    Message(Request.GET_FEATURES, EMPTY, (), False),
    Message(Request.SET_FEATURES, U64(1 << 32), (), True),
    Message(Request.SET_VRING_ADDR, VringAddr(1, 0, 0x1000, 0x2000, 0x3000, 0), (), False),
    Message(Request.SET_VRING_KICK, VringFile(1, True), (7,), False),
    Message(Request.SET_MEM_TABLE, TABLE, tuple(range(8)), True),
]


def wire(message: Message) -> tuple[bytes, bytes]:
    data = encode(message.request, message.payload, need_reply=message.need_reply)
    return data[:HEADER_SIZE], data[HEADER_SIZE:]


def test_null(benchmark):
    def nothing(_header, _payload, _fds, _state):
        return True

    assert benchmark(nothing, *wire(MESSAGES[0]), (), STATE)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.request.name)
def test_decode(benchmark, message):
    assert benchmark(decode, *wire(message), message.fds, STATE) == message


def test_refuse(benchmark):
    header, payload = wire(MESSAGES[-1])

    def refused() -> str:
        with pytest.raises(ProtocolError) as error:
            decode(header, payload, (), STATE)
        return error.value.field

    assert benchmark(refused) == "number of fds"
