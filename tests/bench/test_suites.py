"""The suites of bench/ still run, each once, and each has its null row; so do its programs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITES = sorted(path.name for path in ROOT.glob("bench/bench_*.py"))
ONCE = ["-m", "pytest", "bench", "-v", "--benchmark-disable", "-p", "no:cacheprovider"]


@pytest.mark.slow
def test_each_suite_runs():
    run = subprocess.run([sys.executable, *ONCE], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    null = re.findall(r"^bench/(\w+\.py)::\S*null\S* PASSED", run.stdout, re.MULTILINE)
    assert sorted(set(null)) == SUITES


@pytest.mark.slow
def test_stages_of_a_packet_are_told():
    command = [sys.executable, "bench/stages.py"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rows = re.findall(
        r"^│ (\w[^│]*?) +│ +([\d.]+) +│ +[\d.]+ +│ +[\d.]+ +│$", run.stdout, re.MULTILINE
    )
    assert "a whole burst" in dict(rows)
    assert all(float(cycles) > 0 for _, cycles in rows)
