"""`vhostfast bench latency` and `loss-free` from outside: short runs, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import RATES, loss_free

from vhostfast.cli.bench_latency import _print_loss_free

COMMAND = [sys.executable, "-m", "vhostfast", "bench"]
CPUS = sorted(os.sched_getaffinity(0))
SHORT = [
    "--rounds=2", "--seconds=0.05", "--warm-up=0", "--hugepages=off", "--pattern=loop",
    f"--worker-cpu={CPUS[0]}", f"--driver-cpu={CPUS[-1]}",
]  # fmt: skip
pytestmark = pytest.mark.slow


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=False)


def good(*options: str) -> str:
    done = run(*options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_latency_stored_drawn_and_compared(tmp_path: Path) -> None:
    picture, stored = tmp_path / "now.svg", tmp_path / "run.json"
    stored.write_text(
        good("latency", *SHORT, "--rate=0.05,50%", "--json", f"--plot={picture}")
    )  # fmt: skip
    told: dict[str, Any] = json.loads(stored.read_text())
    assert told["kind"] == "latency"
    assert [(row["load"], row["row"]) for row in told["summary"]] == [
        (load, row) for load in ("0.05", "50%") for row in ("bare", "vhostfast")
    ]
    for row in told["summary"]:
        assert 0 < row["p50_ns"] <= row["p99_ns"] <= row["p999_ns"] <= row["max_ns"]
    assert told["summary"][0]["mpps"] == 0.05
    assert told["plan"]["workload"]["load"] == "touch"
    assert "vhostfast p99.9" in picture.read_text()
    good("plot", str(stored), str(tmp_path / "later.svg"))
    assert "vhostfast p99.9" in (tmp_path / "later.svg").read_text()
    table = good("compare", str(stored), str(stored))
    for words in ("p99.9 ns at 50%", "+0.0%", "noise"):
        assert words in table


def test_latency_as_a_table() -> None:
    table = good("latency", *SHORT, "--rate=0.05", "--no-limits", "--mode=adaptive")
    for words in ("microseconds there and back (loop)", "p99.9", "held", "vhostfast", "apart"):
        assert words in table
    assert "bare" not in table


def test_loss_free() -> None:
    options = ["loss-free", *SHORT, "--rounds=1", "--resolution=0.5", "--loss=0.5"]
    told = json.loads(good(*options, "--ring-size=4096", "--json"))
    assert told["kind"] == "loss-free"
    assert (told["plan"]["resolution"], told["plan"]["loss"]) == (0.5, 0.5)
    assert [row["row"] for row in told["summary"]] == ["bare", "vhostfast"]
    for row in told["summary"]:
        assert row["trials"] >= 2
    table = good(*options)
    for words in ("highest rate without loss", "trials", "within 50.0%"):
        assert words in table


def test_a_search_that_found_nothing_has_no_figure(capsys: pytest.CaptureFixture[str]) -> None:
    _print_loss_free(loss_free({**RATES, "vhostfast": (0.0, 0.0, 0.0)}))
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "vhostfast" in line]
    assert row.split()[:4] == ["64", "vhostfast", "-", "-"]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["latency", "--rate=fast"], 2, "--rate: 'fast' is no rate"),
        (["latency", "--rate=200%"], 2, "--rate 200%: no back-end does more than 100%"),
        (["latency", "--rate=0%"], 2, "--rate: '0%' is no rate: give millions"),
        (["latency", "--rate=-5%"], 2, "--rate: '-5%' is no rate: give millions"),
        (["latency", "--rate=0.001", *SHORT], 2, "these are 50 packets, and it takes 1000"),
        (["latency", "--seconds=nan"], 2, "give at least one round of some time"),
        (["latency", "--warm-up=inf"], 2, "--warm-up inf: give seconds, 0 or more"),
        (["latency", "--pattern=send-only"], 2, "--pattern send-only: nothing arrives"),
        (["loss-free", "--pattern=receive-only"], 2, "--pattern receive-only: no guest sends"),
        (["latency", "--pattern=send-back"], 2, "--pattern send-back: choose one of"),
        (["latency", "--plot=x.png"], 2, "--plot x.png: give a name that ends in .svg"),
        (["latency", "--plot=/no/such/x.svg"], 3, "there is no folder /no/such"),
        (["latency", "--queues=2"], 2, "No such option: --queues"),
        (["loss-free", "--resolution=0"], 2, "--resolution 0: give 0.001 to 0.5"),
        (["loss-free", "--loss=2"], 2, "--loss 2: give 0 to 0.5"),
        (["--rounds=2", "latency"], 2, "--rounds: give it behind latency"),
        (["--json", "compare", "a", "b"], 2, "--json: give it behind compare"),
        (["plot", "/no/such.json", "x.svg"], 3, "/no/such.json: No such file"),
    ],
)
def test_bad_use_is_a_sentence(options: list[str], code: int, says: str) -> None:
    done = run(*options)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
