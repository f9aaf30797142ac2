"""What a run found: every figure of every round, and what they come to. As JSON and back.

A figure of several rounds is its median, between the lowest and the highest. Ratios are taken round
by round, for only what was measured within seconds is of the same machine.
"""

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from vhostfast.bench.latency import Latency
from vhostfast.bench.sample import Sample
from vhostfast.bench.search import LossFree
from vhostfast.errors import EnvironmentLacks, UsageError

FORMAT = 1
KINDS: dict[str, type[Sample] | type[Latency] | type[LossFree]] = {
    "throughput": Sample,
    "latency": Latency,
    "loss-free": LossFree,
}


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
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """What `as_dict` gave. Raises KeyError, TypeError or ValueError for anything else."""
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}, must be {FORMAT}")
        names = ("machine", "plan", "commands", "subject", "versus")
        kind = values.get("kind", "throughput")
        rounds = tuple(_rounds(values["rounds"], KINDS[kind]))
        return cls(**{name: values[name] for name in names}, rounds=rounds, kind=kind)


def _rounds(values: Iterable[dict[str, Any]], kind: type) -> Iterable[Round]:
    for one in values:
        samples = {row: kind(**sample) for row, sample in one["samples"].items()}
        yield Round(**{**one, "samples": samples, "distances": tuple(one["distances"])})


def load(path: Path) -> Report:
    """Read what `vhostfast bench --json` printed. Raises EnvironmentLacks or UsageError."""
    try:
        return Report.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise EnvironmentLacks(f"{path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path} is not what vhostfast bench --json prints: {error!r}") from None
