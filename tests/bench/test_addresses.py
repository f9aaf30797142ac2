"""bench/addresses.py: each frame arrives at the owner of its address, however many there are."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import addresses
import numpy as np
import pytest
from addresses import Yard

KINDS = [
    {"addresses": 16, "size": 256},
    {"addresses": 1000, "size": 1024},
    {"addresses": 1000, "size": 1024, "from_all": True},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_address_is_sent_to_and_its_owner_gets_it(kind):
    with ExitStack() as stack:
        yard = Yard(stack, **kind)
        assert yard.cost() > 0
        yard.check()
        sent = {frame["target"].tobytes() for guest in yard.guests for frame in guest.sent}
        assert len(sent) == kind["addresses"]
        sources = {frame["source"].tobytes() for guest in yard.guests for frame in guest.sent}
        assert len(sources) == (kind["addresses"] if kind.get("from_all") else 4)


def test_rows_differ_in_addresses_alone():
    with ExitStack() as stack:
        few, many = (Yard(stack, number, 256) for number in (16, 1000))
        for yard in few, many:
            yard.check()
        for one, other in zip(few.guests, many.guests, strict=True):
            assert np.array_equal(one.received["number"], other.received["number"])


@pytest.mark.parametrize("wrong", ["unknown", "somebody else's"])
def test_a_frame_that_goes_elsewhere_is_seen(wrong):
    with ExitStack() as stack:
        yard = Yard(stack, 16, 256)
        address = yard.target[0].copy()
        if wrong == "unknown":  # is flooded
            address[1] ^= 0xFF
            yard.guests[0].sent["target"][0] = address
        else:
            owner = yard.fabric.find(address.tobytes()).index  # 1 to 3
            yard.fabric.learn(address.tobytes(), yard.guests[1 + owner % 3].port)
        with pytest.raises(AssertionError):
            yard.check()


@pytest.mark.slow
def test_every_row_has_its_turn(tmp_path: Path):
    told = tmp_path / "told.json"
    run = subprocess.run(
        [sys.executable, addresses.__file__, "--rounds=1", f"--json={told}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode in (0, 1), run.stderr
    (costs,) = json.loads(told.read_text())["rounds"]
    assert costs.keys() == addresses.ROWS.keys()
    assert all(cycles > 0 for cycles in costs.values())
    assert all(row in run.stdout for row in costs)
