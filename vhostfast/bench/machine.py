"""A built-in virtual machine, as a process of its own:  python -m vhostfast.bench.machine SOCKET

It is told what to do by JSON lines on stdin and says what came of it by JSON lines on stdout:

    {"size": 64, "number": 0, "idle": "wait"}   for {"ready": true}: rings run, buffers are on offer
    {"seconds": 2.0}                            for {"received": 12345} … ten times a second, and
                                                {"counters": {…}, "received": …, "seconds": …}

`received` in the last line is what came in the `seconds` beside it, before sending stopped; the
counters (driver.traffic.Counters) are of everything. End of stdin ends it.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
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
LINGER_S = 0.5  # nothing has moved for so long: all has arrived that ever will


def main(path: str) -> None:
    """Be the machine behind the socket at `path`."""
    os.nice(NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever gives the orders
    with (
        GuestMemory(((0, MEMORY_SIZE),)) as memory,
        Frontend(path, memory, ring_size=RING_SIZE) as frontend,
    ):
        for order in _orders():
            _exchange(frontend, **order)


def _orders() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def _exchange(frontend: Frontend, *, size: int, number: int, idle: str) -> None:
    """Send frames of `size` bytes to the other machine, and check those that come from there."""
    frontend.start()
    station = Station(frontend, mac(number), mac(1 - number), flow=number)
    traffic = Traffic([station], Load(sizes=(size,)), idle=idle)
    _say({"ready": True})
    for order in _orders():
        received, seconds = _run(traffic, order["seconds"])
        break
    else:
        return
    frontend.stop()
    traffic.finish()
    counters = asdict(traffic.counters())
    _say({"counters": counters, "received": received, "seconds": seconds})


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
