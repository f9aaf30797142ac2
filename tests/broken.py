"""Our back-end with one fault at a time, made on purpose, for whoever must find it.

A fault is a function that takes pytest's monkeypatch and breaks every connection made from then on.
"""

import asyncio
import mmap
from collections.abc import Callable
from dataclasses import replace

import pytest

from vhostfast.backend import connection, reconcile
from vhostfast.backend.reconcile import World
from vhostfast.core.memory import GuestMemory, Log
from vhostfast.protocol.features import VirtioFeature
from vhostfast.protocol.session import Session, Vring

NOBODYS = 0x130_0000  # in the audited guest's memory, and in none of its areas
LATE_S = 0.005

Settings = tuple[int, GuestMemory | None, Log | None, int | None]
Fault = Callable[[pytest.MonkeyPatch], None]


def _with_settings(index: int, change: Callable[[Settings], Settings]) -> Fault:
    """A ring that is set up otherwise than it was told."""
    right = reconcile._settings

    def wrong(vring: Vring, memory: GuestMemory | None, log: Log | None) -> Settings:
        settings = right(vring, memory, log)
        return change(settings) if vring.index == index and settings[2] else settings

    return lambda monkeypatch: monkeypatch.setattr(reconcile, "_settings", wrong)


forgets_the_log_of_ring_0 = _with_settings(0, lambda it: (*it[:2], None, None))
forgets_the_used_ring_0 = _with_settings(0, lambda it: (*it[:3], None))
forgets_the_used_ring_1 = _with_settings(1, lambda it: (*it[:3], None))
marks_another_page = _with_settings(1, lambda it: (*it[:3], NOBODYS))


class _Late(World):
    """Does something a while after it has stopped a ring of the first port."""

    def _stop(self, vring: Vring | None, index: int) -> None:
        memory = self._memory[1]
        super()._stop(vring, index)
        if memory is not None and self.dataplane.name == "port0":
            asyncio.get_running_loop().call_later(LATE_S, self._late, memory)

    def _late(self, memory: GuestMemory) -> None:
        raise NotImplementedError


class _LateWriter(_Late):
    def _late(self, memory: GuestMemory) -> None:
        memory.write(NOBODYS, memory.read(NOBODYS, 1) + 1)


class _LateMarker(_Late):
    _bits: mmap.mmap | None = None

    def reconcile(self, session: Session, of: tuple[int, ...] | None = None) -> None:
        if session.log is not None:
            self._bits = mmap.mmap(session.log.fd, session.log.size)
        super().reconcile(session, of)

    def _late(self, memory: GuestMemory) -> None:
        if self._bits is not None:
            self._bits[NOBODYS >> 15] = 1


def writes_after_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "World", _LateWriter)


def marks_after_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "World", _LateMarker)


def does_not_wait_for_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Session.wants_running

    def wrong(session: Session, vring: Vring) -> bool:
        return right(replace(session, features=session.features & ~VirtioFeature.LOG_ALL), vring)

    monkeypatch.setattr(Session, "wants_running", wrong)
