"""bench/fairness.py does what its rows say; what it finds is for a quiet machine to say."""

import json
import subprocess
import sys
from pathlib import Path

import fairness

SCRIPT = Path(fairness.__file__)


def test_every_row_has_its_turn(tmp_path: Path) -> None:
    out = tmp_path / "fairness.json"
    command = [sys.executable, str(SCRIPT), "--rounds=2", "--seconds=0.05", f"--json={out}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stderr
    assert out.exists(), run.stderr
    found = json.loads(out.read_text())
    assert found["rings"].keys() == fairness.THIRD.keys()
    assert found["control"].keys() == fairness.CONTROL.keys()
    assert found["rings"][fairness.ALONE] == 1
    assert all(share > 0 for share in found["rings"].values())
