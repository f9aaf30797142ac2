"""The protocol can be tried whole: each branch of these three files, or they have one too many."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = {
    "vhostfast.protocol.message": TESTS / "protocol" / "test_message.py",
    "vhostfast.protocol.session": TESTS / "protocol" / "test_session.py",
    "vhostfast.backend.channel": TESTS / "backend" / "test_channel.py",
}


@pytest.mark.slow
def test_every_branch_of_message_session_and_channel(tmp_path):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FILES.values()]
    command += [f"--cov={module}" for module in FILES]
    command += ["--cov-branch", "--cov-report=term-missing", "--cov-fail-under=100"]
    environment = os.environ | {"COVERAGE_FILE": str(tmp_path / "coverage")}
    run = subprocess.run(
        command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
