"""What a burst had gathered for a log when it broke off never goes into the next log, which may be
smaller: two front-ends together could have had bits set beyond it, or ended the switch."""

import os
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from daemon import daemon, ports
from logfile import LogFile

from vhostfast.driver import Frontend, GuestMemory
from vhostfast.driver.traffic import mac
from vhostfast.errors import Disconnected
from vhostfast.protocol.message import MemoryTable, Request

LOW, TOP, HIGH = 8 << 20, 1 << 20, 1 << 46
NOBODY = mac(99)  # who that is nobody knows: its frames go to all


def frame(number: int) -> bytes:
    return bytes(12) + NOBODY + mac(number) + b"\x88\xb5" + bytes(86)


def wait_for_the_end(frontend: Frontend) -> None:
    with suppress(Disconnected):
        while True:
            frontend.fence()


@pytest.mark.hostile(
    "log", "a smaller log after a burst that broke off, by two front-ends", "no effect on others"
)
def test_marks_that_were_kept_do_not_go_into_another_log(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    with daemon(*ports(*paths), "--json", "--mode=poll") as switch, ExitStack() as stack:
        low = ((0, LOW),)
        regions = (low, (*low, (HIGH, TOP)), low)
        memory = [stack.enter_context(GuestMemory(each, sealed=False)) for each in regions]
        a, b, c = (
            stack.enter_context(Frontend(path, each))
            for path, each in zip(paths, memory, strict=True)
        )
        for frontend in (a, b, c):
            frontend.start()
        stack.enter_context(LogFile((HIGH + TOP) // 4096 // 8 + 8)).begin(b)
        buffers, gpa = b.receive_ring().ring, memory[1].take(4096)
        buffers.add([(HIGH, 128, True)])
        buffers.add([(gpa, 2048, True)])

        # The last part of a frame lies where nothing is any more: the rest is in b's buffers.
        first = memory[2].take(200)
        memory[2].write(first, frame(3).ljust(200, b"\0"))
        os.ftruncate(memory[2].fds[0], LOW // 2)
        c.transmit_ring().ring.add([(first, 200, False), (LOW // 2 + 4096, 100, False)])
        c.transmit_ring().ring.kick(force=True)
        wait_for_the_end(c)

        # The buffer that is on offer still lies low now, and the log ends there.
        buffers.desc["addr"][buffers.desc["addr"] == HIGH] = gpa
        table = MemoryTable(memory[1].regions[:1])
        b.request(Request.SET_MEM_TABLE, table, memory[1].fds[:1], ack=True)
        log = stack.enter_context(LogFile(4096))
        log.base(b)
        sent = memory[0].take(128)
        memory[0].write(sent, frame(1))
        a.transmit_ring().ring.add([(sent, 112, False)])
        a.transmit_ring().ring.kick(force=True)
        while buffers.take() is None:
            b.fence()
        assert gpa // 4096 in log.pages()
        assert switch.summary()["ports"]["vm2"]["faults"] == 1
