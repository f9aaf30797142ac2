"""What is done with each back-end's guests: first once, then in every round."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from vhostfast.bench.sample import Guests, Sample, measure, verify
from vhostfast.bench.workload import Frames

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Job(Generic[S]):
    """`first` is called once with each frames, of back-ends that must be right; `turn` in every
    round at each of the `loads`, which are names of its own: "" is as much as goes.

    `kind` is of the report. `null`: whether the null row makes sense. `settings`: what the report
    says of it, beside the plan.
    """

    kind: str
    first: Callable[[Guests, Frames], object]
    turn: Callable[[Guests, Frames, str], S]
    loads: tuple[str, ...] = ("",)
    null: bool = True
    settings: dict[str, Any] = field(default_factory=dict)


def _measure(guests: Guests, frames: Frames, _load: str) -> Sample:
    return measure(guests, frames)


THROUGHPUT = Job("throughput", verify, _measure)
