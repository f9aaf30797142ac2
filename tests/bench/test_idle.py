"""What nothing costs: counted of a process and its children, with its guests connected."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vhostfast.bench import idle
from vhostfast.bench.backend import family, ours
from vhostfast.bench.workload import Plan, Workload
from vhostfast.errors import EnvironmentLacks

CPUS = sorted(os.sched_getaffinity(0))
MIB = 1 << 20


def plan(**workload: object) -> Plan:
    work = Workload(**workload)  # type: ignore[arg-type]
    return Plan(work, 2, 0.1, worker_cpu=CPUS[0], driver_cpu=CPUS[-1])


def test_cpu_time_is_counted() -> None:
    before, began = idle._cpu_ns(os.getpid()), time.thread_time_ns()
    while time.thread_time_ns() < began + 50_000_000:
        pass
    assert idle._cpu_ns(os.getpid()) - before >= 45_000_000  # the kernel adds up now and then


def test_resident_memory_is_counted() -> None:
    before = idle._memory_kib(os.getpid(), "VmRSS")
    block = b"\1" * (64 * MIB)
    assert idle._memory_kib(os.getpid(), "VmRSS") - before >= 60 << 10
    del block


def test_children_are_counted() -> None:
    script = "import subprocess; subprocess.run(['sh', '-c', 'echo there; read x; exit'])"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        pids = list(family(process.pid))
        assert [Path(one, "comm").read_text().strip()[:2] for one in pids] == ["py", "sh"]
        process.stdin.close()


@pytest.mark.slow
def test_our_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "SETTLE_S", 0.0)
    told: list[str] = []
    of = plan(ports=6, queues=2, mode="interrupt")
    report = idle.run(of, [ours(of)], lambda what, _share: told.append(what))
    assert told == ["vhostfast, idle"] * 2
    for one in report.rounds["vhostfast"]:
        assert one.start_s > 0
        assert one.cpu >= 0
        assert one.resident_mib > one.shared_mib > 0
        assert one.fds > 6 * 2 * 4  # kick and call of each ring
    fds = report.figures("vhostfast", "fds")
    assert fds.low == fds.high


@pytest.mark.slow
def test_one_that_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "SETTLE_S", 60.0)
    faulty = Path(__file__).parent / "faulty.py"
    of = plan(pattern="loop")
    with pytest.raises(EnvironmentLacks, match=r"^gone has ended, signal 9"):
        idle.measure(idle.Backend("gone", f"{sys.executable} {faulty} gone {{0}}"), of)
