"""A built-in virtual machine, as a process of its own:  python -m vhostfast.bench.machine SOCKET

It is told what to do by JSON lines on stdin and says what came of it by JSON lines on stdout:

    {"size": 64, "number": 0, "idle": "wait"}   for {"ready": true}: rings run, buffers are on offer
    {"seconds": 2.0}                            for {"received": 12345} … ten times a second, and
                                                {"counters": {…}, "received": …, "seconds": …}
    {"again": true}                             for the last line again, after looking once more

The counters (driver.traffic.Counters) are of everything; `received` is what came in the `seconds`
beside it, before sending stopped. Only who has both machines' counters knows whether something is
still under way; {"again": false} stops the rings, end of stdin ends the process.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from vhostfast.driver.frontend import Frontend
from vhostfast.driver.memory import GuestMemory
from vhostfast.driver.traffic import Load, Station, Traffic, mac
from vhostfast.errors import VhostfastError

MEMORY_SIZE = 32 << 20
RING_SIZE = 1024
NICE = 5  # where CPUs are short the switch comes first, as it would on a host of guests
REPORT_S = 0.1
LINGER_S = 0.3  # nothing has moved for so long: time to compare


def main(path: str) -> None:
    """Be the machine behind the socket at `path`."""
    os.nice(NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever gives the orders
    with (
        suppress(StopIteration, BrokenPipeError),  # nobody is left who would give orders
        GuestMemory(((0, MEMORY_SIZE),)) as memory,
        Frontend(path, memory, ring_size=RING_SIZE) as frontend,
    ):
        orders = (json.loads(line) for line in sys.stdin)
        for order in orders:
            _exchange(frontend, orders, **order)


def _exchange(
    frontend: Frontend, orders: Iterator[dict[str, Any]], *, size: int, number: int, idle: str
) -> None:
    """Send frames of `size` bytes to the other machine, and check those that come from there."""
    frontend.start()
    station = Station(frontend, mac(number), mac(1 - number), flow=number)
    traffic = Traffic([station], Load(sizes=(size,)), idle=idle)
    _say({"ready": True})
    received, seconds = _run(traffic, next(orders)["seconds"])
    while True:
        counters = asdict(traffic.counters())
        _say({"counters": counters, "received": received, "seconds": seconds})
        if not next(orders)["again"]:
            break
        traffic.run(linger_s=LINGER_S)
    frontend.stop()


def _run(traffic: Traffic, duration_s: float) -> tuple[int, float]:
    """Packets received while sending, and for how many seconds that was."""
    failed: list[Exception] = []

    def run() -> None:
        try:
            traffic.run(linger_s=LINGER_S)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    began = time.perf_counter()
    thread.start()
    while thread.is_alive() and time.perf_counter() < began + duration_s:
        thread.join(REPORT_S)
        _say({"received": traffic.counters().received})
    received, seconds = traffic.counters().received, time.perf_counter() - began
    traffic.stop_sending()
    thread.join()
    for error in failed:
        raise error
    return received, seconds


def _say(what: dict[str, object]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except VhostfastError as error:
        sys.exit(f"virtual machine at {sys.argv[1]}: {error}")
