"""`vhostfast bench idle` from outside."""

import json
import os
import subprocess
import sys

import pytest

CPUS = sorted(os.sched_getaffinity(0))
COMMAND = [
    sys.executable, "-m", "vhostfast", "bench", "idle", "--rounds=1", "--seconds=0.1",
    f"--worker-cpu={CPUS[0]}", f"--driver-cpu={CPUS[-1]}",
]  # fmt: skip
pytestmark = pytest.mark.slow


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=False)


def test_json() -> None:
    done = run("--ports=4", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "--mode interrupt" in told["commands"]["vhostfast"]
    (one,) = told["rounds"]["vhostfast"]
    assert set(one) == {"start_s", "cpu", "resident_mib", "shared_mib", "fds"}
    assert told["plan"]["workload"]["ports"] == 4


def test_table_of_two_that_are_not_ours() -> None:
    bare = f"--backend={sys.executable} -m vhostfast.bench.bare copy {{socket}}"
    done = run(bare, f"--versus={sys.executable} -m vhostfast.bench.bare null {{0}} {{1}}")
    assert done.returncode == 0, done.stderr
    for words in ("2 idle VMs", "sockets s", "python", "other python"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--ports=300"], 2, "--ports 300: give 2 to 256"),
        (["--backend=sleep {0} {1}", "--mode=poll", "--seconds=0"], 2, "give at least one round"),
        (["--backend=sleep {0} {1}", "--mode=adaptive"], 2, "is of our own switch"),
        (["--backend=false {0} {1}"], 3, "false has ended, exit code 1"),
    ],
)
def test_bad_use_is_a_sentence(options: list[str], code: int, says: str) -> None:
    done = run(*options)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
