"""How long packets take at a fixed offered rate: the first guest sends on a schedule.

A packet's time begins when it was due, whether the ring had room for it or not, and ends when the
driver sees it: with pattern both-ways there and back, the second guest answering each at once;
one-way at the second guest; loop back at the first. All guests are played by one thread, so there
is one clock, which is calibrated against CLOCK_MONOTONIC_RAW. `null` has no row: it gives back
stale frames, and a packet's time hangs on what is in it.
"""

import re
import statistics
import time
from concurrent.futures import wait
from dataclasses import dataclass
from typing import ClassVar

from vhostfast.bench.job import Job
from vhostfast.bench.sample import (
    LOG_TAKE_S,
    VERIFY_EVERY,
    Guests,
    driving,
    nothing_came,
    verify,
)
from vhostfast.bench.workload import Frames, Plan
from vhostfast.driver.pace import Paced, Schedule, Times
from vhostfast.driver.traffic import Load, Station
from vhostfast.errors import EnvironmentLacks, UsageError

LOOK_S = 1.0  # whoever looks after the back-end is on the driver's CPU, and that shows in the tail
GRACE_S = 2.0  # from the end of the schedule until what is still on its way is lost
FLOODS, FLOOD_S, FLOOD_PACKETS = 3, 0.2, 1 << 60
PACKETS_MIN = 1000  # of a turn: for fewer there is no 99.9th of anything


@dataclass(frozen=True, slots=True)
class Rate:
    """A load, by the `name` that stands in its row: `mpps`, or a `share` of a back-end's highest
    rate, 1 being all."""

    name: str
    mpps: float = 0.0
    share: float = 0.0

    def of(self, highest: float) -> float:
        """Mpps, for a back-end that does `highest` Mpps."""
        return self.share * highest if self.share else self.mpps


def parse_rates(text: str) -> tuple[Rate, ...]:
    """Read rates such as 10%,90% or 0.5,2 (Mpps). Raises UsageError."""
    rates = tuple(_rate(word.strip()) for word in text.split(","))
    if len({one.name for one in rates}) < len(rates):
        raise UsageError(f"--rate {text}: a rate is given twice")
    return rates


def _rate(word: str) -> Rate:
    found = re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?)(%?)", word)
    value = float(found[1]) if found else 0.0
    if found and found[2] and value > 100:
        raise UsageError(f"--rate {word}: no back-end does more than 100% of what it can do")
    if not found or value == 0:
        raise UsageError(
            f"--rate: '{word}' is no rate: give millions of packets a second, such as 0.5, or a"
            " share of what the back-end can do, such as 50%"
        )
    return Rate(word, share=value / 100) if found[2] else Rate(word, mpps=value)


@dataclass(frozen=True, slots=True)
class Latency:
    """What was measured at one rate.

    `mpps`: what was offered. `p50_ns` and so on: nanoseconds that this share of the packets that
    came did not exceed; `max_ns` is exact, the others to a 128th. `lost`: the share of packets that
    never came, or not in GRACE_S. `held`: the share that was due and found the ring full. `gap_ns`:
    the longest that the driver itself did not look; `waited_ns`: how long all in all the back-end
    or the driver waited for its CPU, and `starved` as a share. `packets` came and were counted; the
    others as in Sample.
    """

    MAIN: ClassVar = ("p50_ns", "p99_ns", "p999_ns", "max_ns")
    BESIDE: ClassVar = ("mpps", "lost", "held", "idle", "gap_ns")

    mpps: float
    p50_ns: float
    p99_ns: float
    p999_ns: float
    max_ns: float
    packets: int
    lost: float
    held: float
    gap_ns: float
    waited_ns: float
    idle: float
    verified: int
    starved: float


def measure(guests: Guests, frames: Frames, mpps: float, held_most: float = 1.0) -> Latency:
    """One turn at a rate, which ends once more than a share of `held_most` was held: what has not
    come until then is lost. Raises as `sample.verify`."""
    plan = guests.plan
    warm_up, count = int(plan.warm_up_s * mpps * 1e6), packets(plan, mpps)
    schedule = Schedule(mpps, warm_up + count, warm_up, int(held_most * count))
    most_s = plan.warm_up_s + plan.seconds + GRACE_S
    paced, waited_ns, starved = _paced(guests, frames, schedule, most_s)
    busy, idle = paced.cycles()
    times = paced.times()
    return Latency(
        mpps,
        *_quantiles(times),
        packets=times.count,
        lost=(count - times.count) / count,
        held=paced.held / count,
        gap_ns=paced.gap_ns,
        waited_ns=waited_ns,
        idle=idle / (busy + idle),
        verified=paced.counters().verified,
        starved=starved,
    )


def packets(plan: Plan, mpps: float) -> int:
    """How many are counted in a turn."""
    return max(1, int(plan.seconds * mpps * 1e6))


def _quantiles(times: Times) -> tuple[float, float, float, float]:
    return times.quantile(0.5), times.quantile(0.99), times.quantile(0.999), times.max_ns


def highest(guests: Guests, frames: Frames) -> float:
    """Mpps that arrive if the ring is kept full: the median of some runs."""
    rates = []
    for _ in range(FLOODS):
        paced, *_ = _paced(guests, frames, Schedule(0, FLOOD_PACKETS), FLOOD_S)
        rates.append(paced.noted / paced.seconds / 1e6)
    return statistics.median(rates)


def _paced(
    guests: Guests, frames: Frames, schedule: Schedule, most_s: float
) -> tuple[Paced, float, float]:
    """The schedule, carried out; how long somebody waited for a CPU, in ns, and as a share."""
    run = guests.run

    def make(stations: list[Station], load: Load) -> Paced:
        return Paced(stations, load, schedule)

    with (
        guests.traffic_of(make, frames, "touch", VERIFY_EVERY) as paced,
        driving(guests.plan, paced, most_s, schedule.count) as driver,
    ):
        began, before = time.perf_counter(), (run.starved_ns(), driver.starved_ns())
        while not driver.future.done():
            guests.look()
            wait([driver.future], LOG_TAKE_S if run.log else LOOK_S)
        spent, after = time.perf_counter() - began, (run.starved_ns(), driver.starved_ns())
    counters = paced.counters()
    guests.require_right(frames, counters)
    guests.require_marks(counters)
    if paced.noted == 0 and paced.held <= schedule.held_most:
        run.require_alive()
        raise EnvironmentLacks(nothing_came(run, counters))
    waited_ns = max(b - a for a, b in zip(before, after, strict=True))
    return paced, waited_ns, min(waited_ns / (spent * 1e9), 1.0)


def _require_enough(rate: Rate, mpps: float, seconds: float) -> None:
    """Raises UsageError for a turn of too few packets."""
    count = int(seconds * mpps * 1e6)
    if count < PACKETS_MIN:
        raise UsageError(
            f"--rate {rate.name}: in {seconds:g} s these are {count} packets, and it takes"
            f" {PACKETS_MIN} to have a 99.9th percentile: give more --seconds"
        )


def job(rates: tuple[Rate, ...], seconds: float) -> Job[Latency]:
    """Every back-end at each of the rates, for so long. Raises UsageError."""
    tops: dict[tuple[str, str], float] = {}
    named = {one.name: one for one in rates}
    for one in rates:
        if not one.share:  # of others nobody knows yet how many packets they are
            _require_enough(one, one.mpps, seconds)

    def first(guests: Guests, frames: Frames) -> None:
        verify(guests, frames)
        if any(one.share for one in rates):
            tops[guests.run.name, frames.name] = highest(guests, frames)

    def turn(guests: Guests, frames: Frames, load: str) -> Latency:
        top = tops.get((guests.run.name, frames.name), 0.0)
        mpps = named[load].of(top)
        _require_enough(named[load], mpps, seconds)
        return measure(guests, frames, mpps)

    return Job("latency", first, turn, loads=tuple(named), null=False)
