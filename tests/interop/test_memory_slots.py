"""QEMU plugs memory into a running guest and takes it out again, one region at a time: more than a
memory table holds, said again for each queue pair (QEMU 7.2), while its packets go through it."""

import re
from contextlib import ExitStack
from pathlib import Path

import pytest
from child import Child
from dpdk_backends import Switch
from qemu import Card, Guest
from test_qemu import exchange_two, ping, sockets

pytestmark = [pytest.mark.peers, pytest.mark.timeout(180)]

DIMMS = 9  # with what the guest has at first, more regions than a table's 8
ABOVE = 4 << 30  # where QEMU puts what is plugged
BLOCKS = "/sys/devices/system/memory/auto_online_blocks"
PAIRS = 2


def requests(switch: Child, name: str) -> list[int]:
    """The GPAs of the regions above that port p0 was told of by this request."""
    gpas = re.findall(rf"p0: {name} \w+\(.*?gpa=(\d+)", switch.output)
    return [int(gpa) for gpa in gpas if int(gpa) >= ABOVE]


def buffers(switch: Child, guest: Guest, folder: Path) -> list[int]:
    """The GPAs of what receive ring 0 of port p0 has descriptors for."""
    told = r"p0: SET_VRING_ADDR VringAddr\(index=0,.* desc=(\d+), used=(\d+), .*log=(\d+)\)"
    desc, used, log = map(int, re.findall(told, switch.output)[-1])
    file, size = folder / "descriptors", 16 * 256
    guest.control("pmemsave", val=log + desc - used, size=size, filename=str(file))  # log: of used
    table = file.read_bytes()
    return [int.from_bytes(table[at : at + 8], "little") for at in range(0, len(table), 16)]


def test_memory_comes_and_goes(folder: Path) -> None:
    first, second = sockets(folder)
    options = ("--log-level", "debug")
    with ExitStack() as stack:
        switch = Switch(folder, [first, second], queues=PAIRS, adaptive=True, options=options)
        stack.enter_context(switch).ready()
        cards = (
            Card(socket, number, ("mq=on",), PAIRS) for number, socket in ((1, first), (2, second))
        )
        a, b = (
            stack.enter_context(Guest(name, folder, card, slots=DIMMS + 1))
            for name, card in zip("ab", cards, strict=True)
        )
        for guest in (a, b):
            guest.ready()
        assert "p0: SET_MEM_TABLE" not in switch.output
        ping(a, b)
        assert not any(gpa >= ABOVE for gpa in buffers(switch, a, folder))

        a.run(f"echo online_kernel > {BLOCKS}")
        for number in range(DIMMS):
            a.plug(number)
            ping(b, a, 2)
        regions = requests(switch, "ADD_MEM_REG")
        assert len(set(regions)) == DIMMS
        assert {regions.count(gpa) for gpa in regions} <= {1, PAIRS}
        exchange_two(a, b)
        exchange_two(b, a)
        plugged = [gpa for gpa in buffers(switch, a, folder) if gpa >= ABOVE]
        assert len(plugged) > 100, "its packets don't go through what was plugged"

        a.run(f"echo offline > {BLOCKS}")
        a.plug(DIMMS)
        a.unplug(DIMMS)
        ping(b, a, 2)
        last = requests(switch, "ADD_MEM_REG")[-1]
        assert set(requests(switch, "REM_MEM_REG")) == {last}
        assert last not in regions
        exchange_two(a, b)
        assert " WARNING " not in switch.output
        assert switch.close() == 0
