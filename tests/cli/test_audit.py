"""`vhostfast audit-migration` from outside: table, JSON, exit codes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dpdk_backends import Switch

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "vhostfast", "audit-migration"]


@pytest.fixture(scope="module")
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("switch")
    paths = [folder / "a", folder / "b"]
    with Switch(folder, paths, adaptive=True) as switch:
        switch.ready()
        yield [f"--socket={path}" for path in paths]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(
        [*COMMAND, *options], capture_output=True, text=True, check=False, env=environment
    )


def test_clean_for_people(sockets: list[str]) -> None:
    done = run(*sockets, "--seconds=0.1", "--shape=direct", "--shape=log at an offset")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clean: 2 shapes, no page missed" in done.stdout
    for heading in ("shape", "sent", "received", "rounds", "marks", "missed"):
        assert heading in done.stdout
    assert done.stderr.splitlines() == ["direct …", "log at an offset …"]


def test_clean_as_json(sockets: list[str]) -> None:
    done = run(*sockets, "--seconds=0.1", "--shape=direct", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["good"], report["sabotage"]) == (True, 0)
    assert report["rows"][0]["shape"] == "direct"
    assert report["rows"][0]["faults"] == []


def test_sabotage_is_found_and_its_pages_named(sockets: list[str]) -> None:
    done = run(*sockets, "--seconds=0.1", "--shape=direct", "--sabotage")
    assert done.returncode == 1
    assert "direct: missed: page 0x" in done.stdout
    assert "receive buffer of vring 0, number" in done.stdout
    assert "(marks were dropped on purpose)" in done.stdout
    done = run(*sockets, "--seconds=0.1", "--shape=direct", "--sabotage", "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert not report["good"]
    assert {fault["kind"] for fault in report["rows"][0]["faults"]} == {"missed"}


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ([], 2, "--socket"),
        (["--socket=a", "--socket=b", "--socket=c"], 2, "3 sockets"),
        (["--socket=a", "--shape=round"], 2, "shape=round: give one of 'direct', "),
        (["--socket=a", "--seconds=0"], 2, "0.1"),
    ],
)
def test_wrong_usage(options: list[str], code: int, says: str) -> None:
    done = run(*options)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr


def test_nobody_serves_the_socket(tmp_path: Path) -> None:
    done = run(f"--socket={tmp_path / 's'}")
    assert (done.returncode, done.stdout) == (3, "")
    assert str(tmp_path / "s") in done.stderr
    assert len(done.stderr.splitlines()) == 1
