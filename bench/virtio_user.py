"""DPDK's virtio-user as the front-end: packets that circulate through our switch, and through
DPDK's own back-end, in turn.

    chrt -r 1 python bench/virtio_user.py --rounds 5 --json virtio-user.json    # as root

A dpdk-testpmd on the driver's CPU has two virtio-user ports, forwards what one gets to the other
(io), and starts with bursts of its own; the back-end on the worker's CPU joins the two. Each row is
a way of the split ring that virtio-user has; figures are what both ports got, medians of the
rounds, and the ratio is taken round by round. Exit code 1: slower than DPDK's back-end in a row;
3: something is lacking.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vhostfast.bench.backend import TESTPMD, dpdk, ours, running
from vhostfast.bench.workload import Plan, Workload
from vhostfast.errors import EnvironmentLacks, VhostfastError

# Of a split ring, as options of net_virtio_user; IN_ORDER is DPDK's alone to agree to.
MODES = {
    "mergeable": "mrg_rxbuf=1,in_order=0",
    "not mergeable": "mrg_rxbuf=0,in_order=0",
    "vectorized": "mrg_rxbuf=0,in_order=0,vectorized=1",
    "in order, mergeable": "mrg_rxbuf=1,in_order=1",
    "in order, not mergeable": "mrg_rxbuf=0,in_order=1",
}
FIRST_BURSTS = 8  # of 32 packets, from each port
START_S, WARM_S = 3.0, 0.5
Rates = dict[str, list[float]]


def front_end(sockets: list[str], mode: str, driver_cpu: int) -> list[str]:
    vdevs = [
        f"--vdev=net_virtio_user{number},path={socket},queue_size=256,queues=1,{MODES[mode]}"
        for number, socket in enumerate(sockets)
    ]
    return [
        TESTPMD, "--lcores", f"0@{driver_cpu},1@{driver_cpu}", "--no-pci", "--in-memory",
        "--single-file-segments", "-m", "128", "--no-telemetry", *vdevs, "--", "-i",
        "--nb-cores=1", "--rxq=1", "--txq=1", "--forward-mode=io", "--total-num-mbufs=16384",
    ]  # fmt: skip


def received(text: str) -> list[int]:
    """What both ports had got, each time that they were asked."""
    blocks = re.findall(r"NIC statistics for port \d+.*?RX-packets: +(\d+)", text, re.DOTALL)
    found = [int(number) for number in blocks]
    return [first + second for first, second in zip(found[::2], found[1::2], strict=True)]


def mpps(name: str, mode: str, seconds: float, plan: Plan) -> float:
    """Of one turn. Raises EnvironmentLacks where nothing circulates."""
    backend = {"dpdk": dpdk, "vhostfast": ours}[name](plan)
    with running(backend, plan) as run, tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "said")
        with open(said, "wb") as output:
            process = subprocess.Popen(
                front_end(run.sockets, mode, plan.driver_cpu),
                stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            took = _ask(process, seconds)
        except (BrokenPipeError, subprocess.TimeoutExpired) as error:
            last = said.read_text(errors="replace")[-800:]
            raise EnvironmentLacks(
                f"{TESTPMD} as the front-end has ended or hangs: {last}"
            ) from error
        finally:
            process.kill()
            process.wait()
        run.require_alive()
        counts = received(said.read_text(errors="replace"))
        if len(counts) != 2 or counts[1] <= counts[0]:
            raise EnvironmentLacks(
                f"{name}, {mode}: no packets circulate\n{said.read_text()[-800:]}"
            )
        return (counts[1] - counts[0]) / took / 1e6


def _ask(process: "subprocess.Popen[bytes]", seconds: float) -> float:
    """For the counters, twice; seconds between."""
    prompt = process.stdin
    assert prompt is not None

    def tell(command: str) -> None:
        prompt.write(f"{command}\n".encode())
        prompt.flush()

    time.sleep(START_S)
    tell(f"start tx_first {FIRST_BURSTS}")
    time.sleep(WARM_S)
    tell("show port stats all")
    began = time.perf_counter()
    time.sleep(seconds)
    tell("show port stats all")
    took = time.perf_counter() - began
    time.sleep(0.2)
    prompt.write(b"stop\nquit\n")
    prompt.close()
    process.wait(timeout=20)
    return took


def measure(rounds: int, seconds: float, modes: list[str]) -> dict[str, Rates]:
    """Mpps by mode and back-end, round by round."""
    plan = Plan(Workload(mode="poll"), hugepages=True)
    found: dict[str, Rates] = {mode: {"dpdk": [], "vhostfast": []} for mode in modes}
    for _ in range(rounds):
        for mode, rates in found.items():
            for name in rates:
                rates[name].append(mpps(name, mode, seconds, plan))
    return found


def show(found: dict[str, Rates]) -> bool:
    """The table; whether ours is at least as fast in every row."""
    table = Table("split ring", "DPDK Mpps", "vhostfast Mpps", "x DPDK", "range")
    all_met = True
    for mode, rates in found.items():
        ratios = [us / them for us, them in zip(rates["vhostfast"], rates["dpdk"], strict=True)]
        median = statistics.median(ratios)
        all_met &= median >= 1
        medians = (f"{statistics.median(rates[name]):.1f}" for name in ("dpdk", "vhostfast"))
        table.add_row(mode, *medians, f"{median:.2f}", f"{min(ratios):.2f}-{max(ratios):.2f}")
    Console().print(table)
    return all_met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="timed, in each turn")
    parser.add_argument("--only", choices=MODES, action="append", help="one mode, or more")
    parser.add_argument("--json", type=Path, help="every figure, into this file")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds, --seconds: give at least one round of some time")
    try:
        found = measure(options.rounds, options.seconds, options.only or list(MODES))
    except VhostfastError as error:
        print(f"virtio_user.py: {error}", file=sys.stderr)
        return 3 if isinstance(error, EnvironmentLacks) else 2
    if options.json:
        options.json.write_text(json.dumps(found) + "\n")
    return 0 if show(found) else 1


if __name__ == "__main__":
    sys.exit(main())
