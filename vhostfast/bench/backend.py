"""Back-ends under measurement: a command that is started, pinned and stopped here, or sockets.

A command is a text such as 'my-backend --sock {0} --sock {1}': {0} and {1} become the paths of the
sockets to serve, {worker} and {driver} the numbers of the two CPUs. A word with {socket} is there
once for each socket, and {n} in it is the socket's number: --port=p{n}:{socket}. The command runs
on the worker's CPU (threads that it pins itself go where it pins them), with a folder of its own
in RUNTIME_DIRECTORY and an open pipe as stdin; SIGTERM ends it, and what it has started.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from vhostfast.bench.ovs import VSWITCHD
from vhostfast.bench.workload import MODES, Plan
from vhostfast.errors import EnvironmentLacks, UsageError

TASKSET = "taskset"
START_S = 30.0  # from the command to its sockets
END_S = 5.0  # from SIGTERM on; then it is killed
SAID_LINES = 8  # of its last words that are repeated if it dies
GONE = (FileNotFoundError, ProcessLookupError)
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")  # however we end
OURS = "vhostfast"
RUNNING = "running"  # already, at --socket
NULL = "null"
OVS = "ovs"
OVS_SETTLE_S = 1.5  # it changes its ports twice, and drops what comes meanwhile
OVS_TOOLS = ("unshare", "ovsdb-tool", "ovsdb-server", "ovs-vsctl")
TESTPMD = "dpdk-testpmd"
TESTPMD_BUFFERS = 16384
TESTPMD_PORTS_MAX = 32  # RTE_MAX_ETHPORTS, as built by Debian


@dataclass(frozen=True, slots=True)
class Backend:
    """What stands in a row: `command` as above, or `sockets` of one that runs already.

    `checked`: what it delivers must be right, which can't be asked of `null`. `log`: its guests
    migrate, so it has to mark what it writes. `settle_s`: seconds from the start of the rings on
    in which it may still be busy with that.
    """

    name: str
    command: str = ""
    sockets: tuple[str, ...] = ()
    checked: bool = True
    log: bool = False
    settle_s: float = 0.0


def ours(plan: Plan) -> Backend:
    """`vhostfast switch`."""
    work = plan.workload
    forward = {"loop": "loopback", "send-only": "drop"}.get(work.pattern, work.forward)
    return Backend(
        OURS,
        f"{_python()} -m vhostfast switch --forward {forward} --mode {work.mode}"
        " --cpus {worker} --log-level warning --port=vm{n}=vhost-user:{socket}",
    )


def bare(_plan: Plan) -> Backend:
    """One copy and no check: the limit."""
    return _limit("bare", "copy")


def null(_plan: Plan) -> Backend:
    """Nothing at all: what the driver can do."""
    return _limit(NULL, "null", checked=False)


def _limit(name: str, kind: str, *, checked: bool = True) -> Backend:
    return Backend(name, f"{_python()} -m vhostfast.bench.bare {kind} {{socket}}", checked=checked)


def dpdk(plan: Plan) -> Backend:
    """DPDK's testpmd, net_vhost ports and io forwarding, two by two; a single port sends back to
    itself, with rxonly nowhere, or with txonly what it makes itself.

    Raises EnvironmentLacks if it isn't installed, UsageError for too many ports.
    """
    if shutil.which(TESTPMD) is None:
        raise EnvironmentLacks(
            f"{TESTPMD} isn't in PATH: install it (scripts/install-peers; Debian: dpdk-dev)"
        )
    work, queues = plan.workload, plan.workload.queues
    if work.guests > TESTPMD_PORTS_MAX:
        raise UsageError(f"dpdk: testpmd has {TESTPMD_PORTS_MAX} ports at most, not {work.guests}")
    forward = {"send-only": "rxonly", "receive-only": "txonly"}.get(work.pattern, "io")
    size = "" if work.sends else f" --txpkts={work.frames[0].sizes[0]}"
    memory = "--in-memory -m 64" if plan.hugepages else "--no-huge -m 192"
    return Backend(
        "dpdk",
        f"{TESTPMD} --lcores 0@{{driver}},1@{{worker}} --no-pci --no-telemetry --no-shconf"
        f" {memory} --vdev=net_vhost{{n}},iface={{socket}},queues={queues}"
        f" -- -i --auto-start --nb-cores=1 --rxq={queues} --txq={queues}"
        f" --total-num-mbufs={TESTPMD_BUFFERS} --forward-mode={forward}{size} --no-flush-rx"
        " --disable-link-check",
    )


def ovs(plan: Plan) -> Backend:
    """Open vSwitch with DPDK, a bridge that learns (`bench.ovs`).

    Raises EnvironmentLacks if it isn't installed, UsageError where learning is of no use.
    """
    programs = (*OVS_TOOLS, VSWITCHD)
    lacking = [name for name in programs if shutil.which(name) is None]
    if lacking:
        raise EnvironmentLacks(
            f"{' and '.join(lacking)}: not installed: scripts/install-peers does it (Debian:"
            " openvswitch-switch-dpdk)"
        )
    work = plan.workload
    if work.guests > 2 or work.pattern == "loop":
        raise UsageError(
            f"ovs learns addresses: it sends nothing back to where it came from, and to many guests"
            f" what they are not meant to have: not --ports {work.guests} or --pattern loop"
        )
    pages = "huge" if plan.hugepages else "plain"
    return Backend(
        "ovs",
        f"unshare --net {_python()} -m vhostfast.bench.ovs {{worker}} {{driver}} {pages}"
        f" {work.queues} {{socket}}",
        settle_s=OVS_SETTLE_S,
    )


def _python() -> str:
    return shlex.quote(sys.executable)


SWITCHES = (OVS, OURS)
PRESETS: dict[str, Callable[[Plan], Backend]] = {"dpdk": dpdk, OVS: ovs, OURS: ours}


def parse_backend(option: str, text: str, plan: Plan) -> Backend:
    """A preset's name, or a command. Raises UsageError, or EnvironmentLacks for no such program."""
    if text in SWITCHES and not plan.workload.sends:
        raise UsageError(
            f"{text} sends nothing by itself, which --pattern {plan.workload.pattern} measures:"
            " give --backend dpdk, or a command or --socket of one that does"
        )
    if text in PRESETS:
        return PRESETS[text](plan)
    names = [str(number) for number in range(plan.workload.guests)]
    missing = [f"{{{name}}}" for name in names if f"{{{name}}}" not in text]
    if missing and "{socket}" not in text:
        raise UsageError(
            f"{option} '{text}': there is no {' nor '.join(missing)}, which become the sockets'"
            f" paths, and no {{socket}}; or give {' or '.join(PRESETS)}"
        )
    words = fill(option, text, names, plan)
    if shutil.which(words[0]) is None:
        raise EnvironmentLacks(
            f"{option}: there is no program {words[0]}: install it or give its path"
        )
    return Backend(Path(words[0]).name, text)


def fill(option: str, text: str, sockets: Sequence[str], plan: Plan) -> list[str]:
    """The command's words, its places filled. Raises UsageError."""
    cpus: dict[str, str | int] = {"worker": plan.worker_cpu, "driver": plan.driver_cpu}
    words = []
    try:
        for word in shlex.split(text):
            if "{socket}" in word:
                each = [cpus | {"n": n, "socket": socket} for n, socket in enumerate(sockets)]
            else:
                each = [cpus]
            words += [word.format(*sockets, **places) for places in each]
    except (ValueError, LookupError) as error:
        raise UsageError(
            f"{option} '{text}': {error}: places are {{0}}, {{1}}, {{worker}} and {{driver}}, and"
            " {socket} with {n}; write {{ for a brace"
        ) from None
    return words


@dataclass(frozen=True, slots=True)
class Rows:
    """Who has a turn, in this order: `subject` and `versus` are names of two of them."""

    backends: tuple[Backend, ...]
    subject: str
    versus: str | None


def choose(
    plan: Plan,
    backend: str | None,
    sockets: Sequence[str],
    versus: str | None,
    *,
    limits: bool = True,
) -> Rows:
    """What the options --backend, --socket, --versus, --limits and --log ask for.

    The limits have no log to keep, and can do nothing with small buffers or memory in pieces; a
    copy is no limit where nothing has to be copied; and neither sends by itself. Raises UsageError
    or EnvironmentLacks.
    """
    guests = plan.workload.guests
    if sockets and backend is not None:
        raise UsageError("--backend and --socket: give one of them, it is what is measured")
    if sockets and len(sockets) != guests:
        raise UsageError(
            f"--socket: {len(sockets)} given, --pattern {plan.workload.pattern} needs {guests}"
        )
    if len(set(sockets)) < len(sockets):
        raise UsageError("--socket: one is given twice, and each guest needs its own")
    if sockets:
        subject = Backend(RUNNING, sockets=tuple(sockets))
    else:
        subject = parse_backend("--backend", OURS if backend is None else backend, plan)
    rows: list[Backend] = []
    work = plan.workload
    if limits and work.sends and not work.merges and work.regions == 1:
        rows = [null(plan)] if work.pattern == "send-only" else [null(plan), bare(plan)]
    against = None
    if versus is not None:
        against = parse_backend("--versus", versus, plan)
        if against.name == subject.name:
            against = replace(against, name=f"other {against.name}")
    if plan.workload.mode != MODES[0] and OURS not in (subject.name, against and against.name):
        raise UsageError(f"--mode {plan.workload.mode} is of our own switch, which has no row here")
    subject, against = _logged(plan.workload.log, subject, against)
    rows += [against, subject] if against else [subject]
    if plan.workload.pattern == "send-only":
        rows = [replace(row, checked=False) for row in rows]
    return Rows(tuple(rows), subject.name, against.name if against else None)


def _logged(log: str, subject: Backend, against: Backend | None) -> tuple[Backend, Backend | None]:
    """The same rows as --log wants them."""
    if log == "both" and against is not None:
        raise UsageError(
            "--log both holds a back-end against itself without a log: leave --versus away, or"
            " give --log on"
        )
    if log == "both":
        against = replace(subject, name="log off")
    elif log == "on" and against is not None:
        against = replace(against, log=True)
    return replace(subject, log=log != "off"), against


class Running:
    """A back-end whose sockets are there."""

    def __init__(self, backend: Backend, sockets: Sequence[str], output: Path | None) -> None:
        self.name = backend.name
        self.checked = backend.checked
        self.log = backend.log
        self.settle_s = backend.settle_s
        self.sockets = list(sockets)
        self.process: subprocess.Popen[bytes] | None = None
        self.start_s = 0.0  # from the command to its last socket
        self._output = output

    def require_alive(self) -> None:
        """Raises EnvironmentLacks, with its last words, if it has ended."""
        if self.process is not None and (code := self.process.poll()) is not None:
            how = f"exit code {code}" if code >= 0 else f"signal {-code}"
            raise EnvironmentLacks(f"{self.name} has ended, {how}{self.said()}")

    def starved_ns(self) -> int:
        """For how long its threads have been ready to run and were not let; 0 if not ours."""
        if self.process is None:
            return 0
        return sum(starved_ns(task) for task in tasks(self.process.pid))

    def said(self) -> str:
        """Its last words, to be put at the end of a sentence."""
        if self._output is None or not (text := self._output.read_text(errors="replace").strip()):
            return ""
        return "; it said:\n" + "\n".join(text.splitlines()[-SAID_LINES:])


def family(pid: int) -> Iterator[Path]:
    """A process, below /proc, and its children, and theirs, those that are not gone."""
    process = Path(f"/proc/{pid}")
    yield process
    with suppress(*GONE):
        for task in (process / "task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def tasks(pid: int) -> Iterator[Path]:
    """The threads of a process and of its family, those that are not gone."""
    for process in family(pid):
        with suppress(*GONE):
            yield from (process / "task").iterdir()


def starved_ns(thread: Path) -> int:
    """For how long a thread, below /proc, has been ready to run and was not let; 0 if it is gone.

    Linux, Documentation/scheduler/sched-stats.rst.
    """
    try:
        return int((thread / "schedstat").read_text().split()[1])
    except GONE:
        return 0


@contextmanager
def running(backend: Backend, plan: Plan) -> Iterator[Running]:
    """The back-end, started unless it runs already, and stopped with the block.

    Raises EnvironmentLacks if it ends, or makes no sockets.
    """
    if backend.sockets:
        yield Running(backend, backend.sockets, None)
        return
    with tempfile.TemporaryDirectory(prefix="vhostfast-bench-") as name:
        folder = Path(name)
        sockets = [str(folder / f"{number}.sock") for number in range(plan.workload.guests)]
        run = Running(backend, sockets, folder / "output")
        words = fill(backend.name, backend.command, sockets, plan)
        _require_tools((DIES_WITH_US[0], TASKSET))
        began = time.monotonic()
        with open(folder / "output", "wb") as output:
            run.process = subprocess.Popen(
                [*DIES_WITH_US, TASKSET, "-c", str(plan.worker_cpu), *words],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us, who then stop it
                env={**os.environ, "RUNTIME_DIRECTORY": str(folder)},
            )
        try:
            _wait_for_sockets(run)
            run.start_s = time.monotonic() - began
            yield run
        finally:
            _stop(run.process)


def _require_tools(words: Sequence[str]) -> None:
    for word in words:
        if shutil.which(word) is None:
            raise EnvironmentLacks(f"{word} isn't in PATH, to pin a back-end: install util-linux")


def _wait_for_sockets(run: Running) -> None:
    deadline = time.monotonic() + START_S
    while not all(Path(path).is_socket() for path in run.sockets):
        run.require_alive()
        if time.monotonic() > deadline:
            raise EnvironmentLacks(
                f"{run.name} has made no sockets at {', '.join(run.sockets)} in {START_S:.0f} s"
                f"{run.said()}"
            )
        time.sleep(0.002)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Whatever is in its process group: what was started may be a script that has started more."""
    deadline = time.monotonic() + END_S
    with suppress(ProcessLookupError):  # all have gone
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
