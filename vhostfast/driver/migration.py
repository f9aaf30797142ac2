"""A migration as a front-end plays it: the log, and what is said to the back-end meanwhile.

    with Migration(frontend) as migration:
        migration.begin()               # the rings may run
        pages = migration.take()        # copy them; again and again
        frontend.stop()
        pages = migration.take()        # the last ones

In the order of QEMU 7.2 (hw/virtio/vhost.c), the log replaced amid traffic as cloud-hypervisor
does. What the guest itself writes is in no back-end's log: for that there is `core.witness`.
"""

import fcntl
import os
import time
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vhostfast.core.driver import Mapping, take_words
from vhostfast.driver.frontend import Frontend
from vhostfast.driver.memory import GuestMemory
from vhostfast.errors import EnvironmentLacks
from vhostfast.protocol.features import ProtocolFeature, VirtioFeature
from vhostfast.protocol.message import LOG_PAGE, U64, LogBase, Request

Pages = NDArray[np.int64]

_WORD_SPAN = 64 * LOG_PAGE  # of guest memory for each word of a log


class DirtyLog:
    """A migration log for `memory`: a bit for each 4096 bytes from GPA 0, in a memfd of the size
    and with the seals of QEMU's. `offset` bytes of the file, whole pages, come before it."""

    def __init__(self, memory: GuestMemory, *, offset: int = 0) -> None:
        last = max(region.gpa + region.size for region in memory.regions) - 1
        self.offset = offset
        self.size = (last // _WORD_SPAN + 1) * 8
        self.fd = os.memfd_create("vhost-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, offset + self.size)
        seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        data = Mapping(self.fd, offset + self.size).array()
        self.before = data[:offset]
        self._words = data[offset:].view(np.uint64)

    def take(self) -> Pages:
        """The numbers of the marked pages, ascending; their bits are zero now."""
        marks = np.unpackbits(take_words(self._words).view(np.uint8), bitorder="little")
        return np.flatnonzero(marks)

    def close(self) -> None:
        """Close the memfd; the map goes with this object. May be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Migration:
    """Of the guest behind `frontend`; its logs lie at `offset` of their files.

    Raises EnvironmentLacks if the back-end can't log.
    """

    def __init__(self, frontend: Frontend, *, offset: int = 0) -> None:
        self.frontend = frontend
        self.offset = offset
        if ProtocolFeature.LOG_SHMFD not in frontend.protocol_features:
            raise _lacks(ProtocolFeature.LOG_SHMFD)
        if VirtioFeature.LOG_ALL not in VirtioFeature(frontend.ask(Request.GET_FEATURES)):
            raise _lacks(VirtioFeature.LOG_ALL)
        self.log = DirtyLog(frontend.memory, offset=offset)

    def begin(self) -> None:
        """Once this returns all that the back-end writes is marked in a fresh log."""
        frontend = self.frontend
        self._renew()
        frontend.features |= VirtioFeature.LOG_ALL
        for pair in range(frontend.queue_pairs):
            self._tell_log()
            self._tell_features(pair)

    def take(self) -> Pages:
        """The numbers of the pages that are marked, ascending; their bits are zero now."""
        return self.log.take()

    def replace(self) -> Pages:
        """Give the back-end a fresh log; the pages marked in the old one, once it is let go."""
        old = self._renew()
        self._tell_log()
        return old.take()

    def restart(self, pause_s: float = 0.0) -> None:
        """Start stopped rings, as QEMU does amid a migration: the log comes last, a fresh one,
        `pause_s` after everything else. What is marked in the old one from now on is lost."""
        self._renew()
        self.frontend.resume()
        time.sleep(pause_s)
        for _ in range(self.frontend.queue_pairs):
            self._tell_log()

    def cancel(self) -> None:
        """No more logging; the rings may run."""
        self.frontend.features &= ~VirtioFeature.LOG_ALL
        for pair in range(self.frontend.queue_pairs):
            self._tell_features(pair)

    def close(self) -> None:
        """Close the log. The back-end is told nothing; the next start of the rings is unlogged."""
        self.frontend.features &= ~VirtioFeature.LOG_ALL
        self.log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _renew(self) -> DirtyLog:
        """A fresh log; the old one."""
        old = self.log
        self.log = DirtyLog(self.frontend.memory, offset=self.offset)
        old.close()
        return old

    def _tell_log(self) -> None:
        place = LogBase(self.log.size, self.log.offset)
        self.frontend.wire.send(Request.SET_LOG_BASE, place, [self.log.fd])
        self.frontend.wire.answered(Request.SET_LOG_BASE)

    def _tell_features(self, pair: int) -> None:
        """Features, and addresses that say whether the used rings are logged."""
        frontend = self.frontend
        frontend.request(Request.SET_FEATURES, U64(frontend.features), ack=True)
        if ProtocolFeature.REPLY_ACK not in frontend.protocol_features:
            frontend.fence()
        for vring in frontend.rings[2 * pair : 2 * pair + 2]:
            frontend.request(Request.SET_VRING_ADDR, frontend.addresses(vring), ack=True)


def _lacks(feature: VirtioFeature | ProtocolFeature) -> EnvironmentLacks:
    return EnvironmentLacks(f"the back-end does not offer {feature.name}: it can't log a migration")
