"""What a migration costs the packets: log off, log on, log on and watched by the kernel's record.

    python bench/migration_cost.py --load lean --size 64 --rounds 7

Two guests send to each other through `vhostfast switch` on CPU 0, driven from CPU 1, both with a
log that is taken every 10 ms, as a hypervisor's rounds are. All switches run the same code; the
three are measured in turn, a fresh start each, and a row is the median of the rounds and the ratio
to the same round without a log. The last row is what the witness takes of a pause: a scan of the
kernel's record, for 1 GiB of guest memory, none of it written and all of it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from vhostfast.core.driver import Mapping
from vhostfast.core.witness import Witness
from vhostfast.driver import Frontend, GuestMemory, Load, Migration, Traffic, pair

ROUND_S = 0.01
WARM_S = 0.1
VARIANTS = {"log off": (), "log on": (), "log on, witness": ("--witness",)}


def one_round(variant: str, load: Load, seconds: float) -> float:
    """Mpps, both ways together."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        paths = [Path(folder, name) for name in ("a", "b")]
        ports = [f"--port={path.name}=vhost-user:{path}" for path in paths]
        command = [sys.executable, "-m", "vhostfast", "switch", *ports, "--forward=patch"]
        command += ["--mode=poll", "--cpus=0", "--log-level=warning", *VARIANTS[variant]]
        switch = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        stack.callback(switch.wait)
        stack.callback(switch.terminate)
        frontends = []
        for path in paths:
            memory = stack.enter_context(GuestMemory())
            frontends.append(stack.enter_context(Frontend(path, memory)))
        for frontend in frontends:
            frontend.start()
        traffic = Traffic(pair(*frontends), load, idle="spin")
        thread = threading.Thread(target=run, args=(traffic,))
        thread.start()
        try:
            return measure(traffic, frontends if variant != "log off" else [], seconds)
        finally:
            traffic.stop()
            thread.join()


def run(traffic: Traffic) -> None:
    os.sched_setaffinity(0, {1})  # of this thread alone
    traffic.run()


def measure(traffic: Traffic, logged: list[Frontend], seconds: float) -> float:
    with ExitStack() as stack:
        migrations = [stack.enter_context(Migration(frontend)) for frontend in logged]
        for migration in migrations:
            migration.begin()
        time.sleep(WARM_S)
        begin, before = time.perf_counter(), traffic.counters().received
        while time.perf_counter() - begin < seconds:
            time.sleep(ROUND_S)
            for migration in migrations:
                migration.take()
        moved = traffic.counters().received - before
        return moved / (time.perf_counter() - begin) / 1e6


def scan_ms(size: int = 1 << 30) -> tuple[float, float]:
    """Of a record without a written page, and with all."""
    fd = os.memfd_create("memory")
    os.ftruncate(fd, size)
    memory = Mapping(fd, size, populate=True).array()
    os.close(fd)
    witness = Witness([(memory.ctypes.data, size)])
    times = []
    for step in (0, 4096):
        if step:
            memory[::step] = 1
        begin = time.perf_counter()
        witness.written()
        times.append((time.perf_counter() - begin) * 1e3)
    witness.close()
    return times[0], times[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--load", default="lean", choices=("lean", "touch", "full"))
    parser.add_argument("--size", type=int, default=64, help="bytes of a frame")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.4, help="of each measurement")
    options = parser.parse_args()
    load = Load(options.load, (options.size,), verify_every=64)
    found: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(options.rounds):
        for variant in VARIANTS:
            found[variant].append(one_round(variant, load, options.seconds))
    for variant, rates in found.items():
        ratios = [rate / off for rate, off in zip(rates, found["log off"], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(
            f"{options.load} {options.size} B, {variant:16} {statistics.median(rates):6.2f} Mpps,"
            f" {statistics.median(ratios):.2f} of log off ({spread})"
        )
    print("a scan of 1 GiB: {:.1f} ms with no page written, {:.0f} ms with all".format(*scan_ms()))


if __name__ == "__main__":
    main()
