"""Verified traffic on a schedule, and how long each packet was on its way (csrc/driver/pace.h)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from vhostfast.core.traffic import Pace, cycles_per_ns
from vhostfast.driver.traffic import Load, Station, Traffic
from vhostfast.errors import UsageError


@cache
def _clock() -> float:
    """Cycles a nanosecond: measured once, for these clocks run evenly."""
    return cycles_per_ns()


@dataclass(frozen=True, slots=True)
class Schedule:
    """`count` packets, evenly, at `mpps` millions a second; 0: as many as the ring takes.

    The first `warm_up` of them are sent as the others are, and not counted. If more than
    `held_most` of the others find the ring full, it ends there. Raises UsageError.
    """

    mpps: float
    count: int
    warm_up: int = 0
    held_most: int = 2**63

    def __post_init__(self) -> None:
        if not 0 <= self.mpps < 1000 or not 0 <= self.warm_up < self.count:
            raise UsageError(f"{self}: give 0 to 1000 Mpps, and packets that count")


@dataclass(frozen=True, slots=True)
class Times:
    """How long packets were on their way: `counts` of them up to `tops` ns, bucket by bucket.

    A bucket is as wide as 1/128 of its times at most; `max_ns` is exact.
    """

    counts: NDArray[np.uint64]
    tops: NDArray[np.float64]
    max_ns: float

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """The time, in ns, that this share of the packets did not exceed; not a number of none."""
        if self.count == 0:
            return float("nan")
        rank = max(1, int(np.ceil(share * self.count)))
        return min(float(self.tops[np.searchsorted(np.cumsum(self.counts), rank)]), self.max_ns)

    def longer_than(self, ns: float) -> int:
        """Packets whose bucket lies beyond `ns` as a whole, or in part."""
        return int(self.counts[self.tops > ns].sum())


class Paced(Traffic):
    """The first station sends on a `schedule`; where both stations send, the second answers each
    frame at once, and a frame's time is there and back. One station: it gets back what it sends.

    A time begins when the packet was due, not when the ring had room for it. Stations with a single
    queue pair each. Raises UsageError as Traffic.
    """

    def __init__(
        self, stations: Sequence[Station], load: Load, schedule: Schedule, *, idle: str = "spin"
    ) -> None:
        if load.kind != "touch":
            raise UsageError(f"kind={load.kind}: packets on a schedule are of kind touch")
        super().__init__(stations, load, idle=idle)
        self.schedule = schedule
        self._cycles_per_ns = _clock()
        lanes = [lane for lanes in self._lanes for lane in lanes]
        period = self._cycles_per_ns * 1e3 / schedule.mpps if schedule.mpps else 0.0
        try:
            self._pace = Pace(lanes, period=period, count=schedule.count, first=schedule.warm_up)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def run(
        self,
        seconds: float | None = None,
        *,
        linger_s: float = 0.2,
        expected: int | None = None,
    ) -> None:
        """Until all is back; or, once all was due, nothing has moved for `linger_s`; for `seconds`
        at most. `expected` is what the schedule says, whatever is given."""
        limit = 2**63 if seconds is None else int(seconds * 1e9 * self._cycles_per_ns)
        linger = int(linger_s * 1e9 * self._cycles_per_ns)
        self._pace.run(linger, limit, self.schedule.held_most)

    def stop(self) -> None:
        self._pace.stop()

    def stop_sending(self) -> None:
        """What was not sent yet is lost."""
        self._pace.stop()

    def cycles(self) -> tuple[int, int]:
        return self._pace.cycles()

    def times(self) -> Times:
        """Of the packets that have come, but those of the warm-up; after `run`."""
        counts, tops, most = self._pace.histogram()
        return Times(counts, tops / self._cycles_per_ns, most / self._cycles_per_ns)

    @property
    def noted(self) -> int:
        """Packets that have come, but those of the warm-up; at any time."""
        return self._pace.counters()[0]

    @property
    def held(self) -> int:
        """Of those, and of lost ones: how many were due and found the ring full; at any time."""
        return self._pace.counters()[1]

    @property
    def gap_ns(self) -> float:
        """The longest that the driver did not look, as when somebody else had its CPU."""
        return self._pace.counters()[2] / self._cycles_per_ns

    @property
    def seconds(self) -> float:
        """From the start to the last packet that came."""
        return self._pace.counters()[3] / self._cycles_per_ns / 1e9
