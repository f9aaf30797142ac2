"""A whole run: first every byte of every frame, then the back-ends in turn, round by round.

Each turn has a fresh process (but for a back-end that runs already), connected anew. Between turns
we look how near the two CPUs are to each other: a host moves them, and then the price of a cache
line changes by a factor. A round in which it did is done over.
"""

from collections.abc import Callable, Sequence

from vhostfast.bench import place
from vhostfast.bench.backend import Backend, Rows, running
from vhostfast.bench.report import Report, Round
from vhostfast.bench.sample import Sample, connected, measure, verify
from vhostfast.bench.workload import Frames, Plan

APART_MAX = 1.5  # the longest distance of a round, by the shortest
ATTEMPTS_MAX = 3  # of one round

Distance = Callable[[int, int], float]  # of two CPUs, ns
Progress = Callable[[str, float], None]
"""Told what is done now, and the share of all that is done, 0 to 1."""


def run(plan: Plan, rows: Rows, progress: Progress, distance: Distance = place.distance) -> Report:
    """Measure all rows. Raises UsageError, EnvironmentLacks or VhostfastError, with a sentence, as
    soon as something is wrong."""
    place.require_cpus(plan)
    place.require_fds(plan)
    if len({bool(one.sockets) for one in rows.backends}) > 1:
        place.require_free(plan.worker_cpu)
    with place.out_of_the_way(plan):
        steps = _Steps(plan, rows.backends, progress)
        for backend in rows.backends:
            if backend.checked:
                _verify(plan, backend, steps)

        def apart() -> float:
            return distance(plan.worker_cpu, plan.driver_cpu)

        rounds = [
            _round(plan, rows.backends, frames, steps, apart)
            for _ in range(plan.rounds)
            for frames in plan.workload.frames
        ]
    commands = {one.name: one.command or " ".join(one.sockets) for one in rows.backends}
    told = place.describe(), plan.as_dict(), commands
    return Report(*told, rows.subject, rows.versus, tuple(rounds))


class _Steps:
    """How far we are. A turn counts as one step, and so does the pass that verifies a row."""

    def __init__(self, plan: Plan, rows: Sequence[Backend], progress: Progress) -> None:
        turns = plan.rounds * len(plan.workload.frames) * len(rows)
        self._count = turns + sum(row.checked for row in rows)
        self._done = 0
        self._progress = progress

    def begin(self, what: str) -> None:
        self._progress(what, self._done / self._count)

    def end(self, count: int = 1) -> None:
        """`count` steps are done, or fewer than none: they are to be done over."""
        self._done += count


def _verify(plan: Plan, backend: Backend, steps: _Steps) -> None:
    with running(backend, plan) as run, connected(run, plan) as guests:
        for frames in plan.workload.frames:
            steps.begin(f"{backend.name}, {frames.name} B: every byte")
            verify(guests, frames)
    steps.end()


def _round(
    plan: Plan,
    rows: Sequence[Backend],
    frames: Frames,
    steps: _Steps,
    apart: Callable[[], float],
) -> Round:
    attempts, still = 0, False
    while not still and attempts < ATTEMPTS_MAX:
        if attempts:
            steps.end(-len(rows))
        attempts += 1
        samples: dict[str, Sample] = {}
        distances = [apart()]
        for backend in rows:
            steps.begin(f"{backend.name}, {frames.name} B")
            with running(backend, plan) as run, connected(run, plan) as guests:
                samples[backend.name] = measure(guests, frames)
            distances.append(apart())
            steps.end()
        still = max(distances) <= APART_MAX * min(distances)
    return Round(frames.name, samples, tuple(distances), attempts, still)
