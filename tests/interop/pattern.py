"""Numbered frames that prove themselves, between a guest and a host that we play.

    0   destination[6]   source[6]   type 0x88b5   flow u16     csrc/driver/frame.h, which the guest
    16  sequence u64                                            was compiled with, says why
    24  seed u32   size u32
    32  pattern

A flow goes both ways with the same number, and on the queue pair of that number.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from qemu import Guest

TYPE = b"\x88\xb5"
SIZES = range(60, 1515)
SIZE_STEP = 61  # no divisor of the sizes' number: all come up
HEADER_SIZE = 32
GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1


def frame(to: bytes, sender: bytes, flow: int, sequence: int, size: int | None = None) -> bytes:
    """Frame number `sequence`; each has its size, unless one is given."""
    size = size or SIZES[sequence * SIZE_STEP % len(SIZES)]
    station = to + sender + TYPE + struct.pack("<H", flow)
    first, second = struct.unpack("<QQ", station)
    shape = _mix(~sequence & MASK) & 0xFFFFFFFF | size << 32
    start = _mix(first + GOLDEN * _mix(second + GOLDEN * shape & MASK) & MASK)
    count = (size - HEADER_SIZE + 7) // 8
    words = np.arange(1, count + 1, dtype="<u8") * np.uint64(GOLDEN) + np.uint64(start)
    return (station + struct.pack("<QQ", sequence, shape) + words.tobytes())[:size]


def sequence_of(data: bytes) -> int:
    return int.from_bytes(data[16:24], "little")


def _mix(x: int) -> int:
    x = (x ^ x >> 32) * 0xD6E8FEB86659FD93 & MASK
    return x ^ x >> 32


@dataclass(frozen=True, slots=True)
class Totals:
    """What one end has sent of a flow, and what has come to it."""

    sent: int
    received: int
    missing: int
    reordered: int
    repeated: int
    corrupt: int

    def assert_clean(self) -> None:
        """Nothing corrupt, nothing repeated. Lost and overtaken is what networks do."""
        assert (self.corrupt, self.repeated) == (0, 0), self


class Flow:
    """Counts what comes of a flow."""

    def __init__(self) -> None:
        self.sent = self.corrupt = 0
        self._repeated = self._reordered = 0
        self._next = 0  # one past the highest number seen
        self._seen: set[int] = set()

    def note(self, sequence: int) -> None:
        if sequence in self._seen:
            self._repeated += 1
        elif sequence < self._next:
            self._reordered += 1
        self._seen.add(sequence)
        self._next = max(self._next, sequence + 1)

    def totals(self) -> Totals:
        received = len(self._seen)
        missing = self._next - received
        return Totals(self.sent, received, missing, self._reordered, self._repeated, self.corrupt)


def begin(guest: Guest, peer: str, *, rate: int, pairs: int = 1) -> None:
    """Start `guest pattern`, a process for each queue pair on the CPU that has this pair."""
    for flow in range(pairs):
        program = f"guest pattern eth0 {peer} {flow} {rate} /tmp/totals{flow}"
        guest.run(f"taskset {1 << flow} {program} > /tmp/process{flow}")


def totals(guest: Guest, flow: int) -> Totals:
    """What the guest's process says now."""
    file = f"/tmp/totals{flow}"
    answer = guest.run(
        f"rm -f {file}; kill -USR1 $(cat /tmp/process{flow}) &&"
        f" until [ -f {file} ]; do usleep 10000; done; cat {file}"
    )
    return Totals(**{name: int(count) for name, count in map(str.split, answer.splitlines())})
