"""Threads that run the workers' loop: entered once, without the GIL, until told to stop.

A worker never waits for the GIL, and the control plane never for a packet: `paused` asks by an
atomic word, and each worker answers at the end of its burst.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vhostfast.backend.budget import Budget
from vhostfast.core.fabric import Fabric, Port, Worker
from vhostfast.errors import UsageError


class Workers:
    """The workers of a fabric, one a CPU, or a single one that is not pinned.

    `mode` is "poll" (never sleeps), "interrupt" (sleeps as soon as there is nothing to do) or
    "adaptive" (looks again for a while first). Raises UsageError for a CPU that this process may
    not use.
    """

    def __init__(
        self, fabric: Fabric, cpus: Sequence[int] | None = None, mode: str = "adaptive"
    ) -> None:
        allowed = os.sched_getaffinity(0)
        for cpu in cpus or ():
            if cpu not in allowed:
                have = ", ".join(map(str, sorted(allowed)))
                raise UsageError(f"--cpus: there is no CPU {cpu} for this process; it has {have}")
        self.fabric = fabric
        self._cpus: list[int | None] = list(cpus) if cpus else [None]
        self._workers = [Worker(fabric, mode) for _ in self._cpus]
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads; ports may be attached before or after."""
        self.fabric.lay_out()
        for number, (cpu, worker) in enumerate(zip(self._cpus, self._workers, strict=True)):
            thread = threading.Thread(
                target=_run, args=(worker, cpu), name=f"vhostfast-{number}", daemon=True
            )
            self._threads.append(thread)
            worker.go()
            thread.start()

    def stop(self) -> None:
        """Stop them at the end of their bursts. May be called twice."""
        for worker in self._workers:
            worker.stop()
        for thread in self._threads:
            thread.join()
        self._threads = []

    @contextmanager
    def paused(self) -> Iterator[None]:
        """All workers rest inside; at the end they see whatever was laid out anew.

        Only swaps belong inside: what is slow is prepared before.
        """
        for worker in self._workers:
            worker.rest()
        try:
            yield
        finally:
            try:
                self.fabric.lay_out()
            finally:
                for worker in self._workers:
                    worker.go()

    def cycles(self) -> tuple[int, int]:
        """(cycles of turns that moved packets, packets moved), of all workers so far."""
        return (
            sum(worker.busy_cycles for worker in self._workers),
            sum(worker.packets for worker in self._workers),
        )


class FabricPort:
    """A port of a fabric as a connection sees it (`connection.Backend`)."""

    def __init__(self, port: Port, workers: Workers) -> None:
        self.port = port
        self._workers = workers
        self.name = port.name
        self.event_fd = port.event_fd
        self.attach = port.attach
        self.detach = port.detach
        self.count = port.count
        self.budget = Budget(lambda: len(port.fabric.ports))

    @property
    def fault(self) -> str | None:
        return self.port.fault

    @contextmanager
    def paused(self) -> Iterator[None]:
        """As Workers.paused; the time that the control plane waits for them is on the port too."""
        began = time.monotonic() - time.thread_time()
        try:
            with self._workers.paused():
                yield
        finally:
            self.budget.spend(time.monotonic() - time.thread_time() - began)

    def announce(self, mac: bytes) -> None:
        """Learn the address and tell the other ports, as the guest itself would (RARP)."""
        with self.paused():
            self.port.fabric.learn(mac, self.port)
            self.port.fabric.inject(self.port, rarp(mac))

    def reset(self) -> None:
        with self.paused():
            self.port.reset()


def rarp(mac: bytes) -> bytes:
    """The frame by which switches learn where a guest is: vhost-user, SEND_RARP; RFC 903."""
    request = bytes.fromhex("0001 0800 06 04 0003")  # Ethernet, IPv4, "reverse request"
    frame = b"\xff" * 6 + mac + b"\x80\x35" + request + (mac + bytes(4)) * 2
    return frame.ljust(60, b"\0")


def _run(worker: Worker, cpu: int | None) -> None:
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})  # of this thread alone
    worker.run()
