"""The machine that a run is made on: what it is, whether it has what is needed, how near its CPUs
are to each other."""

import os
import platform
import re
import resource
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from vhostfast.bench.workload import HUGEPAGE, Plan
from vhostfast.core.limit import Distance
from vhostfast.errors import EnvironmentLacks, UsageError

HUGEPAGES = ("auto", "on", "off")
FREE_LOOKS, FREE_LOOK_S, FREE_MIN = 5, 0.05, 0.8  # the median counts
PORT_FDS, QUEUE_PAIR_FDS, SPARE_FDS = 12, 8, 128  # at most, of a driver or a back-end
SPARE_HUGEPAGES = 96  # for a back-end's own memory, such as Open vSwitch's 192 MiB


def describe() -> dict[str, object]:
    """What a figure depends on, beside the plan: for JSON."""
    return {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "hugepages": hugepages()[0],
        "version": version("vhostfast"),
        "commit": _commit(),
    }


def _cpu_model() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _commit() -> str | None:
    """Of the tree that we run from, with a + if it holds more; None where there is none."""
    git = ("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+")
    try:
        told = subprocess.run(git, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return told.stdout.strip() or None


def hugepages() -> tuple[int, int]:
    """2 MiB hugepages: all, and free ones."""
    text = Path("/proc/meminfo").read_text()
    count = {name: int(n) for name, n in re.findall(r"^(Huge\w+): +(\d+)", text, re.MULTILINE)}
    if count.get("Hugepagesize") != HUGEPAGE >> 10:
        return 0, 0
    return count["HugePages_Total"], count["HugePages_Free"]


def choose_hugepages(wanted: str, plan: Plan) -> tuple[bool, str]:
    """Whether to use them, and if "auto" found none, the sentence to say so.

    Raises UsageError, or EnvironmentLacks if they are "on" and too few.
    """
    if wanted not in HUGEPAGES:
        raise UsageError(f"--hugepages {wanted}: choose one of {', '.join(HUGEPAGES)}")
    work = plan.workload
    size = work.busy_guests * work.memory_size(work.ring_size)
    needed = size // HUGEPAGE + SPARE_HUGEPAGES
    free = hugepages()[1]
    if wanted == "off" or free >= needed:
        return wanted != "off", ""
    lack = (
        f"{free} hugepages of 2 MiB are free and {needed} are needed;"
        f" as root: echo {needed} > /proc/sys/vm/nr_hugepages"
    )
    if wanted == "on":
        raise EnvironmentLacks(lack)
    return False, f"Pages of 4 KiB, which are slower: {lack}"


def require_cpus(plan: Plan) -> None:
    """Raises EnvironmentLacks unless this process may use both CPUs."""
    allowed = os.sched_getaffinity(0)
    for option, cpu in (("worker", plan.worker_cpu), ("driver", plan.driver_cpu)):
        if cpu not in allowed:
            have = ", ".join(map(str, sorted(allowed)))
            raise EnvironmentLacks(
                f"--{option}-cpu {cpu}: there is no such CPU for this process, which has {have};"
                " back-end and driver need one each"
            )


def require_fds(plan: Plan) -> None:
    """Let this process, and back-ends that it starts, have as many open files as they may need.

    Raises EnvironmentLacks if that is forbidden.
    """
    work = plan.workload
    needed = work.guests * (PORT_FDS + QUEUE_PAIR_FDS * work.queues + work.regions) + SPARE_FDS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < needed:
        raise EnvironmentLacks(
            f"{work.guests} guests of {work.queues} queue pairs may need {needed} open files and"
            f" {hard} are allowed: raise the limit, as root: ulimit -Hn {needed}"
        )
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def require_free(cpu: int) -> None:
    """Raises EnvironmentLacks if somebody else has the CPU for a good part of the time."""
    shares: list[float] = []

    def spin() -> None:
        os.sched_setaffinity(0, {cpu})
        for _ in range(FREE_LOOKS):
            began, ours = time.perf_counter(), time.thread_time()
            while time.perf_counter() < began + FREE_LOOK_S:
                pass
            shares.append((time.thread_time() - ours) / (time.perf_counter() - began))

    thread = threading.Thread(target=spin)
    thread.start()
    thread.join()
    if statistics.median(shares) < FREE_MIN:
        raise EnvironmentLacks(
            f"CPU {cpu} is busy, perhaps with the back-end that runs already: whatever is started"
            " beside that needs a free one (--worker-cpu); --no-limits without --versus measures"
            " it alone"
        )


@contextmanager
def out_of_the_way(plan: Plan) -> Iterator[None]:
    """Keep this process's other threads off the worker's CPU, and the driver's if there are more.

    Of the calling thread, and of those that it starts inside.
    """
    before = os.sched_getaffinity(0)
    others = before - {plan.worker_cpu, plan.driver_cpu}
    os.sched_setaffinity(0, others or {plan.driver_cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def distance(first_cpu: int, second_cpu: int) -> float:
    """Nanoseconds in which a cache line goes from one CPU to the other.

    Raises EnvironmentLacks if one of them is never ours.
    """
    line = Distance()
    asked: list[float | None] = []

    def answer() -> None:
        os.sched_setaffinity(0, {first_cpu})
        line.answer()

    def ask() -> None:
        os.sched_setaffinity(0, {second_cpu})
        asked.append(line.ask())

    threads = [threading.Thread(target=part) for part in (answer, ask)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not asked or asked[0] is None:
        raise EnvironmentLacks(
            f"CPUs {first_cpu} and {second_cpu} are not free: something else keeps one busy;"
            " choose others by --worker-cpu and --driver-cpu"
        )
    return asked[0]
