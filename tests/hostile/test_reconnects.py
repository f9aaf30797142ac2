"""Front-ends that come, have a frame carried and leave, without end: the switch doesn't grow.

VHOSTFAST_RECONNECTS says how many times, 300 if it isn't set; `-s` shows what was measured.
"""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from daemon import daemon, ports, wait_listening
from host import Vm, frame

TIMES = int(os.environ.get("VHOSTFAST_RECONNECTS", "300"))
SETTLED = 50  # of them, after which nothing more may come
RSS_SLACK_KB = 1024  # of the allocator's


def size_of(pid: int) -> dict[str, int]:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":\t") for line in status if ":\t" in line)
    return {
        "fds": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(values["Threads"]),
        "maps of files": Path(f"/proc/{pid}/maps").read_text().count("/"),
        "anonymous kB": int(values["RssAnon"].split()[0]),
    }


@pytest.mark.hostile("process", "reconnects without end, rings started each time", "delivered")
def test_reconnects_leave_nothing_behind(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    options = ["--forward=patch", "--json", "--log-level=error"]  # nobody reads the pipe meanwhile
    with daemon(*ports(*paths), *options) as switch, ExitStack() as stack:
        wait_listening(paths[1])
        b = Vm(str(paths[1]), timeout_s=300.0)
        stack.callback(b.close)
        early: dict[str, int] = {}
        for number in range(SETTLED + TIMES):
            a = Vm(str(paths[0]), timeout_s=300.0, fill=False, ring_size=16)
            a.send([frame(number)])
            assert b.receive(1) == [frame(number)]
            if number == SETTLED:  # each time with a front-end connected
                early = size_of(switch.pid)
            late = size_of(switch.pid) if number == SETTLED + TIMES - 1 else {}
            a.close()
        counted = switch.summary()["ports"]
        switch.end()
    print(f"\nafter {SETTLED}: {early}\nafter {SETTLED + TIMES}: {late}")
    assert late.pop("anonymous kB") - early.pop("anonymous kB") < RSS_SLACK_KB
    assert late.pop("threads") <= early.pop("threads")
    assert late == early
    assert counted["vm0"]["connections"] == SETTLED + TIMES
    assert counted["vm1"]["connections"] <= 2  # the probe before the first
