"""`vhostfast demo` from outside, and what it calls good."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from vhostfast.bench.pair import Result

COMMAND = [sys.executable, "-m", "vhostfast", "demo"]
GOOD = Result(64, packets=10, counted=8, seconds=2.0, cycles=50.0, lost=0, corrupt=0, reordered=0)


@pytest.mark.slow
def test_all_packets_arrive() -> None:
    done = subprocess.run(
        [*COMMAND, "--seconds=0.3", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [result["size"] for result in results] == [64, 512, 1500]
    for result in results:
        assert (result["lost"], result["corrupt"], result["reordered"]) == (0, 0, 0)
        assert result["packets"] >= result["counted"] > 0
        assert result["cycles"] > 0
        assert result["gbps"] == pytest.approx(result["mpps"] * result["size"] * 8e-3)


@pytest.mark.slow
def test_table(tmp_path: Path) -> None:
    """For people: a table, and nothing left in the temporary folder."""
    done = subprocess.run(
        [*COMMAND, "--seconds=0.2"], capture_output=True, text=True, check=False,
        env={**os.environ, "COLUMNS": "100", "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for heading in ("bytes", "packets", "Mpps", "Gbit/s", "cycles", "lost", "corrupt", "reordered"):
        assert heading in done.stdout
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"packets": 0}, False),
        ({"lost": 1}, False),
        ({"lost": -1}, False),
        ({"corrupt": 1}, False),
        ({"reordered": 1}, False),
    ],
)
def test_good_means_that_each_arrived_once_in_order(change: dict[str, int], good: bool) -> None:
    assert replace(GOOD, **change).good is good


def test_units() -> None:
    assert GOOD.mpps == pytest.approx(4e-6)
    assert GOOD.gbps == pytest.approx(4 * 64 * 8e-9)


def children(pid: int) -> dict[int, str]:
    """The processes that `pid` has started, and their command lines."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(pid): Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in pids}


def start(*options: str) -> tuple["subprocess.Popen[str]", dict[int, str]]:
    """A demo, and its three processes once they run."""
    pipe = subprocess.PIPE
    demo = subprocess.Popen([*COMMAND, *options], stdout=pipe, stderr=pipe, text=True)
    deadline = time.monotonic() + 10
    while len(family := children(demo.pid)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    return demo, family


@pytest.mark.slow
def test_packets_under_way_are_not_lost() -> None:
    """The switch stands still for longer than a machine waits: nothing is lost, only late."""
    demo, family = start("--seconds=0.5", "--json")
    switch = next(pid for pid, command in family.items() if " switch " in command)
    with contextlib.suppress(ProcessLookupError):  # it ends when the demo does
        while demo.poll() is None:
            os.kill(switch, signal.SIGSTOP)
            time.sleep(0.7)
            os.kill(switch, signal.SIGCONT)
            time.sleep(0.1)
    out, err = demo.communicate()
    assert demo.returncode == 0, out + err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whoever_ends_it_finds_nothing_left(number: signal.Signals) -> None:
    demo, family = start("--seconds=30")
    os.kill(demo.pid, number)
    _, err = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert "Traceback" not in err
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "says"), [(" switch ", "the switch"), (".machine ", "virtual")])
def test_one_that_dies_is_a_fault_and_none_is_left(victim: str, says: str) -> None:
    demo, family = start("--seconds=5")
    os.kill(next(pid for pid, command in family.items() if victim in command), signal.SIGKILL)
    _, err = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert says in err
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]
