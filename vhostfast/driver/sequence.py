"""In which order front-ends say things: QEMU 7.2 and DPDK 22.11's virtio-user, as recorded.

The vhost-user specification leaves the order open, so a back-end must take all of these.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from vhostfast.protocol.features import ProtocolFeature, VirtioFeature
from vhostfast.protocol.message import U64, Request, VringEnable

if TYPE_CHECKING:
    from vhostfast.driver.frontend import Frontend

# Device status (virtio 1.3, 2.1)
_FEATURES_OK, _ALL_OK = 8, 0xF
_KNOWN_TO_VIRTIO_USER = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.STATUS


class Sequence(Protocol):
    """What a front-end says at each turn of its life."""

    def connect(self, frontend: "Frontend") -> None:
        """Negotiate, and make the rings."""

    def start(self, frontend: "Frontend") -> None:
        """The guest's driver is ready: start the rings at their bases."""

    def stop(self, frontend: "Frontend") -> None:
        """Stop the rings and keep their bases."""


class QemuSequence:
    """QEMU: owner after protocol features, rings enabled before anything else is known of them.

    Regions are added one by one, whatever their number, once: 7.2 repeats them for each queue pair,
    as if each were a device, which later versions don't and not every back-end takes.
    """

    def connect(self, frontend: "Frontend") -> None:
        frontend.take_features()
        frontend.take_protocol_features()
        frontend.require_queues()
        frontend.require_slots()
        frontend.request(Request.SET_OWNER)
        frontend.make_rings()
        for pair in range(frontend.queue_pairs):
            if pair:
                frontend.take_protocol_features()
                frontend.require_slots()
            frontend.fence()
            for vring in frontend.rings[2 * pair : 2 * pair + 2]:
                frontend.tell_file(Request.SET_VRING_CALL, vring.index, vring.call_fd)
                frontend.tell_file(Request.SET_VRING_ERR, vring.index, vring.err_fd)
        for pair in range(frontend.queue_pairs):
            self._enable(frontend, pair, pair == 0)

    def start(self, frontend: "Frontend") -> None:
        pairs = range(frontend.queue_pairs)
        for pair in pairs:
            if pair == 0:
                self._enable(frontend, pair, True)
            frontend.request(Request.SET_FEATURES, U64(frontend.features))
            _tell_status(frontend, _FEATURES_OK)
            if pair == 0:
                frontend.tell_memory()
            for vring in frontend.rings[2 * pair : 2 * pair + 2]:
                frontend.tell_ring(vring)
                os.eventfd_write(vring.kick_fd, 1)
                frontend.tell_file(Request.SET_VRING_KICK, vring.index, vring.kick_fd)
                frontend.tell_file(Request.SET_VRING_CALL, vring.index, vring.call_fd)
        _tell_status(frontend, _ALL_OK)
        for pair in pairs[1 : frontend.enabled_pairs]:
            self._enable(frontend, pair, True)

    def stop(self, frontend: "Frontend") -> None:
        for vring in frontend.rings:
            frontend.stop_ring(vring)

    def _enable(self, frontend: "Frontend", pair: int, on: bool) -> None:
        if VirtioFeature.PROTOCOL_FEATURES in frontend.features:
            for index in (2 * pair, 2 * pair + 1):
                frontend.request(Request.SET_VRING_ENABLE, VringEnable(index, int(on)))


class VirtioUserSequence:
    """DPDK's virtio-user: owner first, all receive rings before the first transmit ring."""

    def connect(self, frontend: "Frontend") -> None:
        frontend.request(Request.SET_OWNER)
        frontend.take_features()
        frontend.protocol_features &= _KNOWN_TO_VIRTIO_USER
        frontend.take_protocol_features()
        frontend.require_queues()
        frontend.require_slots()
        frontend.make_rings()

    def start(self, frontend: "Frontend") -> None:
        rings = frontend.rings[0::2] + frontend.rings[1::2]
        for vring in rings:
            frontend.tell_file(Request.SET_VRING_CALL, vring.index, vring.call_fd)
        frontend.request(Request.SET_FEATURES, U64(frontend.features))
        _tell_status(frontend, 0xB)
        frontend.tell_memory()
        for vring in rings:
            frontend.tell_ring(vring)
            frontend.tell_file(Request.SET_VRING_KICK, vring.index, vring.kick_fd)
        for pair in range(frontend.enabled_pairs):
            self._enable(frontend, pair, True)
        _tell_status(frontend, _ALL_OK)

    def stop(self, frontend: "Frontend") -> None:
        for pair in range(frontend.enabled_pairs):
            self._enable(frontend, pair, False)
        for vring in frontend.rings:
            frontend.stop_ring(vring)

    def _enable(self, frontend: "Frontend", pair: int, on: bool) -> None:
        if VirtioFeature.PROTOCOL_FEATURES in frontend.features:
            frontend.enable(pair, on)


def _tell_status(frontend: "Frontend", bits: int) -> None:
    if ProtocolFeature.STATUS in frontend.protocol_features:
        before = frontend.ask(Request.GET_STATUS)
        frontend.request(Request.SET_STATUS, U64(before | bits), ack=True)


SEQUENCES: Mapping[str, type[Sequence]] = {
    "qemu": QemuSequence,
    "virtio-user": VirtioUserSequence,
}
