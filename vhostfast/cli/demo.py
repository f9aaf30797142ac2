"""vhostfast demo: the whole path on this machine, without root, hugepages or QEMU."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vhostfast.cli.ending import end_as_by_ctrl_c
from vhostfast.cli.json_option import json_option

if TYPE_CHECKING:
    from vhostfast.bench.pair import Result

SIZES = (64, 512, 1500)


def demo(
    seconds: Annotated[
        float, typer.Option(min=0.1, max=60.0, help="How long to send frames of each size.")
    ] = 2.5,
    as_json: Annotated[bool, json_option("Results as JSON.")] = False,
) -> None:
    """Two built-in virtual machines exchange verified packets through the switch.

    Both send frames of 64, 512 and 1500 bytes and check every byte of what they receive. Exit code
    1 if a packet was lost, corrupt, repeated or out of order.
    """
    import asyncio

    from vhostfast.bench.pair import exchange

    end_as_by_ctrl_c()
    if as_json:
        results = asyncio.run(exchange(SIZES, seconds, lambda *_: None))
        print(json.dumps([asdict(one) | {"mpps": one.mpps, "gbps": one.gbps} for one in results]))
    else:
        results = _with_progress(seconds)
        _print_table(results)
    raise typer.Exit(0 if all(result.good for result in results) else 1)


def _with_progress(seconds: float) -> "list[Result]":
    import asyncio

    from rich.progress import BarColumn, Progress, TextColumn

    from vhostfast.bench.pair import exchange

    columns = TextColumn("{task.description:>10}"), BarColumn(), TextColumn("{task.fields[count]}")
    with Progress(*columns) as bar:
        tasks = {size: bar.add_task(f"{size} bytes", total=1.0, count="waiting") for size in SIZES}

        def progress(size: int, packets: int, share: float) -> None:
            bar.update(tasks[size], completed=share, count=f"{packets:,} packets")

        return asyncio.run(exchange(SIZES, seconds, progress))


def _print_table(results: "list[Result]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="VM to VM through vhostfast switch, both ways together")
    for heading in ("bytes", "packets", "Mpps", "Gbit/s", "worker cycles\na packet"):
        table.add_column(heading, justify="right")
    for heading in ("lost", "corrupt", "reordered"):
        table.add_column(heading, justify="right")
    for one in results:
        faults = (one.lost, one.corrupt, one.reordered)
        figures = (f"{one.mpps:.2f}", f"{one.gbps:.2f}", f"{one.cycles:.0f}", *map(str, faults))
        table.add_row(str(one.size), f"{one.packets:,}", *figures, style="" if one.good else "red")
    Console().print(table)
