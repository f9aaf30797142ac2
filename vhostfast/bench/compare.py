"""Two runs held against each other: whether they can be, and what is more than noise.

A difference counts where the rounds of one run all lie beyond those of the other. Had nothing
changed, that would come about by chance once in C(m + n, m) / 2 times, for m and n rounds: with one
round each, always.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb

from vhostfast.bench.report import KINDS, Report, Spread
from vhostfast.errors import UsageError

MACHINE = ("cpu", "cpus", "kernel")  # what must be the same; hugepages are in the plan
FREE = ("rounds",)  # of the plan: what may differ
CHANCE_MIN = 3  # as two rounds each give; with less nothing is told from noise


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in both runs: of `row` with `frames`; `to` is the row that it is a ratio to, None
    for the figure itself, which is a field of the row's samples. `load` as in report.Round."""

    frames: str
    row: str
    to: str | None
    old: Spread
    new: Spread
    figure: str = "mpps"
    load: str = ""

    @property
    def factor(self) -> float:
        """New by old, of the medians; not a number where the old one is 0."""
        return self.new.median / self.old.median if self.old.median else float("nan")

    @property
    def is_more_than_noise(self) -> bool:
        """Whether no round of one run lies among those of the other, of which there are enough."""
        apart = self.new.low > self.old.high or self.new.high < self.old.low
        return apart and self.is_told

    @property
    def is_told(self) -> bool:
        """Whether there are rounds enough to tell a change from noise."""
        return self.chance >= CHANCE_MIN

    @property
    def chance(self) -> float:
        """Once in so many times that would be luck."""
        return comb(len(self.old.values) + len(self.new.values), len(self.old.values)) / 2


def compare(old: Report, new: Report) -> list[Change]:
    """All figures of the subject that both have. Raises UsageError for unlike runs."""
    unlike = list(_unlike(old, new))
    if unlike:
        raise UsageError("these runs are not of the same kind: " + "; ".join(unlike))
    return [
        change
        for frames in new.frames()
        for load in new.loads()
        for change in _changes(old, new, frames, load)
    ]


def _changes(old: Report, new: Report, frames: str, load: str) -> Iterator[Change]:
    row = new.subject
    for figure in KINDS[new.kind].MAIN:
        before, after = (one.figures(frames, one.subject, figure, load) for one in (old, new))
        yield Change(frames, row, None, before, after, figure, load)
    for to in new.held_against(row):
        if to in old.held_against(old.subject):
            before, after = (one.ratio(frames, one.subject, to) for one in (old, new))
            yield Change(frames, row, to, before, after)


def _unlike(old: Report, new: Report) -> Iterator[str]:
    """Each thing that differs and must not, with both values."""
    before, after = _kind(old), _kind(new)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield f"{name} was {before.get(name)} and is {after.get(name)}"


def _kind(report: Report) -> dict[str, object]:
    kind: dict[str, object] = {name: report.machine.get(name) for name in MACHINE}
    plan = {name: value for name, value in report.plan.items() if name not in FREE}
    workload = dict(plan.pop("workload", {}))
    frames = ",".join(str(one["name"]) for one in workload.pop("frames", ()))
    rows = ", ".join(sorted(set(report.commands) - {report.subject}))
    told = {"sizes": frames, "versus": report.versus, "rows": rows, "report": report.kind}
    return kind | plan | workload | told | {"rates": ",".join(report.loads())}
