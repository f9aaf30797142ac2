"""bench/second_worker.py moves packets by one worker and by two; figures are not judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_each_turn_moves_packets(tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    options = ["--rounds", "1", "--seconds", "0.1", "--json", str(told)]
    run = subprocess.run(
        [sys.executable, "bench/second_worker.py", *options],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode in (0, 1), run.stderr
    assert "x one: " in run.stdout
    (turns,) = json.loads(told.read_text())["rounds"]
    assert len(turns) == 3
    assert all(turn["mpps"] > 0 and turn["cycles"] > 0 for turn in turns)
