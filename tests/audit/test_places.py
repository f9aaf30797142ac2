"""What lies where in an audited guest, and what of it a back-end may write."""

import pytest
from guest import Guest

from vhostfast.audit.places import Places, pages_of, used_spans
from vhostfast.driver import GuestMemory, Pool, Vring
from vhostfast.protocol.message import LOG_PAGE


@pytest.mark.parametrize(
    ("gpa", "size", "pages"),
    [(0, 0, []), (0, 1, [0]), (4095, 1, [0]), (4095, 2, [0, 1]), (4096, 4097, [1, 2])],
)
def test_pages_of(gpa: int, size: int, pages: list[int]) -> None:
    assert list(pages_of(gpa, size)) == pages


@pytest.mark.parametrize(
    ("before", "after", "offsets"),
    [
        (0, 0, []),
        (0, 2, [(4, 8), (12, 8), (2, 2)]),
        (3, 5, [(28, 8), (4, 8), (2, 2)]),
        (65535, 1, [(28, 8), (4, 8), (2, 2)]),
        (0, 4, [(4, 8), (12, 8), (20, 8), (28, 8), (2, 2)]),
    ],
)
def test_used_spans(before: int, after: int, offsets: list[tuple[int, int]]) -> None:
    with Guest() as guest:
        vring = guest.vring(4)
        spans = [(gpa - vring.used_gpa, size) for gpa, size in used_spans(vring, before, after)]
        assert spans == offsets


def test_names_and_what_may_be_written() -> None:
    with (
        GuestMemory(apart=2048) as memory,
        Vring(memory, 0, 256, event_idx=True) as rx,
        Vring(memory, 1, 256, event_idx=True) as tx,
    ):
        pools = [Pool(vring, memory.take(256 * 1000), 1000) for vring in (rx, tx)]
        places = Places([rx, tx], pools, 12)
        for gpa, name in [
            (rx.used_gpa, "used ring of vring 0, flags"),
            (tx.used_gpa + 3, "used ring of vring 1, idx"),
            (rx.used_gpa + 4, "used ring of vring 0, element 0"),
            (rx.used_gpa + 4 + 8 * 255, "used ring of vring 0, element 255"),
            (rx.used_gpa + 4 + 8 * 256, "used ring of vring 0, avail_event"),
            (rx.desc_gpa, "descriptors of vring 0"),
            (tx.avail_gpa + 5, "avail ring of vring 1"),
            (pools[0].gpa + 2011, "receive buffer of vring 0, number 2, header"),
            (pools[0].gpa + 2012, "receive buffer of vring 0, number 2, frame"),
            (pools[1].gpa + 999, "transmit buffer of vring 1, number 0, frame"),
            (rx.desc_gpa - 1, "nothing of the rings'"),
        ]:
            assert places.name(gpa) == name
        assert places.name_page(rx.used_gpa // LOG_PAGE) == "used ring of vring 0"
        assert places.name_page(0xFFF) == "nothing of the rings'"
        written = [(rx.used_gpa, 2054), (tx.used_gpa, 2054), (pools[0].gpa, 256000)]
        expected = sorted(page for span in written for page in pages_of(*span))
        assert places.writable().tolist() == expected
