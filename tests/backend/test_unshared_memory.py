"""A VM that keeps its memory to itself is told so: else nothing comes, and nobody knows why."""

import asyncio
import os
import socket
import subprocess
import tempfile
from collections.abc import Sequence

import pytest

from vhostfast.backend import connection
from vhostfast.backend.worker import FabricPort, Workers
from vhostfast.core.fabric import Fabric
from vhostfast.driver import GuestMemory
from vhostfast.protocol.features import Offer
from vhostfast.protocol.message import EMPTY, U64, OneRegion, Payload, Region, Request, encode

REGIONS = ((0, 1 << 20), (1 << 30, 1 << 20))

Sent = tuple[Request, Payload, Sequence[int]]


async def say(messages: Sequence[Sent]) -> None:
    """Say all to a connection of its own, and wait until it has looked at the memory, if it does:
    its timer comes first, as it is due at once."""
    fabric = Fabric("drop")
    port = FabricPort(fabric.add_port("a"), Workers(fabric))
    ours, theirs = socket.socketpair()
    with theirs:
        serving = asyncio.create_task(connection.Connection(ours, port, Offer.net()).serve())
        for request, payload, fds in [*messages, (Request.GET_FEATURES, EMPTY, ())]:
            socket.send_fds(theirs, [encode(request, payload)], fds)
        theirs.setblocking(False)
        await asyncio.get_running_loop().sock_recv(theirs, 100)
    await serving


FEATURES: Sent = (Request.SET_FEATURES, U64(0), ())


@pytest.mark.parametrize(
    ("written", "warned"),
    [((), True), ((0,), False), ((1,), False), ((0, 1), False)],
    ids=["nothing", "the first region", "the second", "both"],
)
def test_memory_in_whose_files_nothing_is_written(monkeypatch, caplog, written, warned):
    """The files have pages all the same: private maps make them, though all zero."""
    monkeypatch.setattr(connection, "MEMORY_AFTER_S", 0)
    memory = GuestMemory(REGIONS)
    for fd, region in zip(memory.fds, memory.regions, strict=True):
        os.posix_fallocate(fd, region.mmap_offset, region.size)
    for index in written:
        memory.write(REGIONS[index][0] + REGIONS[index][1] - 1, b"\1")
    asyncio.run(say([FEATURES, (Request.SET_MEM_TABLE, memory.table, memory.fds)]))
    memory.close()
    warning = "a: the VM's memory is not shared: nothing is ever written to its file"
    assert (warning in caplog.text) == warned
    assert ("share=on" in caplog.text) == warned


def test_of_many_regions_the_first_are_looked_at(monkeypatch, caplog):
    """All 509 would hold up the other ports."""
    monkeypatch.setattr(connection, "MEMORY_AFTER_S", 0)
    memory = GuestMemory([(number << 20, 1 << 20) for number in range(9)])
    slots = (Request.SET_PROTOCOL_FEATURES, U64(Offer.net().protocol_features), ())
    regions = zip(memory.regions, memory.fds, strict=True)
    added = [(Request.ADD_MEM_REG, OneRegion(region), [fd]) for region, fd in regions]
    for written, warnings in ((8, 1), (7, 1)):
        memory.write(written << 20, b"\1")
        asyncio.run(say([slots, *added, FEATURES]))
        assert caplog.text.count("nothing is ever written to its file") == warnings
    memory.close()


def test_a_file_on_a_disk_is_not_waited_for():
    """Nor who writes to it: on xfs his lock is for readers too, and he may hold it for ever."""
    region = Region(0, 1 << 20, 0, 0)
    with tempfile.TemporaryFile() as file:
        command = ["stat", "-f", "-c", "%T", f"/proc/self/fd/{file.fileno()}"]
        kind = subprocess.run(command, capture_output=True, check=True, pass_fds=[file.fileno()])
        file.write(bytes(region.size))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        unknown = kind.stdout.strip() not in (b"tmpfs", b"ramfs")
        assert connection._is_written(region, file.fileno()) == unknown
        assert os.pread(file.fileno(), region.size, 0) == bytes(region.size)
        assert not connection._is_written(region, file.fileno())


def test_memory_that_never_comes(monkeypatch, caplog):
    """QEMU says on its own terminal why, keeps the connection, and does the driver's work."""
    monkeypatch.setattr(connection, "MEMORY_AFTER_S", 0)
    asyncio.run(say([FEATURES]))
    assert "a: the VM's memory is not shared: none has come" in caplog.text


def test_before_the_features_nobody_expects_memory(monkeypatch, caplog):
    monkeypatch.setattr(connection, "MEMORY_AFTER_S", 0)
    asyncio.run(say([]))
    assert "shared" not in caplog.text


def test_a_front_end_that_leaves_is_not_looked_at(monkeypatch, caplog):
    """Its fds are closed by then, and their numbers may be somebody else's."""
    monkeypatch.setattr(connection, "MEMORY_AFTER_S", 0.01)

    async def leave() -> None:
        await say([FEATURES])
        await asyncio.sleep(0.02)

    asyncio.run(leave())
    assert "shared" not in caplog.text
