"""A report as a picture: rates by frame size, or times against the load, with their spread.

matplotlib is needed for this alone, and comes with vhostfast[plot].
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vhostfast.bench.report import Report, Spread
from vhostfast.errors import EnvironmentLacks, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TIMES = {"p50_ns": "-", "p99_ns": "--", "p999_ns": ":"}  # and how they are drawn
NAMES = {"p50_ns": "p50", "p99_ns": "p99", "p999_ns": "p99.9"}
WIDTH = 0.8  # of the bars of a size together, 1 being from one size to the next
BAND = 0.15  # how dark a spread is


def require(path: Path) -> None:
    """Raises UsageError or EnvironmentLacks if `draw` could not do this, before all the work."""
    if path.suffix != ".svg":
        raise UsageError(f"--plot {path}: give a name that ends in .svg")
    if not path.parent.is_dir():
        raise EnvironmentLacks(f"--plot {path}: there is no folder {path.parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise EnvironmentLacks("matplotlib isn't installed: pip install 'vhostfast[plot]'")


def draw(report: Report, path: Path) -> None:
    """Write the picture, SVG. Raises as `require`, and EnvironmentLacks if it can't be written."""
    require(path)
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none"}):  # words stay words
        _draw(report, path)


def _draw(report: Report, path: Path) -> None:
    from matplotlib.figure import Figure

    panels = report.frames() if report.kind == "latency" else [""]
    figure = Figure(figsize=(6.4 * len(panels), 4.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    if report.kind == "latency":
        for frames, part in zip(panels, axes, strict=True):
            _times(report, frames, part)
    else:
        _rates(report, axes[0])
    work, plan = report.plan["workload"], report.plan
    figure.suptitle(
        f"{report.kind}, {work['pattern']}, load {work['load']}, {work['ring_size']} entries,"
        f" {plan['rounds']} rounds: median, lowest, highest\n{report.machine['cpu']}",
        fontsize="small",
    )
    try:
        figure.savefig(path, format="svg", metadata={"Date": None})
    except OSError as error:
        raise EnvironmentLacks(f"--plot {path}: {error.strerror}") from None


def _rates(report: Report, axes: "Axes") -> None:
    """A bar for each row, in groups by size."""
    sizes = report.frames()
    width = WIDTH / len(report.commands)
    for number, row in enumerate(report.commands):
        spreads = [report.figures(frames, row) for frames in sizes]
        places = [
            at + (number - (len(report.commands) - 1) / 2) * width for at in range(len(sizes))
        ]
        heights = [one.median for one in spreads]
        axes.bar(places, heights, width, yerr=_from_median(spreads), capsize=3, label=row)
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set_xlabel("bytes of a frame")
    axes.set_ylabel("millions of packets a second")
    axes.legend()


def _times(report: Report, frames: str, axes: "Axes") -> None:
    """A colour for each row, a line for each quantile."""
    for number, row in enumerate(report.commands):
        points = sorted(
            (report.figures(frames, row, "mpps", load).median, load) for load in report.loads()
        )
        rates = [mpps for mpps, _ in points]
        for what, style in TIMES.items():
            spreads = [report.figures(frames, row, what, load).scaled(1e-3) for _, load in points]
            look: dict[str, Any] = {"color": f"C{number}"}
            medians = [one.median for one in spreads]
            label = f"{row} {NAMES[what]}"
            axes.plot(rates, medians, style, marker="o", label=label, **look)
            lows, highs = ([getattr(one, end) for one in spreads] for end in ("low", "high"))
            axes.fill_between(rates, lows, highs, alpha=BAND, linewidth=0, **look)
    axes.set_yscale("log")
    axes.set_title(f"{frames} bytes")
    axes.set_xlabel("millions of packets a second, offered")
    axes.set_ylabel("microseconds")
    axes.legend(fontsize="small")


def _from_median(spreads: list[Spread]) -> list[list[float]]:
    """How far down to the lowest, and up to the highest."""
    return [
        [one.median - one.low for one in spreads],
        [one.high - one.median for one in spreads],
    ]
