"""The highest rate without loss, by binary search, in the sense of RFC 2544 (26.1).

A trial offers packets at a fixed rate, and passes if each of them came, and found room in the ring
when it was due: a back-end that makes its guests wait loses nothing, and still doesn't keep up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from vhostfast.bench.job import Job
from vhostfast.bench.latency import Latency, highest, measure
from vhostfast.bench.sample import IDLE_MIN, Guests, verify
from vhostfast.bench.workload import Frames
from vhostfast.errors import UsageError

DOUBLINGS_MAX = 4  # of the rate at which the search begins
ATTEMPTS_MAX = 3  # of a trial that failed for the machine's sake
RESOLUTION_MIN, RESOLUTION_MAX, LOSS_MAX = 0.001, 0.5, 0.5


def search(begin: float, resolution: float, passes: Callable[[float], bool]) -> float:
    """The highest rate that passes, within `resolution` (a share of the highest that was tried);
    0 if none does. What passes at `begin` is doubled, until it doesn't."""
    low, high = 0.0, begin
    for _ in range(DOUBLINGS_MAX):
        if not passes(high):
            break
        low, high = high, 2 * high
    else:
        return low
    step = resolution * high
    while high - low > step:
        middle = (low + high) / 2
        if passes(middle):
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True, slots=True)
class LossFree:
    """What a search found: `mpps` passed, `trials` were made.

    `limit`: why the lowest rate that failed did so: packets were "lost", or "held" for the ring was
    full, or the "driver" had no time left; or others had a CPU for longer than the ring lasts, so
    it was the "machine"; "" if none failed. `idle`: the driver's, in the trial that passed.
    `starved`: of the worst trial, as in Sample.
    """

    MAIN: ClassVar = ("mpps",)
    BESIDE: ClassVar = ("idle", "trials")

    mpps: float
    limit: str
    idle: float
    trials: int
    starved: float


def judge(one: Latency, loss: float, ring_size: int) -> str:
    """Why a trial failed, as in LossFree. With `loss`, a share, as much may be lost, and held."""
    if one.lost <= loss and one.held <= loss:
        return ""
    if max(one.gap_ns, one.waited_ns) * one.mpps * 1e-3 >= ring_size:
        return "machine"
    if one.idle < IDLE_MIN:
        return "driver"
    return "held" if one.held > loss else "lost"


class _Search:
    """The trials of one back-end in one round."""

    def __init__(self, guests: Guests, frames: Frames, loss: float) -> None:
        self.guests, self.frames, self.loss = guests, frames, loss
        self.trials: list[Latency] = []
        self.idle, self.limit = 1.0, ""

    def passes(self, mpps: float) -> bool:
        ring_size = self.guests.plan.workload.ring_size
        for _ in range(ATTEMPTS_MAX):
            self.trials.append(measure(self.guests, self.frames, mpps, self.loss))
            limit = judge(self.trials[-1], self.loss, ring_size)
            if limit != "machine":
                break
        if limit:
            self.limit = limit
        else:
            self.idle = self.trials[-1].idle
        return not limit


def job(resolution: float, loss: float) -> Job[LossFree]:
    """A search in each turn; both are shares. Raises UsageError."""
    if not RESOLUTION_MIN <= resolution <= RESOLUTION_MAX:
        raise UsageError(
            f"--resolution {resolution:.6g}: give {RESOLUTION_MIN} to {RESOLUTION_MAX}, a share of"
            " the rate"
        )
    if not 0 <= loss <= LOSS_MAX:
        raise UsageError(f"--loss {loss:.6g}: give 0 to {LOSS_MAX}, a share of the packets")

    def turn(guests: Guests, frames: Frames, _load: str) -> LossFree:
        one = _Search(guests, frames, loss)
        found = search(highest(guests, frames), resolution, one.passes)
        starved = max(trial.starved for trial in one.trials)
        return LossFree(found, one.limit, one.idle, len(one.trials), starved)

    settings = {"resolution": resolution, "loss": loss}
    return Job("loss-free", verify, turn, null=False, settings=settings)
