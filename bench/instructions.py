"""Instructions a packet on the main paths, held against those stored: times are noise on a shared
machine, counts are not.

    python bench/instructions.py            # exit code 1: names what rose or fell by more than 2 %
    python bench/instructions.py --store    # what is counted now is what shall be

Callgrind counts bench/instructions.c, compiled as the extensions are. Each case is done N times and
2 N times; the difference, divided by N, is the count, so nothing of the start is in it. A lower
count fails too, until it is stored: else the next rise would hide behind it.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from subjects import CC, HERE, compile_c

from vhostfast.errors import EnvironmentLacks, VhostfastError

STORED = HERE / "instructions.json"
TOLERANCE = 0.02
STORE = ".venv/bin/python bench/instructions.py --store"


@dataclass(frozen=True)
class Counts:
    """Instructions a packet (or a turn, or a step) by case, and which compiler made them."""

    compiler: str
    counts: dict[str, float]

    @classmethod
    def load(cls, path: Path) -> "Counts":
        return cls(**json.loads(path.read_text()))

    def store(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


def compiler() -> str:
    for tool, package in ((CC, "gcc"), ("valgrind", "valgrind")):
        if shutil.which(tool) is None:
            raise EnvironmentLacks(f"{tool} isn't in PATH: apt-get install {package}")
    run = subprocess.run([CC, "-dumpfullversion"], capture_output=True, text=True, check=True)
    return f"{CC} {run.stdout.strip()}"


def measure() -> Counts:
    """Count all cases. Raises EnvironmentLacks where that can't be done."""
    made_by = compiler()
    with TemporaryDirectory() as name:
        folder = Path(name)
        compile_c(folder / "program", "steps.c", "instructions.c")
        run = subprocess.run(
            [
                "valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={folder}/out",
                "--toggle-collect=timed_*", "--dump-after=end_of_count", str(folder / "program"),
            ],
            capture_output=True, text=True,
        )  # fmt: skip
        if run.returncode == 3:
            raise EnvironmentLacks(run.stderr.strip())
        if run.returncode != 0:
            raise VhostfastError(f"bench/instructions.c failed:\n{run.stderr}")
        cases = [line.partition(" ") for line in run.stdout.splitlines()]
        # A dump for N, a dump for 2 N, and so on; the last one, of what follows, has no number.
        totals = [_total(folder / f"out.{i + 1}") for i in range(2 * len(cases))]
    return Counts(
        made_by,
        {
            case: round((twice - once) / int(often), 2)
            for (often, _, case), once, twice in zip(cases, totals[::2], totals[1::2], strict=True)
        },
    )


def _total(dump: Path) -> int:
    found = re.search(r"^totals: (\d+)$", dump.read_text(), re.MULTILINE)
    if found is None:
        raise VhostfastError(f"{dump.name}: callgrind wrote no totals")
    return int(found[1])


def differences(stored: Counts, counted: Counts) -> list[str]:
    """A sentence for each case that is not what is stored."""
    said = []
    for case in stored.counts | counted.counts:
        before, now = stored.counts.get(case), counted.counts.get(case)
        if before is None or now is None:
            said.append(f"{case}: " + ("is not stored" if before is None else "is no longer there"))
        elif abs(now - before) > TOLERANCE * before:
            verb = "rose" if now > before else "fell"
            change = 100 * (now - before) / before
            said.append(f"{case}: {verb} from {before:.2f} to {now:.2f} ({change:+.1f} %)")
    return said


def check(stored: Counts, counted: Counts) -> int:
    """Print the verdict; the exit code."""
    said = differences(stored, counted)
    for sentence in said:
        print(sentence)
    if said:
        print(
            f"{len(said)} of {len(counted.counts)} counts are not those of {STORED.name}. Where it"
            f" rose, find out why; where it fell, or shall stay as it is: {STORE}"
        )
        return 1
    print(f"{len(counted.counts)} counts are within {TOLERANCE:.0%} of those stored")
    return 0


def require_same_compiler(stored: Counts) -> None:
    here = compiler()
    if stored.compiler != here:
        raise EnvironmentLacks(
            f"the counts stored are of {stored.compiler}, here is {here}: nothing was compared."
            f" Check with {stored.compiler} or, if the project has moved to {here}, {STORE}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Instructions a packet, against those stored.")
    parser.add_argument("--store", action="store_true", help="store what is counted now")
    parser.add_argument("--file", type=Path, default=STORED, help="where they are stored")
    options = parser.parse_args()
    try:
        if options.store:
            counted = measure()
            counted.store(options.file)
            print(f"{options.file}: {len(counted.counts)} counts of {counted.compiler}")
            return 0
        if not options.file.exists():
            parser.error(f"{options.file} is not there; {STORE}")
        stored = Counts.load(options.file)
        require_same_compiler(stored)
        return check(stored, measure())
    except VhostfastError as error:
        print(f"instructions.py: {error}", file=sys.stderr)
        return 3 if isinstance(error, EnvironmentLacks) else 1


if __name__ == "__main__":
    sys.exit(main())
