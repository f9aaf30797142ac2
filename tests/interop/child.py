"""A process of a test: its whole output kept, waited for by pattern, shown if the test fails."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

# In front of a command: it is killed with the test process, however that ends.
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")


class Child:
    """A process whose output (both streams, in order) is `output`, growing as it writes.

    `close` prints all of it: pytest shows that of a failed test, and only then. Ended by its own
    pid alone; a reader thread keeps its pipe from filling.
    """

    def __init__(
        self, name: str, argv: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.output = ""
        self._grown = threading.Condition()
        self._at_end = False
        self._reported = False
        self.process = subprocess.Popen(
            self.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        self._reader = threading.Thread(target=self._read, name=f"{name}-output", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        while data := os.read(descriptor, 65536):
            with self._grown:
                self.output += data.decode(errors="replace").replace("\r", "")
                self._grown.notify_all()
        with self._grown:
            self._at_end = True
            self._grown.notify_all()

    def wait_for(self, pattern: str, start: int = 0, timeout_s: float = 20) -> re.Match[str]:
        """The first match of `pattern` in the output from `start` on; AssertionError without."""
        expression = re.compile(pattern, re.MULTILINE)
        deadline = time.monotonic() + timeout_s
        with self._grown:
            while (match := expression.search(self.output, start)) is None:
                left = deadline - time.monotonic()
                if self._at_end or left <= 0:
                    why = "ended" if self._at_end else f"ran for {timeout_s} s"
                    raise AssertionError(f"{self.name} {why} without {pattern!r}:\n{self.tail()}")
                self._grown.wait(left)
        return match

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.output.splitlines()[-lines:])

    def write(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def kill(self) -> None:
        """End it as a crash would, by SIGKILL."""
        self.process.kill()
        self._finish(timeout_s=10)

    def close(self, timeout_s: float = 10) -> int:
        """Ask it to end, kill it if it doesn't in time; its exit status."""
        if self.process.poll() is None:
            self._ask_to_end()
        return self._finish(timeout_s)

    def _ask_to_end(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def _finish(self, timeout_s: float) -> int:
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if not self._reported:
            self._reported = True
            self._reader.join()
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.close()
            self.process.stdout.close()
            print(f"--- {self.name}, exit {self.process.returncode}: {' '.join(self.argv)}")
            print(self.output)
        return self.process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
