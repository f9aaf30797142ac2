"""`vhostfast bench` from outside: short runs against our own switch, and what is refused."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from daemon import daemon, ports, wait_for
from runs import RATES, report

from vhostfast.bench.backend import family
from vhostfast.cli.bench import _print_report, explain, table_of

COMMAND = [sys.executable, "-m", "vhostfast", "bench"]
CPUS = sorted(os.sched_getaffinity(0))
SHORT = [
    "--sizes=64", "--rounds=2", "--seconds=0.05", "--warm-up=0", "--hugepages=off",
    f"--worker-cpu={CPUS[0]}", f"--driver-cpu={CPUS[-1]}",
]  # fmt: skip
pytestmark = pytest.mark.slow


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=False)


def measured(*options: str) -> dict[str, Any]:
    done = run(*SHORT, "--json", *options)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    return measured()


def test_json(told: dict[str, Any]) -> None:
    assert list(told["commands"]) == ["null", "bare", "vhostfast"]
    assert told["subject"] == "vhostfast"
    assert len(told["rounds"]) == 2
    assert [row["row"] for row in told["summary"]] == ["null", "bare", "vhostfast"]
    assert all(row["mpps"] > 0 for row in told["summary"])
    assert told["plan"]["hugepages"] is False
    assert told["machine"]["cpus"] == os.cpu_count()


def test_table_against_another(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, *SHORT, "--pattern=loop", "--load=touch", "--versus=vhostfast"],
        capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for word in ("loop, load touch", "4 KiB pages", "null", "other vhostfast", "x bare", "apart"):
        assert word in done.stdout
    assert os.listdir(tmp_path) == []


def test_many_ports_of_a_command() -> None:
    """Each word with a socket is there once for each."""
    command = f"{sys.executable} -m vhostfast.bench.bare copy {{socket}}"
    told = measured("--no-limits", "--ports=10", "--busy=2", f"--backend={command}")
    assert told["commands"] == {Path(sys.executable).name: command}
    assert told["plan"]["workload"]["ports"] == 10
    assert told["summary"][0]["mpps"] > 0


def test_where_it_runs_is_for_who_started_it(capsys: pytest.CaptureFixture[str]) -> None:
    one = report()
    _print_report(replace(one, commands={**one.commands, "running": "/a /b"}, rounds=tuple(
        replace(turn, samples={**turn.samples, "running": turn.samples[one.subject]})
        for turn in one.rounds
    )))  # fmt: skip
    assert "pin it to CPU 0 (our switch: --cpus)" in capsys.readouterr().out


def test_sigterm_leaves_nothing_behind(tmp_path: Path) -> None:
    """What it has started has ended, and its folders are gone."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [*COMMAND, *SHORT, "--rounds=1000", "--no-limits"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as bench:
        deadline = time.monotonic() + 10
        while not list(tmp_path.glob("*/0.sock")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        started = list(family(bench.pid))
        bench.terminate()
        _, err = bench.communicate(timeout=60)
    assert bench.returncode == 130
    assert "Traceback" not in err
    assert len(started) > 1
    assert not [process for process in started if process.exists()]
    assert not list(tmp_path.iterdir())


def test_the_cost_of_a_log() -> None:
    told = measured("--log=both", "--no-limits")
    assert list(told["commands"]) == ["log off", "vhostfast"]
    assert told["summary"][1]["ratio_to_log off"] > 0


def test_a_switch_that_runs_already(tmp_path: Path) -> None:
    sockets = [tmp_path / "a", tmp_path / "b"]
    with daemon(*ports(*sockets), "--forward=patch", "--mode=interrupt"):
        wait_for(*sockets)
        told = measured("--no-limits", *[f"--socket={path}" for path in sockets])
    assert told["commands"] == {"running": f"{sockets[0]} {sockets[1]}"}
    assert told["summary"][0]["mpps"] > 0


def test_nobody_is_measured_beside_one_that_keeps_the_cpu(tmp_path: Path) -> None:
    """As DPDK does, guests or not. Our own switch sleeps while it has none."""
    sockets = [tmp_path / "a", tmp_path / "b"]
    spin = ["taskset", "-c", str(CPUS[0]), sys.executable, "-c", "while True: pass"]
    with daemon(*ports(*sockets), "--forward=patch"), subprocess.Popen(spin) as spinning:
        wait_for(*sockets)
        try:
            done = run(*SHORT, *[f"--socket={path}" for path in sockets])
        finally:
            spinning.kill()
    assert done.returncode == 3
    assert f"CPU {CPUS[0]} is busy" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--sizes=64,9000"], 2, "a frame of 9000 bytes doesn't fit: give 60 to 1514"),
        (["--pattern=send-back"], 2, "choose one of both-ways, one-way, loop, send-only, rec"),
        (["--pattern=receive-only"], 2, "vhostfast sends nothing by itself"),
        (["--pattern=receive-only", "--sizes=64,512"], 2, "receive-only: give one of --sizes"),
        (["--ports=5"], 2, "--ports 5: give 2 to 256, two by two"),
        (
            ["--sizes=64,1500", "--buffer-size=512", "--no-mergeable"],
            2,
            "--buffer-size 512: a frame",
        ),
        (["--ring-size=1000"], 2, "--ring-size 1000: give a power of two"),
        (["--socket=/nowhere/a"], 2, "--socket: 1 given, --pattern both-ways needs 2"),
        (["--socket=/nowhere/a", "--socket=/nowhere/a"], 2, "--socket: one is given twice"),
        (["--pattern=loop", "--no-limits", "--socket=/nowhere/a"], 3, "nobody serves /nowhere/a"),
        (["--backend=/no/such {0} {1}"], 3, "there is no program /no/such"),
        (["--backend=false {0} {1}"], 3, "false has ended, exit code 1"),
        (["--driver-cpu=4095"], 3, "--driver-cpu 4095: there is no such CPU"),
        (["--hugepages=on", "--queues=16", "--ring-size=32768"], 3, "hugepages of 2 MiB are free"),
    ],
)
def test_bad_use_is_a_sentence(options: list[str], code: int, says: str) -> None:
    done = run(*SHORT, *options)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_what_is_explained_below_a_table_are_its_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = table_of("t", ("bytes", "idle"), ["x bare", "x dpdk"])
    explain(table, {"x": "as fast", "idle": "the driver's", "lost": "never came"})
    assert capsys.readouterr().out == "idle: the driver's; x: as fast\n"


def test_a_lone_back_end_has_no_ratio_and_a_lone_guest_no_loss(
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone = report({"vhostfast": (12.0,)})
    work = {**alone.plan["workload"], "pattern": "send-only"}
    lone = replace(alone, plan={**alone.plan, "workload": work})
    for one, absent in ((report(), []), (alone, ["fast"]), (lone, ["fast", "lost"])):
        _print_report(one)
        words = set(re.findall(r"\w+", capsys.readouterr().out))
        assert {"range", "idle", "lost", "fast"} - words == set(absent)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """What --json printed: a run, the same with all our rounds better, and one of another kind."""
    runs = {
        "old": report(),
        "new": report({**RATES, "vhostfast": (36.0, 32.0, 64.0)}),
        "unlike": report(plan={**report().plan, "hugepages": True}),
    }
    for name, one in runs.items():
        (tmp_path / name).write_text(json.dumps(one.as_dict()))
    return {name: str(tmp_path / name) for name in runs}


def test_compare(files: dict[str, str]) -> None:
    done = run("compare", files["old"], files["new"], "--json")
    assert done.returncode == 0, done.stderr
    changes = {one["ratio_to"]: one for one in json.loads(done.stdout)}
    assert list(changes) == [None, "dpdk", "bare"]
    assert (changes[None]["factor"], changes[None]["more_than_noise"]) == (3.0, True)
    table = run("compare", files["old"], files["new"])
    assert table.returncode == 0, table.stderr
    told = "new: CPUs 0 (back-end) and 1 (driver) were"
    for words in ("+200.0%", "12.0 (8.00-30.0)", "more than noise", "once in 10 times", told):
        assert words in table.stdout


def test_compare_of_one_round_each(tmp_path: Path) -> None:
    """Which is never luck, and never anything else."""
    for name, mpps in (("old", 12.0), ("new", 36.0)):
        one = report({"vhostfast": (mpps,)})
        (tmp_path / name).write_text(json.dumps(one.as_dict()))
    done = run("compare", str(tmp_path / "old"), str(tmp_path / "new"))
    assert done.returncode == 0, done.stderr
    assert "+200.0%" in done.stdout
    assert "?: too few rounds to tell a change from noise" in done.stdout
    assert "more than noise" not in done.stdout


def test_compare_refuses_what_is_no_run(tmp_path: Path, files: dict[str, str]) -> None:
    (tmp_path / "odd").write_text("{}")
    done = run("compare", files["old"], str(tmp_path / "odd"))
    assert done.returncode == 2
    assert "is not what vhostfast bench --json prints: Object missing required" in done.stderr
    assert done.stdout == ""


def test_compare_refuses_unlike_runs(files: dict[str, str]) -> None:
    done = run("compare", files["old"], files["unlike"])
    assert done.returncode == 2
    assert "hugepages was False and is True" in done.stderr
    assert done.stdout == ""
