"""The switch against DPDK's testpmd: the same front-end on both in turn, VM to VM.

    python bench/versus_dpdk.py [--front-end driver] [--rounds 5] [--json]

One worker on CPU 0, everything else on CPU 1, memory in 2 MiB hugepages. Each measurement has
fresh processes, and its warm-up isn't counted. A round is DPDK, we, DPDK: where the two DPDK
figures are far apart the machine changed in between (a host moves virtual CPUs about, and the
price of a cache line between them with it), and the round is done over. The ratio is the median of
the rounds' own ratios.

Front-ends: "driver" is ours, and writes, describes, posts and checks every packet ("-touch" and
"-lean" do less, so that they cost less beside the back-end); "virtio-user" is DPDK's, whose packets
go round and are only counted.

Exit codes: 0 measured; 1 what arrived was wrong; 2 wrong usage; 3 hugepages, CPUs or testpmd lack.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "interop"))

from dpdk_backends import Switch
from testpmd import PROGRAM, Cycles, Testpmd

from vhostfast.driver import Frontend, GuestMemory, Load, Traffic, pair
from vhostfast.errors import EnvironmentLacks, VhostfastError

WORKER_CPU, OTHER_CPU = 0, 1
MEMORY_MIB = 256  # of each testpmd
GUEST_MIB = 8  # of each of our own
EDGES_S = 5  # longer than it takes to ask a back-end for its counters
FAULTS = ("corrupt", "foreign", "reordered", "repeated")
HUGEPAGES_MIN = 2 * MEMORY_MIB // 2 + 32  # of 2 MiB: a back-end, a front-end, some spare
OPTIONS = ("--forward-mode=io", "--disable-link-check")  # of every testpmd
APART_MAX = 1.15  # two DPDK figures of one round, the larger by the smaller
ATTEMPTS_MAX = 3  # of one round


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: millions of packets a second, and TSC cycles of the worker for each.

    `idle` is the share of its time that the front-end waited for the back-end, `lost` that of the
    packets which never came; None where that isn't known. With `idle` near 0 the figure is the
    front-end's rather than the back-end's.
    """

    mpps: float
    cycles: float | None = None
    idle: float | None = None
    lost: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One frame size: medians, spread (highest less lowest, by the median), median ratio.

    `restless` counts the rounds in which, however often tried, the machine changed.
    """

    size: int
    dpdk: Sample
    ours: Sample
    dpdk_spread: float
    ours_spread: float
    ratio: float
    restless: int


# --- Back-ends: a worker on WORKER_CPU, two ports joined ------------------------------------------


class Ours(Switch):
    """`vhostfast switch --forward patch --mode poll`."""

    def __init__(self, folder: Path, sockets: Sequence[Path]) -> None:
        super().__init__(folder, sockets, options=["--json"])
        self._before = Cycles(0, 0)

    def mark(self) -> None:
        """Cycles count from here on."""
        self._clear_worker_cpu()
        self._before = self._now()

    def cycles(self) -> Cycles | None:
        """The worker's cycles and packets since `mark`."""
        now = self._now()
        return Cycles(now.total - self._before.total, now.packets - self._before.packets)

    def _clear_worker_cpu(self) -> None:
        """Only the worker stays on its CPU: it has pinned itself, all other threads are free."""
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            if os.sched_getaffinity(int(task.name)) != {WORKER_CPU}:
                os.sched_setaffinity(int(task.name), {OTHER_CPU})

    def _now(self) -> Cycles:
        start = len(self.output)
        self.process.send_signal(signal.SIGUSR1)
        summary = json.loads(self.wait_for(r"^\{.*\}$", start)[0])
        return Cycles(summary["busy_cycles"], summary["packets"])


class Dpdk(Testpmd):
    """testpmd with two net_vhost ports and --forward-mode=io."""

    def __init__(self, folder: Path, sockets: Sequence[Path]) -> None:
        super().__init__(
            "dpdk",
            folder,
            [f"net_vhost{index},iface={socket},queues=1" for index, socket in enumerate(sockets)],
            options=[*OPTIONS, "--record-core-cycles", "--no-flush-rx"],
            cpus=(OTHER_CPU, WORKER_CPU),
            hugepages=True,
            memory_mib=MEMORY_MIB,
        )

    def ready(self, timeout_s: float = 40) -> None:
        super().ready(timeout_s)
        self.start()

    def mark(self) -> None:
        """Cycles count from here on."""
        self.stop()
        self.start()

    def cycles(self) -> Cycles | None:
        """The worker's cycles and packets since `mark`; it forwards no longer."""
        return self.stop()


# --- Front-ends: two guests' cards on OTHER_CPU ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """One measurement: frames of `size` bytes, the back-end's sockets, seconds of each part."""

    folder: Path
    sockets: Sequence[Path]
    size: int
    warm_s: float
    seconds: float


FrontEnd = Callable[[Plan, Callable[[], None]], Sample]
"""Runs a plan and returns what arrived. It calls its second argument when the warm-up is over and
again when the time is."""


def driver(plan: Plan, edge: Callable[[], None], kind: str = "full") -> Sample:
    """Our own guests, both on one thread, sending each other all that their rings take.

    Raises VhostfastError for a byte that is wrong or a frame out of order.
    """
    with ExitStack() as stack:
        guests = []
        for socket in plan.sockets:
            memory = stack.enter_context(GuestMemory(((0, GUEST_MIB << 20),), hugepages=True))
            guests.append(stack.enter_context(Frontend(socket, memory)))
        for guest in guests:
            guest.start()
        # Every byte of one packet in 64 is looked at; sequence and size of each.
        load = Load(kind=kind, sizes=(plan.size,), verify_every=64)
        traffic = Traffic(pair(*guests), load, idle="spin")
        rate = observe(traffic, plan, edge)
        for guest in guests:
            guest.stop()
        traffic.finish()
    total = traffic.counters()
    wrong = {name: getattr(total, name) for name in FAULTS if getattr(total, name)}
    if wrong:
        raise VhostfastError(f"at {plan.size} B what arrived was wrong: {wrong}")
    return Sample(rate / 1e6, idle=traffic.idle_share(), lost=total.lost(total.sent) / total.sent)


def observe(traffic: Traffic, plan: Plan, edge: Callable[[], None]) -> float:
    """Run traffic on a thread of its own on OTHER_CPU; packets a second that arrived."""
    whole = plan.warm_s + plan.seconds + EDGES_S

    def run() -> None:
        os.sched_setaffinity(0, {OTHER_CPU})  # of this thread alone
        traffic.run(whole)

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run)
        time.sleep(plan.warm_s)
        edge()
        before, start = traffic.counters().received, time.monotonic()
        time.sleep(plan.seconds)
        after, end = traffic.counters().received, time.monotonic()
        edge()
        traffic.stop_sending()
        running.result()
    return (after - before) / (end - start)


def virtio_user(plan: Plan, edge: Callable[[], None]) -> Sample:
    """DPDK's virtio-user: 256 packets from each of two cards go round for ever. Only counted."""
    vdevs = [f"net_virtio_user{i},path={s},queue_size=256" for i, s in enumerate(plan.sockets)]
    with Testpmd(
        "virtio-user",
        plan.folder,
        vdevs,
        options=OPTIONS,
        cpus=(OTHER_CPU, OTHER_CPU),
        hugepages=True,
        memory_mib=MEMORY_MIB,
    ) as cards:
        cards.ready()
        cards.command(f"set txpkts {plan.size}")
        cards.command("start tx_first 8")
        time.sleep(plan.warm_s)
        edge()
        before, start = cards.stats(), time.monotonic()
        time.sleep(plan.seconds)
        after, end = cards.stats(), time.monotonic()
        edge()
    arrived = sum(after[port].rx_packets - before[port].rx_packets for port in after)
    return Sample(arrived / (end - start) / 1e6)


FRONT_ENDS: dict[str, FrontEnd] = {
    "driver": driver,
    "driver-touch": partial(driver, kind="touch"),
    "driver-lean": partial(driver, kind="lean"),
    "virtio-user": virtio_user,
}

# --- Measuring ------------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what processes said to ourselves, unless something goes wrong."""
    with redirect_stdout(io.StringIO()) as said:
        try:
            yield
        except BaseException:
            print(said.getvalue(), file=sys.stderr)
            raise


def measure(back_end: type[Ours | Dpdk], options: argparse.Namespace, size: int) -> Sample:
    """One measurement, with processes of its own."""
    spent: list[Cycles | None] = []
    with ExitStack() as stack:
        stack.enter_context(quiet())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="versus-")))
        plan = Plan(
            folder, [folder / "0.sock", folder / "1.sock"], size, options.warm_up, options.seconds
        )
        worker = stack.enter_context(back_end(plan.folder, plan.sockets))
        worker.ready()

        def edge() -> None:
            spent.append(worker.cycles() if spent else worker.mark())

        sample = FRONT_ENDS[options.front_end](plan, edge)
    if sample.mpps == 0:
        raise VhostfastError(f"{worker.name} forwarded nothing at {size} B")
    cycles = spent[-1]
    each = cycles.total / cycles.packets if cycles and cycles.packets else None
    return replace(sample, cycles=each)


def measure_round(options: argparse.Namespace, size: int) -> tuple[Sample, Sample, bool]:
    """DPDK (the middle of before and after us), ours, and whether the machine held still."""
    for _ in range(ATTEMPTS_MAX):
        before, ours, after = (measure(one, options, size) for one in (Dpdk, Ours, Dpdk))
        low, high = sorted((before.mpps, after.mpps))
        still = high <= APART_MAX * low
        if still:
            break
    return middle([before, after]), ours, still


def middle(samples: Sequence[Sample]) -> Sample:
    """The medians of all that samples have."""

    def known(values: Sequence[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        return statistics.median(numbers) if numbers else None

    return Sample(
        statistics.median(sample.mpps for sample in samples),
        known([sample.cycles for sample in samples]),
        known([sample.idle for sample in samples]),
        known([sample.lost for sample in samples]),
    )


def spread(samples: Sequence[Sample]) -> float:
    rates = [sample.mpps for sample in samples]
    return (max(rates) - min(rates)) / statistics.median(rates)


def compare(options: argparse.Namespace, size: int) -> Row:
    dpdk, ours, still = zip(
        *(measure_round(options, size) for _ in range(options.rounds)), strict=True
    )
    ratio = statistics.median(o.mpps / d.mpps for o, d in zip(ours, dpdk, strict=True))
    return Row(
        size, middle(dpdk), middle(ours), spread(dpdk), spread(ours), ratio, still.count(False)
    )


# --- What must be there ---------------------------------------------------------------------------


def require_environment() -> None:
    """Raises EnvironmentLacks, with the sentence that helps."""
    if shutil.which(PROGRAM) is None:
        raise EnvironmentLacks(f"{PROGRAM} isn't in PATH: run scripts/install-peers")
    cpus = os.sched_getaffinity(0)
    if not {WORKER_CPU, OTHER_CPU} <= cpus:
        raise EnvironmentLacks(
            f"CPUs {WORKER_CPU} and {OTHER_CPU} are needed, this process may use {sorted(cpus)}"
        )
    memory = Path("/proc/meminfo").read_text()
    counts = {name: int(n) for name, n in re.findall(r"(Huge\w+): +(\d+)", memory)}
    free = counts.get("HugePages_Free", 0)
    if counts.get("Hugepagesize") != 2048 or free < HUGEPAGES_MIN:
        raise EnvironmentLacks(
            f"{free} hugepages are free, {HUGEPAGES_MIN} of 2 MiB are needed: as root, "
            "echo 512 > /proc/sys/vm/nr_hugepages (and 0 when done)"
        )


# --- Words ----------------------------------------------------------------------------------------


def table(rows: Sequence[Row], options: argparse.Namespace) -> str:
    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lines = [
        f"Front-end {options.front_end}, {options.rounds} rounds of {options.seconds:g} s; "
        "Mpps (spread), worker cycles a packet, front-end idle, packets lost",
        f"{'size':>6}{'DPDK':>18}{'cycles':>8}{'idle':>6}{'lost':>7}"
        f"{'vhostfast':>18}{'cycles':>8}{'idle':>6}{'lost':>7}{'ratio':>8}",
    ]
    for row in rows:
        line = f"{row.size:>4} B"
        for sample, apart in ((row.dpdk, row.dpdk_spread), (row.ours, row.ours_spread)):
            line += f"{f'{sample.mpps:.2f} (±{apart / 2:.0%})':>18}"
            line += f"{cell(sample.cycles, '.0f'):>8}{cell(sample.idle, '.0%'):>6}"
            line += f"{cell(sample.lost, '.2%'):>7}"
        doubt = f"  {row.restless} of {options.rounds} rounds on a restless machine"
        lines.append(f"{line}{row.ratio:>7.2f}x{doubt * bool(row.restless)}")
    return "\n".join(lines)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="vhostfast against DPDK's testpmd, VM to VM")
    parser.add_argument("--front-end", choices=FRONT_ENDS, default=next(iter(FRONT_ENDS)))
    parser.add_argument("--sizes", default="64,1500", help="bytes of a frame, default %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="of each size, default %(default)s")
    parser.add_argument("--seconds", type=float, default=1.0, help="counted, each measurement")
    parser.add_argument("--warm-up", type=float, default=0.5, help="seconds before, not counted")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(words)
    try:
        options.sizes = [int(size) for size in options.sizes.split(",")]
    except ValueError:
        parser.error(f"--sizes {options.sizes}: give whole numbers, such as 64,1500")
    if options.rounds < 1 or not all(60 <= size <= 1514 for size in options.sizes):
        parser.error("--rounds must be at least 1, sizes 60 to 1514 bytes")
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    try:
        require_environment()
        rows = [compare(options, size) for size in options.sizes]
    except VhostfastError as error:
        print(f"versus_dpdk: {error}", file=sys.stderr)
        return 3 if isinstance(error, EnvironmentLacks) else 1
    if options.json:
        print(json.dumps({"front_end": options.front_end, "rows": [asdict(row) for row in rows]}))
    else:
        print(table(rows, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
