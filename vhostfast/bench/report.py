"""What a run found: every figure of every round, and what they come to. As JSON and back.

A figure of several rounds is its median, between the lowest and the highest. Ratios are taken round
by round, for only what was measured within seconds is of the same machine.
"""

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Self

from msgspec import MsgspecError, convert
from msgspec.json import decode

from vhostfast.bench.latency import Latency
from vhostfast.bench.sample import Sample
from vhostfast.bench.search import LossFree
from vhostfast.bench.workload import Plan
from vhostfast.errors import EnvironmentLacks, UsageError

FORMAT = 1
KINDS: dict[str, type[Sample] | type[Latency] | type[LossFree]] = {
    "throughput": Sample,
    "latency": Latency,
    "loss-free": LossFree,
}


@dataclass(frozen=True, slots=True)
class Stored:
    """What any format begins with."""

    format: int


@dataclass(frozen=True, slots=True)
class Round:
    """All back-ends in turn with the same frames, at the same `load` of their job's.

    `samples` are of the report's kind. `distances`: nanoseconds between the two CPUs, before each
    turn and after the last. `attempts`: how often it was done; `still`: whether the machine held
    still the last time.
    """

    frames: str
    samples: dict[str, Any]
    distances: tuple[float, ...]
    attempts: int
    still: bool
    load: str = ""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds, and the rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def scaled(self, factor: float) -> Self:
        """In another unit."""
        return replace(self, values=tuple(value * factor for value in self.values))


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run: the machine, the plan, the command of each row, the rounds.

    `subject` is the row that is measured, `versus` the one that it is held against, if any. `kind`
    is one of KINDS.
    """

    machine: dict[str, Any]
    plan: dict[str, Any]
    commands: dict[str, str]
    subject: str
    versus: str | None
    rounds: tuple[Round, ...]
    kind: str = "throughput"

    def frames(self) -> list[str]:
        """The names of all frames, in the order of the plan."""
        return list(dict.fromkeys(one.frames for one in self.rounds))

    def loads(self) -> list[str]:
        """The names of all loads, in the order of the job; one without a name is all that goes."""
        return list(dict.fromkeys(one.load for one in self.rounds))

    def frame_mean(self, frames: str) -> float:
        """Bytes of a frame."""
        named = {one["name"]: one["sizes"] for one in self.plan["workload"]["frames"]}
        return float(statistics.mean(named[frames]))

    def figures(self, frames: str, row: str, what: str = "mpps", load: str = "") -> Spread:
        """A figure of a row, of all rounds; `what` names a field of its samples."""
        samples = (one.samples[row] for one in self._rounds(frames, load))
        return Spread(tuple(getattr(sample, what) for sample in samples))

    def ratio(self, frames: str, row: str, to: str) -> Spread:
        """How many times as fast as another row, round by round."""
        pairs = (one.samples for one in self._rounds(frames, ""))
        return Spread(tuple(samples[row].mpps / samples[to].mpps for samples in pairs))

    def _rounds(self, frames: str, load: str) -> Iterable[Round]:
        return (one for one in self.rounds if (one.frames, one.load) == (frames, load))

    # --- JSON -------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything, and the medians for whoever only reads those."""
        return {"format": FORMAT, **asdict(self), "summary": self._summary()}

    def _summary(self) -> list[dict[str, Any]]:
        return [
            self._told(frames, row, load)
            for frames in self.frames()
            for load in self.loads()
            for row in self.commands
        ]

    def _told(self, frames: str, row: str, load: str) -> dict[str, Any]:
        sample = KINDS[self.kind]
        told: dict[str, Any] = {"frames": frames, "row": row}
        if load:
            told["load"] = load
        for what in sample.MAIN:
            spread = self.figures(frames, row, what, load)
            told |= {what: spread.median, f"{what}_low": spread.low, f"{what}_high": spread.high}
        for what in sample.BESIDE:
            told[what] = self.figures(frames, row, what, load).median
        if "mpps" in told:
            told["gbps"] = told["mpps"] * self.frame_mean(frames) * 8e-3
        for to in self.held_against(row):
            told[f"ratio_to_{to}"] = self.ratio(frames, row, to).median
        return told

    def held_against(self, row: str) -> list[str]:
        """The rows that this one has a ratio to: where rates were measured, none of them 0."""
        if "mpps" not in KINDS[self.kind].MAIN:
            return []
        others = [self.versus, "bare"] if row == self.subject else ["bare"]
        others = [to for to in others if to in self.commands and row not in (to, "null")]
        return [to for to in others if all(one.samples[to].mpps for one in self.rounds)]

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """What `as_dict` gave. Raises ValueError, MsgspecError or UsageError for anything else."""
        found = convert(values, Stored).format
        if found != FORMAT:
            raise ValueError(f"its format is {found}, and this version reads {FORMAT}")
        report = convert(values, cls)
        if report.kind not in KINDS:
            raise ValueError(f"its kind is {report.kind}: none of {', '.join(KINDS)}")
        plan = convert(report.plan, Plan)  # whole: options that are newer as they were before
        kind = KINDS[report.kind]
        rounds = tuple(
            replace(one, samples={row: convert(told, kind) for row, told in one.samples.items()})
            for one in report.rounds
        )
        report = replace(report, plan=report.plan | plan.as_dict(), rounds=rounds)
        report._require_whole()
        return report

    def _require_whole(self) -> None:
        """Raises ValueError unless all sizes have rounds, and each of them a sample of each row."""
        if "cpu" not in self.machine:
            raise ValueError("its machine has no cpu")
        for row in (self.subject, self.versus):
            if row is not None and row not in self.commands:
                raise ValueError(f"{row} is not among its commands")
        sizes = [str(one["name"]) for one in self.plan["workload"]["frames"]]
        for case in product(sizes, self.loads() or [""]):
            if not list(self._rounds(*case)):
                raise ValueError(f"it has no rounds of {' at '.join(filter(None, case))}")
        for one in self.rounds:
            if one.frames not in sizes or one.samples.keys() != self.commands.keys():
                raise ValueError("a round has other sizes than its plan, or rows than its commands")


def load(path: Path) -> Report:
    """Read what `vhostfast bench --json` printed. Raises EnvironmentLacks or UsageError."""
    try:
        values = decode(path.read_bytes())
        if isinstance(values, dict) and isinstance(values.get("rounds"), dict):
            raise UsageError("it is of bench idle, which can be neither compared nor drawn")
        return Report.from_dict(values)
    except OSError as error:
        raise EnvironmentLacks(
            f"{path}: {error.strerror}: name what vhostfast bench --json > FILE stored"
        ) from None
    except (ValueError, MsgspecError, UsageError, RecursionError) as error:
        raise UsageError(f"{path} is not what vhostfast bench --json prints: {error}") from None
