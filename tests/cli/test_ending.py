"""Signals that end a command, each in a process of its own."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import signal, sys
from vhostfast.cli.ending import end_as_by_ctrl_c
ignored = sys.argv[2] == "ignored"
if ignored:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
end_as_by_ctrl_c()
try:
    signal.raise_signal(int(sys.argv[1]))
except KeyboardInterrupt:
    print("ended")
else:
    print("went on")
"""


@pytest.mark.parametrize(
    ("number", "before", "says"),
    [
        (signal.SIGTERM, "", "ended"),
        (signal.SIGHUP, "", "ended"),
        (signal.SIGHUP, "ignored", "went on"),
        (signal.SIGCONT, "", "went on"),
    ],
)
def test_end_as_by_ctrl_c(number: signal.Signals, before: str, says: str) -> None:
    command = [sys.executable, "-c", PROGRAM, str(int(number)), before]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{says}\n"
