"""Back-ends as options name them, and their processes."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from vhostfast.bench import backend
from vhostfast.bench.backend import Backend, choose, fill, running
from vhostfast.bench.workload import Plan, Workload, parse_frames
from vhostfast.errors import EnvironmentLacks, UsageError

CPUS = sorted(os.sched_getaffinity(0))
PLAN = Plan(worker_cpu=CPUS[0], driver_cpu=CPUS[-1])
LOOP = Plan(Workload(pattern="loop"), worker_cpu=CPUS[0], driver_cpu=CPUS[-1])
# Makes its sockets, notes what it was given, and waits to be ended.
WAITS = """
import os, signal, socket, sys
print(os.sched_getaffinity(0), os.environ["RUNTIME_DIRECTORY"], flush=True)
open("{note}", "w").write(str(os.getpid()))
for path in sys.argv[1:]:
    socket.socket(socket.AF_UNIX).bind(path)
signal.pause()
"""


def python(text: str, *arguments: str) -> str:
    """A command that runs a program's text."""
    code = text.replace("{", "{{").replace("}", "}}").replace('"', '\\"')
    return f'{sys.executable} -c "{code}" ' + " ".join(arguments)


# --- Options --------------------------------------------------------------------------------------


def test_by_default_our_own_switch_between_its_limits() -> None:
    rows = choose(PLAN, None, [], None)
    assert [one.name for one in rows.backends] == ["null", "bare", "vhostfast"]
    assert (rows.subject, rows.versus) == ("vhostfast", None)
    assert "--forward patch --mode poll" in rows.backends[-1].command
    assert "--forward loopback" in choose(LOOP, None, [], None).backends[-1].command


def test_a_command_against_another_of_the_same_name() -> None:
    rows = choose(PLAN, "sleep {0} {1}", [], "/bin/sleep {1} {0}", limits=False)
    assert [one.name for one in rows.backends] == ["other sleep", "sleep"]
    assert (rows.subject, rows.versus) == ("sleep", "other sleep")


@pytest.mark.parametrize("preset", ["vhostfast", "ovs"])
def test_switches_send_nothing_by_themselves(preset: str) -> None:
    of = Plan(Workload(pattern="receive-only"), worker_cpu=CPUS[0], driver_cpu=CPUS[-1])
    with pytest.raises(UsageError, match=f"{preset} sends nothing by itself, .*--backend dpdk"):
        choose(of, preset, [], None)
    with pytest.raises(UsageError, match=f"{preset} sends nothing by itself"):
        choose(of, "sleep {0}", [], preset)
    rows = choose(of, "sleep {0}", [], None).backends
    assert [(one.name, one.checked) for one in rows] == [("sleep", True)]


def test_limits_that_are_none() -> None:
    """A copy where nothing is copied; and two that know of one buffer a frame, and one region."""
    of = Plan(Workload(pattern="send-only"), worker_cpu=CPUS[0], driver_cpu=CPUS[-1])
    rows = choose(of, None, [], None).backends
    assert [(one.name, one.checked) for one in rows] == [("null", False), ("vhostfast", False)]
    assert "--forward drop" in rows[-1].command
    for work in (Workload(parse_frames("64,1500"), buffer_size=512), Workload(regions=2)):
        of = Plan(work, worker_cpu=CPUS[0], driver_cpu=CPUS[-1])
        assert [one.name for one in choose(of, None, [], None).backends] == ["vhostfast"]


def test_dpdk_has_so_many_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)
    of = Plan(Workload(ports=34), worker_cpu=CPUS[0], driver_cpu=CPUS[-1])
    with pytest.raises(UsageError, match="dpdk: testpmd has 32 ports at most, not 34"):
        choose(of, None, [], "dpdk")


def logged(log: str) -> Plan:
    return Plan(Workload(log=log), worker_cpu=CPUS[0], driver_cpu=CPUS[-1])


def test_a_log_is_for_all_but_the_limits() -> None:
    rows = choose(logged("on"), None, [], "sleep {0} {1}").backends
    assert {one.name: one.log for one in rows} == {
        "null": False, "bare": False, "sleep": True, "vhostfast": True,
    }  # fmt: skip


def test_with_and_without_a_log() -> None:
    rows = choose(logged("both"), None, [], None, limits=False)
    off, on = rows.backends
    assert (rows.subject, rows.versus) == (on.name, off.name) == ("vhostfast", "log off")
    assert (on.command, on.log, off.log) == (off.command, True, False)
    with pytest.raises(UsageError, match="--log both holds a back-end against itself"):
        choose(logged("both"), None, [], "sleep {0} {1}")


def test_sockets_that_are_served_already() -> None:
    rows = choose(PLAN, None, ["/a", "/b"], "vhostfast", limits=False)
    assert rows.backends[-1].sockets == ("/a", "/b")
    assert (rows.subject, rows.versus) == ("running", "vhostfast")


@pytest.mark.parametrize(
    ("command", "sockets", "versus", "says"),
    [
        ("sleep {0} {1}", ["/a", "/b"], None, "--backend and --socket: give one"),
        ("", [], None, r"--backend '': there is no \{0\} nor \{1\}"),
        (None, ["/a"], None, "--socket: 1 given, --pattern both-ways needs 2"),
        ("sleep {0}", [], None, r"--backend 'sleep \{0\}': there is no \{1\}"),
        ("sleep", [], None, r"there is no \{0\} nor \{1\}"),
        ("sleep {0} {1} {2}", [], None, r"places are \{0\}, \{1\}, \{worker\}"),
        ("sleep {0} {1} {", [], None, "write {{ for a brace"),
        ("sleep '{0} {1}", [], None, "No closing quotation"),
        (
            None,
            [],
            "dpkd",
            "--versus 'dpkd': there is no .*, and no .socket.; or give dpdk or ovs or vhostfast",
        ),
    ],
)
def test_wrong_usage(
    command: str | None, sockets: list[str], versus: str | None, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        choose(PLAN, command, sockets, versus)


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(EnvironmentLacks, match="--backend: there is no program /no/such"):
        choose(PLAN, "/no/such {0} {1}", [], None)


def test_dpdk_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EnvironmentLacks, match="dpdk-testpmd isn't in PATH"):
        choose(PLAN, None, [], "dpdk")


def test_a_mode_is_for_our_switch() -> None:
    of = Plan(Workload(mode="adaptive"), worker_cpu=CPUS[0], driver_cpu=CPUS[-1])
    assert "--mode adaptive" in choose(of, "sleep {0} {1}", [], "vhostfast").backends[2].command
    with pytest.raises(UsageError, match="--mode adaptive is of our own switch"):
        choose(of, "sleep {0} {1}", [], None)


def test_places_are_filled_within_words() -> None:
    words = fill("x", "a --s=iface={0},x '{1} b' {worker}@{driver} {{}}", ["/0", "/1"], PLAN)
    assert words == ["a", "--s=iface=/0,x", "/1 b", f"{CPUS[0]}@{CPUS[-1]}", "{}"]
    words = fill("x", "a --v={n}:{socket}@{driver} {1} '{socket} '", ["/0", "/1"], PLAN)
    last = CPUS[-1]
    assert words == ["a", f"--v=0:/0@{last}", f"--v=1:/1@{last}", "/1", "/0 ", "/1 "]
    with pytest.raises(UsageError, match=r"'n'.*\{socket\} with \{n\}"):
        fill("x", "{socket} {n}", ["/0", "/1"], PLAN)


# --- Processes ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_is_pinned_and_stopped(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    command = python(WAITS.replace("{note}", str(note)), "{0}", "{1}")
    with running(Backend("waits", command), PLAN) as run:
        folder = Path(run.sockets[0]).parent
        assert all(Path(path).is_socket() for path in run.sockets)
        assert run.said() == f"; it said:\n{{{CPUS[0]}}} {folder}"
        assert run.starved_ns() >= 0
        run.require_alive()
        pid = int(note.read_text())
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()
    assert not folder.exists()


@pytest.mark.slow
def test_what_a_script_has_started_is_stopped_with_it(tmp_path: Path) -> None:
    note, program, script = (tmp_path / name for name in ("pid", "program", "script"))
    program.write_text(WAITS.replace("{note}", str(note)))
    script.write_text(f"#!/bin/sh\n{sys.executable} {program} $1\nexit\n")
    script.chmod(0o755)
    with running(Backend("script", f"{script} {{0}}"), LOOP) as run:
        pid = int(note.read_text())
        assert run.process is not None
        assert pid != run.process.pid
        assert Path(f"/proc/{pid}/task/{pid}") in list(backend.tasks(run.process.pid))
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_one_that_ends_at_once_is_quoted() -> None:
    command = python("import sys; print('no', 'luck'); sys.exit(7)", "{0}", "{1}")
    with (
        pytest.raises(EnvironmentLacks, match=r"^ends has ended, exit code 7; it said:\nno luck$"),
        running(Backend("ends", command), PLAN),
    ):
        pass


def test_tools_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with (
        pytest.raises(EnvironmentLacks, match=r"setpriv isn't in PATH.* install util-linux"),
        running(Backend("x", "x"), PLAN),
    ):
        pass


@pytest.mark.slow
def test_one_that_makes_no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "START_S", 0.3)
    with (
        pytest.raises(EnvironmentLacks, match=r"idles has made no sockets at /.*1\.sock in 0 s"),
        running(Backend("idles", "tail -f /dev/null"), PLAN),
    ):
        pass


@pytest.mark.slow
def test_one_that_will_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "END_S", 0.2)
    note = tmp_path / "pid"
    stubborn = WAITS.replace("{note}", str(note)).replace(
        "signal.pause()", "signal.signal(15, signal.SIG_IGN)\nwhile True: signal.pause()"
    )
    with running(Backend("stays", python(stubborn, "{0}")), LOOP):
        pid = int(note.read_text())
    assert not Path(f"/proc/{pid}").exists()


def test_one_that_runs_already_is_left_alone() -> None:
    with running(Backend("running", sockets=("/a", "/b")), PLAN) as run:
        run.require_alive()
        assert (run.sockets, run.said(), run.starved_ns()) == (["/a", "/b"], "", 0)
