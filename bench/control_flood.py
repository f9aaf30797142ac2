"""What a front-end that sends control messages without end costs the others:

    python bench/control_flood.py [SECONDS]

Two guests exchange frames through a `vhostfast switch` while a third front-end is silent, or floods
it with one kind of message, or comes and goes; in turn, so that the machine's moods meet all alike.
Prints what the two received a second (median of the turns), and how many messages were taken.
"""

import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from vhostfast.driver import Frontend, GuestMemory
from vhostfast.driver.traffic import Load, Traffic, pair
from vhostfast.errors import Disconnected
from vhostfast.protocol.message import EMPTY, Mac, Request, VringEnable, encode

TURNS = 5
HEAD_START_S = 5.0  # of the flood, in which a port uses up what it has at hand (backend/budget.py)
REGIONS = ((0, 8 << 20),)
Flood = Callable[[Frontend, threading.Event], int]


def silent(_: Frontend, stop: threading.Event) -> int:
    stop.wait()
    return 0


def flood_of(messages: list[bytes]) -> Flood:
    def flood(frontend: Frontend, stop: threading.Event) -> int:
        count, data = 0, b"".join(messages) * 20
        with socket.socket(fileno=frontend.wire.fileno()) as sock, contextlib.suppress(OSError):
            sock.settimeout(0.05)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    count += sock.send(data)
            sock.detach()
        return count * len(messages) * 20 // len(data)

    return flood


def reconnects(frontend: Frontend, stop: threading.Event) -> int:
    count = 0
    path = frontend.wire._sock.getpeername()
    frontend.close()
    while not stop.is_set():
        with (
            contextlib.suppress(Disconnected, TimeoutError),
            GuestMemory(REGIONS) as memory,
            Frontend(path, memory, timeout_s=1.0) as again,
        ):
            again.start()
            count += 1
    return count


FLOODS: dict[str, Flood] = {
    "silent": silent,
    "SET_OWNER": flood_of([encode(Request.SET_OWNER, EMPTY)]),
    "SET_VRING_ENABLE 0, 1": flood_of(
        [encode(Request.SET_VRING_ENABLE, VringEnable(1, on)) for on in (0, 1)]
    ),
    "SEND_RARP": flood_of([encode(Request.SEND_RARP, Mac(b"\2\0\0\0\0\7"))]),
    "reconnects": reconnects,
}


@contextlib.contextmanager
def switch(folder: str) -> Iterator[list[Path]]:
    paths = [Path(folder, name) for name in "abc"]
    ports = [f"--port={path.name}=vhost-user:{path}" for path in paths]
    command = [sys.executable, "-m", "vhostfast", "switch", *ports, "--mode=poll"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield paths
    finally:
        process.terminate()
        process.wait()


def turn(paths: list[Path], flood: Flood, seconds: float) -> tuple[float, float]:
    """Frames that the honest two received a second, and messages of the third a second."""
    stop, counted = threading.Event(), []
    with contextlib.ExitStack() as stack:
        made = []
        for path in paths:
            memory = stack.enter_context(GuestMemory(REGIONS))
            made.append(stack.enter_context(Frontend(path, memory)))
            made[-1].start()
        traffic = Traffic(pair(*made[:2]), Load(), idle="wait")
        runner = threading.Thread(target=traffic.run)
        hostile = threading.Thread(target=lambda: counted.append(flood(made[2], stop)))
        hostile.start()
        runner.start()
        time.sleep(HEAD_START_S)
        before, began = traffic.counters().received, time.monotonic()
        time.sleep(seconds)
        rate = (traffic.counters().received - before) / (time.monotonic() - began)
        stop.set()
        hostile.join()
        traffic.stop()
        runner.join()
    return rate, counted[0] / (HEAD_START_S + seconds)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in FLOODS}
    for _ in range(TURNS):
        for name, flood in FLOODS.items():
            with tempfile.TemporaryDirectory() as folder, switch(folder) as paths:
                rows[name].append(turn(paths, flood, seconds))
    calm = median(rate for rate, _ in rows["silent"])
    for name, turns in rows.items():
        rate, messages = (median(values) for values in zip(*turns, strict=True))
        print(
            f"{name:22} {rate / 1e3:8.0f} thousand frames/s {rate / calm:6.1%}"
            f" {messages:8.0f} messages/s"
        )


if __name__ == "__main__":
    main()
