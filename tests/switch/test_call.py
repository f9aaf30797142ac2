"""A machine that gives no asynchronous I/O, as in a strict container: the switch says what that
leaves open, and its guests are called all the same."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import forbid
from daemon import COMMAND, ports, wait_for

from vhostfast.driver import Frontend, GuestMemory
from vhostfast.driver.traffic import Load, Traffic, pair

SYS_IO_SETUP = {"x86_64": 206, "aarch64": 0}[os.uname().machine]
COUNT = 500


def test_without_asynchronous_io_it_says_so_and_works(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    options = [*ports(*paths), "--forward=patch", "--mode=interrupt"]
    forbidden = [sys.executable, forbid.__file__, str(SYS_IO_SETUP), str(errno.EPERM)]
    with subprocess.Popen(
        [*forbidden, *COMMAND, *options], stderr=subprocess.PIPE, text=True
    ) as switch:
        wait_for(*paths)
        with (
            GuestMemory(((0, 8 << 20),)) as first,
            GuestMemory(((0, 8 << 20),)) as second,
            Frontend(paths[0], first) as a,
            Frontend(paths[1], second) as b,
        ):
            a.start()
            b.start()
            traffic = Traffic(pair(a, b, packets=COUNT), Load(), idle="wait")
            traffic.run(expected=2 * COUNT)
        switch.send_signal(signal.SIGTERM)
        _, err = switch.communicate(timeout=10)
    assert traffic.counters().received == 2 * COUNT
    assert switch.returncode == 0
    assert "io_setup is forbidden" in err
