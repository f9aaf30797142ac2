"""Which goals are met: told from what runs printed, and from runs that failed."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import goals
import pytest
from goals import (
    GOALS,
    RUNS,
    Failed,
    Goal,
    Row,
    bare,
    cost,
    evaluate,
    exit_code,
    idle,
    many_addresses,
    two_workers,
    versus,
    virtio_user,
)
from runs import report

SLOW = {"null": (99.0, 97.0, 98.0), "bare": (20.0, 10.0, 40.0), "dpdk": (4.0, 2.0, 5.0),
        "vhostfast": (12.0, 8.0, 30.0)}  # fmt: skip
FAST = {**SLOW, "dpdk": (2.0, 1.0, 4.0)}  # bare is 10 times that


def printed(rates: dict[str, tuple[float, ...]] = SLOW, cycles: float = 100.0) -> dict[str, Any]:
    """What `vhostfast bench --json` prints."""
    told: dict[str, Any] = json.loads(json.dumps(report(rates).as_dict()))
    for turn in told["rounds"]:
        turn["samples"]["vhostfast"] |= {"cycles": cycles, "idle": 0.01}
    return told


def row(goal: Goal, told: dict[str, Any]) -> Row:
    return evaluate(goal, [[told]])


@pytest.mark.parametrize(
    ("figure", "least", "met"),
    [
        (bare("64"), 0.74, True),  # 0.6, 0.8, 0.75
        (bare("64"), 0.75, True),
        (bare("64"), 0.76, False),
        (versus("64"), 4.0, True),  # 3, 4, 6
        (versus("64"), 4.1, False),
        (versus("64"), None, None),
    ],
)
def test_the_median_of_all_rounds_counts(figure, least, met):
    assert row(Goal("lean", "", figure, least=least), printed()).met is met


def test_programs_of_the_folder_tell_their_figures():
    rates = {"vectorized": {"dpdk": [2.0, 4.0], "vhostfast": [3.0, 4.0]}}
    assert virtio_user("vectorized")([[rates]]) == (1.5, 1.0)
    turns = [{"mpps": mpps} for mpps in (10.0, 30.0, 38.0)]
    assert two_workers([[{"rounds": [turns]}]]) == (1.9,)
    costs = [{"16": 100.0, "100,000": 140.0}, {"16": 50.0, "100,000": 80.0}]
    assert many_addresses([[{"rounds": costs}]]) == (1.4, 1.6)


def test_a_row_has_each_round_and_who_else_was_the_limit():
    found = row(Goal("lean", "x DPDK", versus("64"), least=4.0), printed())
    assert (found.asked, found.values) == (">= 4", (3.0, 4.0, 6.0))
    assert found.note == "driver idle 1% or more, others had a CPU 0% at worst"


@pytest.mark.parametrize(
    ("starved", "still", "says"),
    [
        (0.1, True, "others had a CPU 10% at worst"),
        (0.3, True, "others had a CPU 30% at worst: doubt it"),
        (0.0, False, "the CPUs' distance changed in 1 rounds: doubt it"),
    ],
)
def test_what_a_restless_machine_gave_is_to_be_doubted(starved, still, says):
    told = printed()
    told["rounds"][1]["samples"]["dpdk"]["starved"] = starved
    told["rounds"][2]["still"] = still
    note = row(Goal("lean", "", versus("64")), told).note
    assert says in note
    assert ("doubt" in note) is ("doubt" in says)


@pytest.mark.parametrize(
    ("rates", "asked", "met", "says"),
    [
        (SLOW, ">= 2", True, "bare is 5.00 x DPDK"),
        (FAST, ">= 8", False, "bare is 10.0 x DPDK"),
    ],
)
def test_less_is_asked_where_the_limit_is_lower(rates, asked, met, says):
    found = row(Goal("lean", "", versus("64"), least=8.0, slow_cpu=2.0), printed(rates))
    assert (found.asked, found.met) == (asked, met)
    assert found.note.startswith(says)


@pytest.mark.parametrize(("cycles", "met"), [(104.0, True), (106.0, False)])
def test_two_commands_are_held_against_each_other_round_by_round(cycles, met):
    one = {"vhostfast": (1.0,)}
    found = [[printed(one), printed(one, 50.0)], [printed(one, cycles), printed(one, cycles / 2)]]
    told = evaluate(Goal("ports", "", cost("64"), below=1.05), found)
    assert told.values == pytest.approx((cycles / 100, cycles / 100))
    assert told.met is met


@pytest.mark.parametrize(("cpu", "met"), [(0.009, True), (0.01, False)])
def test_idle_guests(cpu, met):
    rounds = [{"cpu": value, "start_s": 0.1} for value in (0.0, cpu, 0.5)]
    told = row(Goal("idle-2", "", idle("cpu"), below=0.01), {"rounds": {"vhostfast": rounds}})
    assert (told.asked, told.values, told.met) == ("< 0.01", (0.0, cpu, 0.5), met)


MET = Row("lean", "", ">= 1", (2.0,), True, "")
TOLD = replace(MET, asked="", met=None)
NOT_MET = replace(MET, met=False)
NOT_MEASURED = replace(MET, values=(), met=None)


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([MET, TOLD], 0),
        ([MET, NOT_MET], 1),
        ([MET, NOT_MEASURED], 3),
        ([NOT_MEASURED, NOT_MET, MET], 1),
    ],
)
def test_exit_code(rows, code):
    assert exit_code(rows) == code


def test_every_goal_has_a_run_and_every_run_a_goal():
    assert {goal.run for goal in GOALS} == set(RUNS)


# --- The command, with runs that have been made already


def main(monkeypatch: pytest.MonkeyPatch, told: dict[str, Any] | Failed, *words: str) -> int:
    def bench(_options: str, _rounds: int, _seconds: float) -> dict[str, Any]:
        if isinstance(told, Failed):
            raise told
        return told

    monkeypatch.setattr(goals, "bench", bench)
    monkeypatch.setattr(sys, "argv", ["goals.py", *words])
    return goals.main()


@pytest.mark.parametrize(("ours", "code", "met"), [(12.0, 0, "yes"), (7.0, 1, "NO")])
def test_a_goal_that_is_not_met_is_told(monkeypatch, capsys, tmp_path: Path, ours, code, met):
    told = printed({"dpdk": (4.0,) * 3, "vhostfast": (ours,) * 3})
    path = tmp_path / "goals.json"
    assert main(monkeypatch, told, "--only", "indirect", "--json", str(path)) == code
    out = capsys.readouterr()
    (line,) = [one for one in out.out.splitlines() if "indirect: x DPDK, 64 B" in one]
    ratio = f"{ours / 4:.2f}" if ours >= 8 else f"{ours / 4:.3f}"
    assert line.split()[-6:] == [">=", "2", ratio, f"{ratio}-{ratio}", met, "3"]
    assert out.err.startswith("1/1 indirect ... ")
    stored = json.loads(path.read_text())
    assert stored["goals"][0]["values"] == [ours / 4] * 3
    assert stored["runs"]["indirect"] == [[told]]


def test_a_run_that_fails_is_told(monkeypatch, capsys):
    assert main(monkeypatch, Failed("exit code 3, no dpdk"), "--only", "chained") == 3
    out = capsys.readouterr().out
    assert "not measured" in out
    assert "chained: not measured: exit code 3, no dpdk" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--only", "lean,odd"), "--only odd: choose of lean, touch"),
        (("--rounds", "0"), "at least one round"),
        (("--seconds", "0"), "at least one round"),
        (("--json", "/nowhere/x"), "--json /nowhere/x: there is no folder /nowhere"),
    ],
)
def test_wrong_usage(monkeypatch, capsys, words, says):
    with pytest.raises(SystemExit, match="2"):
        main(monkeypatch, printed(), *words)
    assert says in capsys.readouterr().err


def test_the_sentence_of_a_command_that_fails():
    with pytest.raises(Failed, match="exit code 2, vhostfast: --layout odd: choose one of direct"):
        goals.bench("--layout odd", 1, 0.1)
