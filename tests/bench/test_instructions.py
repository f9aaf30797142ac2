"""The guard over instruction counts: what it lets pass, what it stops, and what it says then."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import instructions
import pytest
from instructions import STORED, TOLERANCE, Counts, check, differences, require_same_compiler

from vhostfast.errors import EnvironmentLacks

KNOWN = Counts.load(STORED)
CASES = sorted(KNOWN.counts)


def altered(case: str, factor: float) -> Counts:
    return replace(KNOWN, counts={**KNOWN.counts, case: KNOWN.counts[case] * factor})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("factor", "verb"), [(1.03, "rose"), (0.97, "fell")])
def test_three_percent_are_told_either_way(case, factor, verb):
    before = KNOWN.counts[case]
    (said,) = differences(KNOWN, altered(case, factor))
    assert said.startswith(f"{case}: {verb} from {before:.2f} to {before * factor:.2f} (")
    assert f"{100 * (factor - 1):+.1f} %" in said


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("factor", [0.99, 1.0, 1.01])
def test_one_percent_passes(case, factor):
    assert differences(KNOWN, altered(case, factor)) == []


def test_a_case_that_comes_or_goes_is_told():
    case = CASES[0]
    fewer = replace(KNOWN, counts={name: KNOWN.counts[name] for name in CASES[1:]})
    assert differences(fewer, KNOWN) == [f"{case}: is not stored"]
    assert differences(KNOWN, fewer) == [f"{case}: is no longer there"]


def test_it_says_how_to_store_anew(capsys):
    assert check(KNOWN, altered(CASES[0], 1 + 2 * TOLERANCE)) == 1
    assert "bench/instructions.py --store" in capsys.readouterr().out
    assert check(KNOWN, KNOWN) == 0
    assert f"{len(CASES)} counts are within 2%" in capsys.readouterr().out


def test_counts_of_another_compiler_are_not_compared(monkeypatch):
    monkeypatch.setattr(instructions, "compiler", lambda: "gcc 13.1.0")
    says = f"are of {KNOWN.compiler}, here is gcc 13.1.0: nothing was compared.*--store"
    with pytest.raises(EnvironmentLacks, match=says):
        require_same_compiler(KNOWN)


def test_tools_that_are_not_there(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EnvironmentLacks, match="gcc isn't in PATH: apt-get install gcc"):
        instructions.compiler()


# --- With valgrind


def run(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, instructions.__file__, *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Counts of the code as it is."""
    path = tmp_path_factory.mktemp("counts") / "fresh.json"
    assert run("--store", "--file", path).returncode == 0
    return path


def change(path: Path, to: Path, alter: Callable[[float], float]) -> Path:
    content = json.loads(path.read_text())
    content["counts"][CASES[0]] = alter(content["counts"][CASES[0]])
    to.write_text(json.dumps(content))
    return to


@pytest.mark.peers
def test_counts_are_the_same_each_time(fresh, tmp_path):
    assert run("--store", "--file", tmp_path / "again").returncode == 0
    again = Counts.load(tmp_path / "again").counts
    assert again == pytest.approx(Counts.load(fresh).counts, rel=0.001)


@pytest.mark.peers
def test_a_file_that_is_three_percent_off_fails_and_one_percent_passes(fresh, tmp_path):
    off = run("--file", change(fresh, tmp_path / "off", lambda count: count * 1.03))
    assert (off.returncode, f"{CASES[0]}: fell from" in off.stdout) == (1, True), off
    near = run("--file", change(fresh, tmp_path / "near", lambda count: count * 1.01))
    assert near.returncode == 0, near
