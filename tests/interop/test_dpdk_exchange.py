"""The comparison that test_dpdk.py rests on, and what testpmd's words are taken to mean."""

import pytest
from dpdk_exchange import faults, frames, mac, shuffled
from testpmd import PortStats, parse_stats

FRAMES = frames(1, mac(0), mac(1), shuffled(range(60, 90)))
OTHERS = frames(2, mac(1), mac(0), range(60, 64))
DAMAGED = [FRAMES[0][:-1] + bytes([FRAMES[0][-1] ^ 1]), *FRAMES[1:]]


def test_frames_have_their_sizes_and_differ():
    assert sorted(map(len, FRAMES)) == list(range(60, 90))
    assert len({*FRAMES, *OTHERS}) == len(FRAMES) + len(OTHERS)


@pytest.mark.parametrize(
    ("received", "found"),
    [
        (FRAMES, []),
        (FRAMES[:-1], ["1 lost"]),
        ([*FRAMES, FRAMES[-1]], ["arrived twice"]),
        ([FRAMES[1], FRAMES[0], *FRAMES[2:]], ["out of order"]),
        (DAMAGED, ["1 not sent by anybody", "1 lost"]),
        ([*FRAMES, *OTHERS], ["4 not sent by anybody"]),
        ([], ["30 lost"]),
    ],
)
def test_faults_are_named(received, found):
    said = faults([FRAMES], received)
    assert len(said) == len(found)
    assert all(words in sentence for words, sentence in zip(found, said, strict=True))


def test_streams_may_be_interleaved():
    assert faults([FRAMES, OTHERS], [*FRAMES[:3], *OTHERS, *FRAMES[3:]]) == []


def test_words_of_testpmd():
    stats = """
  ######################## NIC statistics for port 1  ########################
  RX-packets: 1000       RX-missed: 0          RX-bytes:  516084
  RX-errors: 0
  TX-packets: 7          TX-errors: 0          TX-bytes:  612170
"""
    assert parse_stats(stats) == {1: PortStats(1000, 516084, 7, 612170)}
