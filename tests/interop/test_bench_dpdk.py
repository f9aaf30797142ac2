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
    command = [sys.executable, "-m", "vhostfast", "bench", *SHORT, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert (told["subject"], told["versus"]) == ("vhostfast", "dpdk")
    for row in told["summary"]:
        assert row["mpps"] > 0
        assert (row["row"] == "dpdk") != ("ratio_to_dpdk" in row)
