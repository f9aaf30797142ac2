"""A port's share of the control plane.

Messages of all ports are handled by one thread, and some of them pause the workers: who sends them
without end would take both from the others. So each port has BURST_S of the thread's time at hand,
far more than any front-end's start takes, and what it has used comes back slowly, at its part of
SHARE of all time. Who has used up more waits, and the socket's buffer with him.

Counted is the processor's time, so that a machine with other things to do delays nobody twice; and
that in which the workers are waited for.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BURST_S = 1.0
SHARE = 0.25  # of one CPU, for all ports together
TURN_MAX_S = 0.05  # to unmap much memory takes long: a lawful guest must not wait for that later


class Budget:
    """Of one port, for all its front-ends; `ports` says how many ports share."""

    def __init__(self, ports: Callable[[], int] = lambda: 1) -> None:
        self._ports = ports
        self._left_s = BURST_S
        self._counted_to: float | None = None

    @contextmanager
    def spending(self) -> Iterator[Callable[[], float]]:
        """What this thread does inside is on the port; gives the seconds so far."""
        began = time.thread_time()
        try:
            yield lambda: time.thread_time() - began
        finally:
            self.spend(min(time.thread_time() - began, TURN_MAX_S))

    def spend(self, seconds: float) -> None:
        self._left_s -= seconds

    def wait_s(self, now: float) -> float:
        """How long the port has to wait, in seconds, at the time `now` of a monotonic clock."""
        rate = SHARE / self._ports()
        passed = 0.0 if self._counted_to is None else now - self._counted_to
        self._counted_to = now
        self._left_s = min(BURST_S, self._left_s + rate * passed)
        return max(0.0, -self._left_s / rate)
