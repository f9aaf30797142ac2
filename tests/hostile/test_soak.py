"""A short `make soak`; whatever it finds it finds sooner or later."""

import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).parent.parent / "soak.py"


def test_a_short_soak() -> None:
    command = [sys.executable, str(SOAK), "--minutes", "0.25"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "good: " in run.stdout
