"""`vhostfast switch` from outside: a process, its sockets, signals, sentences and exit codes."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import forbid
import pytest
from daemon import COMMAND, daemon, ports, run, wait_for, wait_listening

from vhostfast.core.witness import SYS_USERFAULTFD

USERFAULTFD = SYS_USERFAULTFD[os.uname().machine]
SOCKETS_S = 0.5  # what the README promises, on a machine at rest
END_S = 1.0
BUSY = 4  # how much longer a machine that runs other tests may take
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:,\d{3} INFO)? "
NOTHING = "received 0 packets (0 bytes), sent 0 packets (0 bytes)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_life(tmp_path: Path, number: int) -> None:
    paths = [tmp_path / f"{index}.sock" for index in range(2)]
    began = time.monotonic()
    with daemon(*ports(*paths), "--forward=patch") as switch:
        wait_for(*paths)
        assert time.monotonic() - began < SOCKETS_S * BUSY
        switch.wait_ready()
        assert re.fullmatch(STAMP + re.escape(f"vm1: {NOTHING}\n"), switch.line())

        began = time.monotonic()
        out, err = switch.end(number)
    assert time.monotonic() - began < END_S * BUSY
    assert os.listdir(tmp_path) == []
    assert re.sub(f"^{STAMP}", "", out, flags=re.M) == f"vm0: {NOTHING}\nvm1: {NOTHING}\n"
    assert re.match(STAMP, err)
    assert f"vm0: listening on {paths[0]}" in err


def test_signal_before_it_is_ready(tmp_path: Path) -> None:
    """The sockets are there before the workers; a signal in between must not leave them behind."""
    with daemon(*ports(tmp_path / "s")) as switch:
        wait_for(tmp_path / "s")
        switch.end()
    assert os.listdir(tmp_path) == []


def test_json_summaries(tmp_path: Path) -> None:
    began = time.time()
    with daemon(*ports(tmp_path / "s"), "--json", "--mode=interrupt") as switch:
        wait_for(tmp_path / "s")
        first = switch.summary()
        last = json.loads(switch.end()[0])
    assert began < first.pop("time") < last.pop("time") < time.time()
    assert first == last
    assert last["ports"]["vm0"]["rx_packets"] == 0
    assert (last["busy_cycles"], last["packets"]) == (0, 0)


def test_config_file(tmp_path: Path) -> None:
    file = tmp_path / "switch.toml"
    file.write_text(
        f'port = ["east=vhost-user:{tmp_path}/e", "west=vhost-user:{tmp_path}/w,queues=1"]\n'
        'forward = "patch"\nsocket-mode = "0660"\nlog-level = "warning"\n'
    )
    with daemon("--config", str(file)) as switch:
        wait_for(tmp_path / "e", tmp_path / "w")
        assert (tmp_path / "e").stat().st_mode & 0o777 == 0o660
        out, err = switch.end()
    assert re.findall(rf"^{STAMP}(\w+): ", out, re.MULTILINE) == ["east", "west"]
    assert err == ""


def test_workers_stay_on_their_cpus(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    with daemon(*ports(tmp_path / "s"), "--cpus", ",".join(map(str, cpus))) as switch:
        wait_for(tmp_path / "s")
        switch.wait_ready()
        tasks = {int(task) for task in os.listdir(f"/proc/{switch.pid}/task")}
        pinned = [os.sched_getaffinity(task) for task in sorted(tasks - {switch.pid})]
        assert os.sched_getaffinity(switch.pid) == set(cpus)
        switch.end()
    assert [{cpu} for cpu in cpus] == [where for where in pinned if len(where) == 1]


def test_second_switch_is_refused_and_a_killed_one_succeeded(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with daemon(*ports(path)) as first:
        wait_for(path)
        second = run(*ports(path))
        assert second.returncode == 3
        assert f"{path} belongs to another vhostfast process (pid {first.pid})" in second.stderr
        assert first.process.poll() is None
    assert path.exists()  # as SIGKILL leaves it
    with daemon(*ports(path)) as third:
        wait_listening(path)
        third.end()
    assert os.listdir(tmp_path) == []


def test_no_socket_is_left_if_one_cannot_be_made(tmp_path: Path) -> None:
    done = run(*ports(tmp_path / "a", tmp_path / "none" / "b"))
    assert done.returncode == 3
    assert os.listdir(tmp_path) == []


def test_front_end_that_talks_nonsense_costs_its_connection_only(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with daemon(*ports(path)) as switch:
        wait_listening(path)
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                sock.sendall(b"\xff" * 12)
                assert sock.recv(1) == b""
        out, _ = switch.end()
    assert "messages_refused 3" in out


def test_client_connects_when_its_peer_comes(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with (
        daemon(*ports(path, options=",client")) as switch,
        socket.socket(socket.AF_UNIX) as server,
    ):
        server.bind(str(path))
        server.listen()
        server.settimeout(10)
        for _ in range(2):
            server.accept()[0].close()
        switch.end()
    assert os.listdir(tmp_path) == ["s"]  # the front-end's, not ours to remove


LONG = "/" + "x" * 107


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ([], 2, "no port: give at least one --port"),
        (["--port", "a"], 2, "port 'a' is not NAME=KIND:ARG"),
        (["--port", "a=tap:tap0"], 2, "port 'a': kind 'tap' is not built yet"),
        pytest.param(
            ["--port", f"a=vhost-user:{LONG}"],
            2,
            "port 'a': the socket's path has 108 bytes",
            marks=pytest.mark.hostile("process", "a socket's path of 108 bytes", "exits"),
        ),
        (["--port", "a=vhost-user:/a", "--forward", "patch"], 2, "--forward patch joins ports"),
        (["--port", "a=vhost-user:/a", "--forward", "hub"], 2, "--forward is 'hub': choose"),
        (["--port", "a=vhost-user:/a", "--mode", "fast"], 2, "--mode is 'fast': choose"),
        (["--port", "a=vhost-user:/a", "--cpus", "x"], 2, "--cpus is 'x': give CPU numbers"),
        (["--port", "a=vhost-user:{tmp}/a", "--cpus", "4095"], 2, "--cpus: there is no CPU 4095"),
        (["--port", "a=vhost-user:/a", "--socket-mode", "9"], 2, "--socket-mode is '9': give"),
        (["--port", "a=vhost-user:/nowhere/a"], 3, "there is no folder /nowhere: create it"),
        (["--port", "a=vhost-user:/a", "--socket-group", "no such"], 3, "no such group"),
        (["--port", "a=vhost-user:/a", "--allow-uid", "no such"], 3, "there is no such user"),
        (["--config", "/nowhere.toml"], 3, "--config /nowhere.toml: No such file"),
    ],
)
def test_mistakes_are_sentences(options: list[str], code: int, says: str, tmp_path: Path) -> None:
    done = run(*(option.format(tmp=tmp_path) for option in options))
    assert done.returncode == code
    assert done.stdout == ""
    assert says in done.stderr
    assert done.stderr.startswith("vhostfast: ")
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--forwrd", "patch"], "No such option: --forwrd"),
        (["extra"], "Got unexpected extra argument"),
        (["--port"], "Option '--port' requires an argument"),
    ],
)
def test_options_that_do_not_exist(options: list[str], says: str) -> None:
    done = run(*options)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert says in done.stderr


def test_a_witness_needs_the_kernel_s_record(tmp_path: Path) -> None:
    """Said at the start, not amid a migration."""
    refusing = [sys.executable, forbid.__file__, str(USERFAULTFD), str(errno.ENOSYS)]
    switch = [*COMMAND, *ports(tmp_path / "s"), "--witness"]
    ended = subprocess.run([*refusing, *switch], capture_output=True, text=True, check=False)
    assert ended.returncode == 3
    assert re.search(r"^vhostfast: Linux .* keeps no record of written pages", ended.stderr, re.M)
    assert os.listdir(tmp_path) == []
    with daemon(*switch[len(COMMAND) :], "--json") as running:
        wait_for(tmp_path / "s")
        assert running.summary()["ports"]["vm0"]["log_pages_missed"] == 0
