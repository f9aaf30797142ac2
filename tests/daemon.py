"""A `vhostfast switch` process under a test's control."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "vhostfast", "switch"]


class Daemon:
    """The process. `options` are the command line's; what it says can be read once it has ended,
    or in the file `log`, for one that says more than a pipe holds. `before` is a command that runs
    the switch in its place."""

    def __init__(self, *options: str, log: Path | None = None, before: Sequence[str] = ()) -> None:
        pipe = subprocess.PIPE
        command = [*before, *COMMAND, *options]
        with open(log, "ab") if log else nullcontext(pipe) as err:
            self.process = subprocess.Popen(command, stdout=pipe, stderr=err, text=True)
        self.pid = self.process.pid

    def line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "the switch has ended"
        return line

    def wait_ready(self) -> None:
        """Until its start is done: SIGUSR1 is answered by then. For one port without --json."""
        self.process.send_signal(signal.SIGUSR1)
        self.line()

    def summary(self) -> dict[str, Any]:
        """Its counters now; needs --json."""
        self.process.send_signal(signal.SIGUSR1)
        summary: dict[str, Any] = json.loads(self.line())
        return summary

    def end(self, number: int = signal.SIGTERM) -> tuple[str, str]:
        """End it by a signal, as it should: exit code 0. The rest of its output."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=10)
        assert self.process.returncode == 0, err
        assert "Traceback" not in (err or "")
        return out, err

    def kill(self) -> None:
        """End it as a crash would. More than once is harmless."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def daemon(*options: str, **how: Any) -> Iterator[Daemon]:
    """A switch that doesn't outlive the block."""
    process = Daemon(*options, **how)
    try:
        yield process
    finally:
        process.kill()


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """A switch that ends by itself."""
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=False)


def ports(*paths: Path, options: str = "") -> list[str]:
    """--port options: vm0, vm1, …"""
    names = enumerate(paths)
    return [f"--port=vm{number}=vhost-user:{path}{options}" for number, path in names]


def wait_for(*paths: Path, timeout_s: float = 10) -> None:
    """Until the files exist."""
    deadline = time.monotonic() + timeout_s
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, f"no {paths} in {timeout_s} s"
        time.sleep(0.002)


def wait_listening(path: Path, timeout_s: float = 10) -> None:
    """Until a connection is taken: for a socket file that a dead switch has left."""
    deadline = time.monotonic() + timeout_s
    while True:
        with socket.socket(socket.AF_UNIX) as sock:
            if sock.connect_ex(str(path)) == 0:
                return
        assert time.monotonic() < deadline, f"nobody listens on {path} in {timeout_s} s"
        time.sleep(0.01)
