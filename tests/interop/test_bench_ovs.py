"""`vhostfast bench` against Open vSwitch with DPDK, both of which learn addresses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.peers, pytest.mark.slow]
CPUS = sorted(os.sched_getaffinity(0))
COMMAND = [
    sys.executable, "-m", "vhostfast", "bench", "--rounds=1", "--seconds=0.1", "--warm-up=0.1",
    "--versus=ovs", "--no-limits", "--hugepages=off", "--json",
    f"--worker-cpu={CPUS[0]}", f"--driver-cpu={CPUS[-1]}",
]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        ["--sizes=64,imix"],
        ["--sizes=512", "--pattern=one-way", "--load=full", "--queues=2"],
        ["--sizes=1500", "--buffer-size=1024", "--load=touch"],
    ],
    ids=" ".join,
)
def test_ovs_beside_our_switch(options: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*COMMAND, *options], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert (told["subject"], told["versus"]) == ("vhostfast", "ovs")
    assert "--forward learn" in told["commands"]["vhostfast"]
    assert [row["row"] for row in told["summary"][:2]] == ["ovs", "vhostfast"]
    for one in told["rounds"]:
        for sample in one["samples"].values():
            assert sample["mpps"] > 0
            assert sample["verified"] > 0
    assert os.listdir(tmp_path) == []
    assert str(tmp_path) not in processes()


def test_a_guest_that_only_sends() -> None:
    command = [*COMMAND, "--sizes=64", "--pattern=send-only"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(row["mpps"] > 0 for row in json.loads(done.stdout)["summary"])


def processes() -> str:
    """The command lines of all that run: of ovsdb-server, too, which is not our child."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    return "\n".join(found)
