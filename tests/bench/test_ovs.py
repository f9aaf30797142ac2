"""What Open vSwitch is told, and what it is not asked for. tests/interop runs it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vhostfast.bench.backend import choose, fill
from vhostfast.bench.ovs import configuration, settings
from vhostfast.bench.workload import Plan, Workload
from vhostfast.errors import EnvironmentLacks, UsageError

CPUS = sorted(os.sched_getaffinity(0))


def plan(**workload: object) -> Plan:
    work = Workload(**workload)  # type: ignore[arg-type]
    return Plan(work, worker_cpu=CPUS[0], driver_cpu=CPUS[-1], hugepages=True)


def test_its_cpus_and_memory() -> None:
    told = settings(3, 0, "huge", 2)
    assert (told["pmd-cpu-mask"], told["dpdk-lcore-mask"]) == ("0x8", "0x1")
    assert told["dpdk-socket-mem"] == "224"
    assert "--no-huge" not in told["dpdk-extra"]
    told = settings(3, 0, "plain", 2)
    assert "--no-huge" in told["dpdk-extra"]
    assert "dpdk-socket-mem" not in told


def test_its_ports() -> None:
    words = configuration({"dpdk-extra": "-a -b"}, [Path("/d/0.sock"), Path("/d/1.sock")])
    text = " ".join(words)
    assert 'other_config:dpdk-extra="-a -b"' in words
    assert "add-br bench -- set bridge bench datapath_type=netdev" in text
    for name in ("0.sock", "1.sock"):
        port = f"add-port bench {name} -- set Interface {name} type=dpdkvhostuser"
        assert port in text


def test_as_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)
    of = plan(forward="learn", queues=2)
    rows = choose(of, None, [], "ovs", limits=False)
    assert (rows.subject, rows.versus) == ("vhostfast", "ovs")
    words = fill("ovs", rows.backends[0].command, ["/d/0", "/d/1"], of)
    assert words[:2] == ["unshare", "--net"]
    assert words[3:] == [
        "-m", "vhostfast.bench.ovs", f"{CPUS[0]}", f"{CPUS[-1]}", "huge", "2", "/d/0", "/d/1",
    ]  # fmt: skip
    for workload in ({"ports": 4}, {"pattern": "loop"}):
        with pytest.raises(UsageError, match="ovs learns addresses: "):
            choose(plan(**workload), None, [], "ovs")


def test_one_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        EnvironmentLacks, match=r"unshare and .*ovsdb-tool and .*: not installed: scripts/install-"
    ):
        choose(plan(), None, [], "ovs")


@pytest.mark.slow
def test_a_database_that_does_not_start(tmp_path: Path) -> None:
    """It is said at once, not after the sockets' time is over."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, code in (("ovsdb-tool", 0), ("ovsdb-server", 7)):
        (programs / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (programs / name).chmod(0o755)
    command = [sys.executable, "-m", "vhostfast.bench.ovs", "0", "0", "plain", "1"]
    done = subprocess.run(
        [*command, str(tmp_path / "0.sock")], capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "ovs: ovsdb-server has ended, exit code 7\n"
