"""The shapes of an audit: that each can be had, and where its avail_event lies."""

import pytest

from vhostfast.audit.shapes import LOGS, MERGEABLE, SHAPES, Shape
from vhostfast.protocol.features import Offer, ProtocolFeature, VirtioFeature
from vhostfast.protocol.message import LOG_PAGE

OURS = Offer.net()


def test_shapes_have_names_of_their_own_and_every_kind_of_log() -> None:
    assert len({shape.name for shape in SHAPES}) == len(SHAPES)
    assert {shape.log for shape in SHAPES} == set(LOGS)
    assert {shape.load.layout for shape in SHAPES} == {"direct", "chained", "indirect"}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_our_back_end_has_it_and_one_that_lacks_what_it_needs_does_not(shape: Shape) -> None:
    assert shape.is_offered(OURS.features, OURS.protocol_features, 2)
    if shape.needs:
        assert not shape.is_offered(OURS.features & ~shape.needs, OURS.protocol_features, 2)
    assert shape.is_offered(OURS.features, OURS.protocol_features, 1) == (shape.queue_pairs == 1)
    less = OURS.protocol_features & ~ProtocolFeature.MQ
    assert shape.is_offered(OURS.features, less, 2) == (shape.queue_pairs == 1)
    assert not shape.features & shape.without


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_avail_event_begins_a_page_that_is_hardly_touched_else(shape: Shape) -> None:
    event = shape.apart + 4 + 8 * shape.ring_size
    assert event % LOG_PAGE == 4
    assert shape.apart % 16 == 0


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_frames_fit_where_buffers_cant_be_merged(shape: Shape) -> None:
    if MERGEABLE not in shape.features:
        assert max(shape.load.sizes) + 64 <= shape.load.stride
    assert VirtioFeature.PROTOCOL_FEATURES in shape.features
