"""A run's report without a run: what tests of figures play with."""

from typing import Any

from vhostfast.bench.report import Report, Round
from vhostfast.bench.sample import Sample
from vhostfast.bench.workload import Frames, Plan, Workload

RATES = {"null": (99.0, 97.0, 98.0), "bare": (20.0, 10.0, 40.0), "dpdk": (4.0, 2.0, 5.0),
         "vhostfast": (12.0, 8.0, 30.0)}  # fmt: skip


def report(rates: dict[str, tuple[float, ...]] = RATES, **change: Any) -> Report:
    """One frame size, and as many rounds as each row has rates."""
    rounds = tuple(
        Round(
            "64",
            {row: Sample(mpps, 100.0, 0.5, 0.25, 7, 0.0) for row, mpps in turn},
            (50.0, 51.0),
            attempts=1,
            still=True,
        )
        for turn in zip(
            *([(row, mpps) for mpps in values] for row, values in rates.items()), strict=True
        )
    )
    plan = Plan(Workload((Frames("64", (64,)),))).as_dict()
    values: dict[str, Any] = {
        "machine": {"cpu": "x", "cpus": 2, "kernel": "6"}, "plan": plan,
        "commands": {row: f"run {row}" for row in rates},
        "subject": "vhostfast", "versus": "dpdk" if "dpdk" in rates else None, "rounds": rounds,
    }  # fmt: skip
    return Report(**{**values, **change})
