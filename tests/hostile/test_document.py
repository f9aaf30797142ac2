"""docs/security.md says of each hostile case what its test says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_is_of_these_tests() -> None:
    command = [sys.executable, ROOT / "scripts" / "hostile_table.py", "--check"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
