"""`vhostfast switch` from outside: a process, its sockets, signals, sentences and exit codes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "vhostfast", "switch"]
SOCKETS_S = 0.5  # what issue and README promise, on a machine at rest
END_S = 1.0
BUSY = 4  # how much longer a machine that runs other tests may take

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts switches; none outlives the test."""
    running: list[subprocess.Popen[str]] = []

    def start(*options: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        running.append(subprocess.Popen([*COMMAND, *options], stdout=pipe, stderr=pipe, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=False)


def wait_for(*paths: Path, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, f"no {paths} in {timeout_s} s"
        time.sleep(0.002)


def wait_ready(process: subprocess.Popen[str]) -> None:
    """Until the last step of its start is done: SIGUSR1 is answered by then."""
    process.send_signal(signal.SIGUSR1)
    assert process.stdout
    assert process.stdout.readline()


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[str, str]:
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return out, err


def ports(*paths: Path) -> list[str]:
    return [f"--port=vm{number}=vhost-user:{path}" for number, path in enumerate(paths)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_life(tmp_path: Path, start: Start, number: int) -> None:
    paths = [tmp_path / f"{index}.sock" for index in range(2)]
    began = time.monotonic()
    process = start(*ports(*paths), "--forward=patch")
    wait_for(*paths)
    assert time.monotonic() - began < SOCKETS_S * BUSY
    wait_ready(process)

    began = time.monotonic()
    out, err = end(process, number)
    assert time.monotonic() - began < END_S * BUSY
    assert os.listdir(tmp_path) == []
    assert out.splitlines()[-2:] == [
        f"vm{index}: received 0 packets (0 bytes), sent 0 packets (0 bytes)" for index in range(2)
    ]
    assert f"vm0: listening on {paths[0]}" in err


def test_signal_before_it_is_ready(tmp_path: Path, start: Start) -> None:
    """The sockets are there before the workers; a signal in between must not leave them behind."""
    process = start(*ports(tmp_path / "s"))
    wait_for(tmp_path / "s")
    end(process)
    assert os.listdir(tmp_path) == []


def test_json_summaries(tmp_path: Path, start: Start) -> None:
    process = start(*ports(tmp_path / "s"), "--json", "--mode=interrupt")
    wait_for(tmp_path / "s")
    process.send_signal(signal.SIGUSR1)
    assert process.stdout
    first = json.loads(process.stdout.readline())
    last = json.loads(end(process)[0])
    assert first == last
    assert last["ports"]["vm0"]["rx_packets"] == 0
    assert (last["busy_cycles"], last["packets"]) == (0, 0)


def test_config_file(tmp_path: Path, start: Start) -> None:
    file = tmp_path / "switch.toml"
    file.write_text(
        f'port = ["east=vhost-user:{tmp_path}/e", "west=vhost-user:{tmp_path}/w,queues=1"]\n'
        'forward = "patch"\nsocket-mode = "0660"\nlog-level = "warning"\n'
    )
    process = start("--config", str(file))
    wait_for(tmp_path / "e", tmp_path / "w")
    assert (tmp_path / "e").stat().st_mode & 0o777 == 0o660
    out, err = end(process)
    assert re.findall(r"^\w+", out, re.MULTILINE) == ["east", "west"]
    assert err == ""


def test_workers_stay_on_their_cpus(tmp_path: Path, start: Start) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    process = start(*ports(tmp_path / "s"), "--cpus", ",".join(map(str, cpus)))
    wait_for(tmp_path / "s")
    wait_ready(process)
    tasks = [int(task) for task in os.listdir(f"/proc/{process.pid}/task")]
    pinned = [os.sched_getaffinity(task) for task in tasks if task != process.pid]
    assert [{cpu} for cpu in cpus] == sorted((one for one in pinned if len(one) == 1), key=min)
    assert os.sched_getaffinity(process.pid) == set(cpus)
    end(process)


def test_second_switch_is_refused_and_a_killed_one_succeeded(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "s"
    first = start(*ports(path))
    wait_for(path)
    second = run(*ports(path))
    assert second.returncode == 3
    assert f"{path} belongs to another vhostfast process (pid {first.pid})" in second.stderr
    assert first.poll() is None
    first.kill()
    first.wait()
    assert path.exists()  # as SIGKILL leaves it
    third = start(*ports(path))
    wait_ready_socket(path)
    end(third)
    assert os.listdir(tmp_path) == []


def wait_ready_socket(path: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        with socket.socket(socket.AF_UNIX) as sock:
            if sock.connect_ex(str(path)) == 0:
                return
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_no_socket_is_left_if_one_cannot_be_made(tmp_path: Path) -> None:
    done = run(*ports(tmp_path / "a", tmp_path / "none" / "b"))
    assert done.returncode == 3
    assert os.listdir(tmp_path) == []


def test_front_end_that_talks_nonsense_costs_its_connection_only(
    tmp_path: Path, start: Start
) -> None:
    path = tmp_path / "s"
    process = start(*ports(path))
    wait_ready_socket(path)
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b"\xff" * 12)
            assert sock.recv(1) == b""
    out, _ = end(process)
    assert "messages_refused 3" in out


def test_client_connects_when_its_peer_comes(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "s"
    process = start(f"--port=vm0=vhost-user:{path},client")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        server.settimeout(10)
        for _ in range(2):
            server.accept()[0].close()
    end(process)
    assert os.listdir(tmp_path) == ["s"]  # the front-end's, not ours to remove


LONG = "/" + "x" * 107


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ([], 2, "no port: give at least one --port"),
        (["--port", "a"], 2, "port 'a' is not NAME=KIND:ARG"),
        (["--port", "a=tap:tap0"], 2, "port 'a': kind 'tap' is not built yet"),
        (["--port", f"a=vhost-user:{LONG}"], 2, "port 'a': the socket's path has 108 bytes"),
        (["--port", "a=vhost-user:/a", "--forward", "patch"], 2, "--forward patch joins ports"),
        (["--port", "a=vhost-user:/a", "--forward", "hub"], 2, "--forward is 'hub': choose"),
        (["--port", "a=vhost-user:/a", "--mode", "fast"], 2, "--mode is 'fast': choose"),
        (["--port", "a=vhost-user:/a", "--cpus", "x"], 2, "--cpus is 'x': give CPU numbers"),
        (["--port", "a=vhost-user:{tmp}/a", "--cpus", "4095"], 2, "--cpus: there is no CPU 4095"),
        (["--port", "a=vhost-user:/a", "--socket-mode", "9"], 2, "--socket-mode is '9': give"),
        (["--port", "a=vhost-user:/nowhere/a"], 3, "there is no folder /nowhere: create it"),
        (["--port", "a=vhost-user:/a", "--socket-group", "no such"], 3, "no such group"),
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
