"""A run's report without a run: what tests of figures play with."""

from dataclasses import replace
from typing import Any

from vhostfast.bench.latency import Latency
from vhostfast.bench.report import Report, Round
from vhostfast.bench.sample import Sample
from vhostfast.bench.search import LossFree
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


def loss_free(rates: dict[str, tuple[float, ...]] = RATES) -> Report:
    """The same as a search would find it."""
    like = report(rates)
    rounds = tuple(
        replace(
            one,
            samples={
                row: LossFree(sample.mpps, "held", 0.5, 9, 0.0)
                for row, sample in one.samples.items()
            },
        )
        for one in like.rounds
    )
    plan = {**like.plan, "resolution": 0.01, "loss": 0.0}
    return replace(like, rounds=rounds, plan=plan, kind="loss-free")


def latency(mpps: float = 1.0, p50_ns: float = 500.0) -> Latency:
    """A good one, with a tail."""
    times = p50_ns, 2 * p50_ns, 4 * p50_ns, 8 * p50_ns
    return Latency(mpps, *times, 1000, 0.0, 0.0, 0.0, 0.0, 0.5, 7, 0.0)


def latencies(spread: float = 1.0, p50_ns: float = 500.0) -> Report:
    """Two rows at two loads, three rounds, `spread` by `spread` longer."""
    rounds = tuple(
        Round(
            "64",
            {
                "bare": latency(mpps, 100 * mpps),
                "vhostfast": latency(mpps, mpps * p50_ns * (1 + spread * number)),
            },
            (50.0, 51.0),
            attempts=1,
            still=True,
            load=load,
        )
        for number in range(3)
        for load, mpps in (("10%", 1.0), ("90%", 9.0))
    )
    commands = {row: f"run {row}" for row in ("bare", "vhostfast")}
    return report(rounds=rounds, kind="latency", commands=commands, versus=None)
