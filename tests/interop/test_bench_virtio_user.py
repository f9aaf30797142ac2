"""bench/virtio_user.py measures both back-ends with a real virtio-user; figures are not judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.peers
def test_packets_circulate_through_both_back_ends(tmp_path):
    told = tmp_path / "figures.json"
    options = ["--rounds", "1", "--seconds", "0.2", "--only", "mergeable", "--json", str(told)]
    run = subprocess.run(
        [sys.executable, "bench/virtio_user.py", *options],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode in (0, 1), run.stdout + run.stderr
    rates = json.loads(told.read_text())["mergeable"]
    assert all(rates[name][0] > 0 for name in ("dpdk", "vhostfast"))
    assert "mergeable" in run.stdout
