"""A whole run: first every byte of every frame, then the back-ends in turn, round by round.

Each turn has a fresh process (but for a back-end that runs already), connected anew. Between turns
we look how near the two CPUs are to each other: a host moves them, and then the price of a cache
line changes by a factor. A round in which it did is done over.
"""

from collections.abc import Callable, Sequence
from typing import Any

from vhostfast.bench import place
from vhostfast.bench.backend import NULL, Backend, Rows, running
from vhostfast.bench.job import THROUGHPUT, Job
from vhostfast.bench.report import Report, Round
from vhostfast.bench.sample import connected
from vhostfast.bench.workload import Frames, Plan

APART_MAX = 1.5  # the longest distance of a round, by the shortest
ATTEMPTS_MAX = 3  # of one round

Distance = Callable[[int, int], float]  # of two CPUs, ns
Progress = Callable[[str, float], None]
"""Told what is done now, and the share of all that is done, 0 to 1."""


def run(
    plan: Plan,
    rows: Rows,
    progress: Progress,
    distance: Distance = place.distance,
    job: Job[Any] = THROUGHPUT,
) -> Report:
    """Do the job with all rows. Raises UsageError, EnvironmentLacks or VhostfastError, with a
    sentence, as soon as something is wrong."""
    place.require_cpus(plan)
    place.require_fds(plan)
    if len({bool(one.sockets) for one in rows.backends}) > 1:
        place.require_free(plan.worker_cpu)
    backends = [one for one in rows.backends if job.null or one.name != NULL]
    with place.out_of_the_way(plan):
        steps = _Steps(plan, backends, job, progress)
        for backend in backends:
            if backend.checked:
                _first(plan, backend, job, steps)

        def apart() -> float:
            return distance(plan.worker_cpu, plan.driver_cpu)

        rounds = [
            _round(plan, backends, (frames, load), job, steps, apart)
            for _ in range(plan.rounds)
            for frames in plan.workload.frames
            for load in job.loads
        ]
    commands = {one.name: one.command or " ".join(one.sockets) for one in backends}
    told = place.describe(), plan.as_dict() | job.settings, commands
    return Report(*told, rows.subject, rows.versus, tuple(rounds), job.kind)


class _Steps:
    """How far we are. A turn counts as one step, and so does the pass that verifies a row."""

    def __init__(
        self, plan: Plan, rows: Sequence[Backend], job: Job[Any], progress: Progress
    ) -> None:
        turns = plan.rounds * len(plan.workload.frames) * len(job.loads) * len(rows)
        self._count = turns + sum(row.checked for row in rows)
        self._done = 0
        self._progress = progress

    def begin(self, what: str) -> None:
        self._progress(what, self._done / self._count)

    def end(self, count: int = 1) -> None:
        """`count` steps are done, or fewer than none: they are to be done over."""
        self._done += count


def _first(plan: Plan, backend: Backend, job: Job[Any], steps: _Steps) -> None:
    with running(backend, plan) as run, connected(run, plan) as guests:
        for frames in plan.workload.frames:
            steps.begin(f"{backend.name}, {frames.name} B: every byte")
            job.first(guests, frames)
    steps.end()


def _round(
    plan: Plan,
    rows: Sequence[Backend],
    case: tuple[Frames, str],
    job: Job[Any],
    steps: _Steps,
    apart: Callable[[], float],
) -> Round:
    attempts, still = 0, False
    frames, load = case
    while not still and attempts < ATTEMPTS_MAX:
        if attempts:
            steps.end(-len(rows))
        attempts += 1
        samples: dict[str, Any] = {}
        distances = [apart()]
        for backend in rows:
            steps.begin(f"{backend.name}, {frames.name} B{load and f' at {load}'}")
            with running(backend, plan) as run, connected(run, plan) as guests:
                samples[backend.name] = job.turn(guests, frames, load)
            distances.append(apart())
            steps.end()
        still = max(distances) <= APART_MAX * min(distances)
    return Round(frames.name, samples, tuple(distances), attempts, still, load)
