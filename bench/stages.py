"""Where the cycles of a packet go: bench/stages.c, the direct path, compiled as the extensions are.

    python bench/stages.py    # medians, in cycles of the time-stamp counter a packet

Guests and worker share a CPU here, so no line has to come from another cache. What a whole burst
takes beyond its stages is publishing, fences and counting, or less than nothing where stages
overlap.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table
from subjects import compile_c

from vhostfast.errors import VhostfastError


def measure() -> dict[str, dict[int, float]]:
    """Cycles of each stage by the bytes of a frame. Raises VhostfastError."""
    with TemporaryDirectory() as folder:
        program = Path(folder, "stages")
        compile_c(program, "stages.c")
        run = subprocess.run([str(program)], capture_output=True, text=True)
    if run.returncode != 0:
        raise VhostfastError("bench/stages.c: not every frame arrived as it was sent")
    found: dict[str, dict[int, float]] = {}
    for line in run.stdout.splitlines():
        size, stage, cycles = line.split("\t")
        found.setdefault(stage, {})[int(size)] = float(cycles)
    return found


def main() -> int:
    try:
        found = measure()
    except VhostfastError as error:
        print(f"stages.py: {error}", file=sys.stderr)
        return 1
    sizes = list(next(iter(found.values())))
    table = Table("stage", *(f"{size} B" for size in sizes), title="cycles a packet")
    for stage, cycles in found.items():
        table.add_row(stage, *(f"{cycles[size]:.1f}" for size in sizes))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
