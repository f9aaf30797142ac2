"""The offer is a promise: these numbers are what QEMU, DPDK and guests have seen."""

import pytest

from vhostfast.errors import UsageError
from vhostfast.protocol.features import Offer, ProtocolFeature, VirtioFeature


def test_what_a_network_port_offers():
    offer = Offer.net()
    assert offer.features == 0x1_7C66_BB8B
    assert offer.protocol_features == 0x1A01F
    assert offer.queue_pairs == 128


def test_offloads_are_offered_whole_or_not_at_all():
    assert Offer.net(offloads=False).features == 0x1_7C66_8008


@pytest.mark.parametrize(
    "bit",
    [
        VirtioFeature.RING_RESET,
        VirtioFeature.CTRL_GUEST_OFFLOADS,
        VirtioFeature.GUEST_UFO,
        VirtioFeature.HOST_UFO,
        VirtioFeature.HASH_REPORT,
    ],
)
def test_never_offered_virtio(bit):
    assert bit not in Offer.net().features


@pytest.mark.parametrize(
    "bit",
    [
        ProtocolFeature.INBAND_NOTIFICATIONS,
        ProtocolFeature.XEN_MMAP,
        ProtocolFeature.GPA_ADDRESSES,
    ],
)
def test_never_offered_protocol(bit):
    assert bit not in Offer.net().protocol_features


@pytest.mark.parametrize("queue_pairs", [1, 2, 128])
def test_queue_pairs_are_the_users(queue_pairs):
    assert Offer.net(queue_pairs).queue_pairs == queue_pairs


@pytest.mark.parametrize("queue_pairs", [-1, 0, 129])
def test_wrong_number_of_queue_pairs(queue_pairs):
    with pytest.raises(UsageError, match="1 to 128"):
        Offer.net(queue_pairs)


@pytest.mark.parametrize("flags", [VirtioFeature, ProtocolFeature])
def test_each_member_is_one_bit_of_64(flags):
    assert all(bit.value.bit_count() == 1 and bit.value < 1 << 64 for bit in flags)
    assert len(flags) == len(flags.__members__)
