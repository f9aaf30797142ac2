"""`vhostfast bench` against DPDK's testpmd: every workload that it has a command line for."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.peers, pytest.mark.slow]
CPUS = sorted(os.sched_getaffinity(0))
SHORT = [
    "--rounds=1", "--seconds=0.1", "--warm-up=0.1", "--versus=dpdk", "--no-limits", "--json",
    f"--worker-cpu={CPUS[0]}", f"--driver-cpu={CPUS[-1]}",
]  # fmt: skip


def measured(*options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "vhostfast", "bench", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize(
    "options",
    [
        ["--sizes=64,imix", "--hugepages=off"],
        ["--pattern=loop", "--sizes=1500", "--load=touch"],
        ["--pattern=one-way", "--sizes=512", "--load=full", "--ring-size=1024"],
        ["--queues=2", "--sizes=64", "--layout=indirect", "--load=touch", "--no-mergeable"],
    ],
    ids=" ".join,
)
def test_dpdk_beside_our_switch(options: list[str]) -> None:
    told = measured(*SHORT, *options)
    assert (told["subject"], told["versus"]) == ("vhostfast", "dpdk")
    for row in told["summary"]:
        assert row["mpps"] > 0
        assert (row["row"] == "dpdk") != ("ratio_to_dpdk" in row)


@pytest.mark.parametrize("options", [["--queues=2"], ["--load=touch", "--buffer-size=512"]])
def test_a_guest_gets_what_testpmd_makes(options: list[str]) -> None:
    backend, pattern = "--backend=dpdk", "--pattern=receive-only"
    short = [word for word in SHORT if not word.startswith("--versus")]
    told = measured(*short, backend, pattern, "--sizes=1000", *options)
    assert "--forward-mode=txonly --txpkts=1000" in told["commands"]["dpdk"]
    (row,) = told["summary"]
    assert row["mpps"] > 0
    assert row["gbps"] == pytest.approx(row["mpps"] * 8)


@pytest.mark.parametrize("pattern", ["both-ways", "one-way", "loop"])
def test_how_long_packets_take_through_dpdk(pattern: str) -> None:
    told = measured("latency", *SHORT, "--rate=0.05,10%", f"--pattern={pattern}")
    rows = {(row["load"], row["row"]): row for row in told["summary"]}
    assert list(rows) == [(load, row) for load in ("0.05", "10%") for row in ("dpdk", "vhostfast")]
    for row in rows.values():
        assert 0 < row["p50_ns"] <= row["p99_ns"] <= row["p999_ns"] <= row["max_ns"]


def test_what_dpdk_stands_without_loss() -> None:
    told = measured("loss-free", *SHORT, "--resolution=0.25", "--loss=0.5", "--ring-size=4096")
    assert [row["row"] for row in told["summary"]] == ["dpdk", "vhostfast"]
    assert all(row["trials"] >= 2 for row in told["summary"])
