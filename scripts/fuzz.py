#!/usr/bin/env python3
"""Fuzzes what reads guest memory: tests/fuzz/fuzz_*.c by clang's libFuzzer, with ASan and UBSan.

    scripts/fuzz.py                        each target for FUZZ_SECONDS (60), two at a time
    scripts/fuzz.py forward split          these
    scripts/fuzz.py --keep                 what is new in coverage is added to the corpora

A run begins with the corpus in tests/fuzz/corpus/TARGET.txt: an input a line, in Base64. --keep has
libFuzzer choose the fewest, and smallest, that reach what all do, those of earlier runs in
build/fuzz/TARGET.new with them. Exit code 1: something was found; what, in which file its input
stands and how to run it again is said at the end. 3: clang is missing.
"""

import argparse
import base64
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "tests" / "fuzz"
CORPORA = SOURCES / "corpus"
BUILD = ROOT / "build" / "fuzz"
AT_A_TIME = 2
TARGETS = sorted(path.stem.removeprefix("fuzz_") for path in SOURCES.glob("fuzz_*.c"))
FLAGS = [
    "-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-fno-strict-aliasing", "-fno-omit-frame-pointer",
    "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-pthread",
    "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all",
    "-fsanitize-coverage=trace-loads", f"-I{ROOT}/csrc", f"-I{ROOT}/tests/c",
]  # fmt: skip
# SIGBUS is the guard's; a run of 20 s hangs.
LIMITS = ["-handle_bus=0", "-timeout=20"]
# What says what is wrong: a check of ours (tests/c/check.h), a sanitizer or libFuzzer itself.
COMPLAINT = re.compile(r"^.*(?:\.[ch]:\d+: |runtime error: |ERROR: \w+: ).*$", re.MULTILINE)
WRITTEN = re.compile(r"Test unit written to (.+)")


def build(target: str, clang: str) -> Path:
    program = BUILD / target
    source = str(SOURCES / f"fuzz_{target}.c")
    subprocess.run([clang, *FLAGS, source, "-o", str(program)], check=True)
    return program


def seeds(target: str) -> list[bytes]:
    path = CORPORA / f"{target}.txt"
    return [base64.b64decode(line) for line in path.read_text().split()] if path.exists() else []


def fuzz(program: Path, new: Path, seconds: int) -> tuple[bool, str]:
    """Whether nothing was found, and all that libFuzzer said. What is new goes into `new`."""
    for seed in seeds(program.name):
        (new / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    command = [str(program), *LIMITS, "-max_len=2048", "-print_final_stats=1",
               f"-max_total_time={seconds}", f"-artifact_prefix={BUILD}/{program.name}-",
               str(new)]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.returncode == 0, run.stderr


def keep(program: Path, new: Path) -> None:
    """The corpus becomes the fewest inputs that reach every edge that `new` does."""
    with tempfile.TemporaryDirectory() as merged:
        command = [str(program), *LIMITS, "-max_len=2048", "-set_cover_merge=1",
                   "-use_counters=0", merged, str(new)]  # fmt: skip
        subprocess.run(command, capture_output=True, check=True)
        inputs = sorted(path.read_bytes() for path in Path(merged).iterdir())
    CORPORA.mkdir(exist_ok=True)
    lines = [base64.b64encode(each).decode() + "\n" for each in inputs]
    (CORPORA / f"{program.name}.txt").write_text("".join(lines))


def summary(target: str, said: str) -> str:
    runs = re.search(r"number_of_executed_units: (\d+)", said)
    reached = re.findall(r"cov: (\d+) ft: (\d+)", said) or [("?", "?")]
    return (
        f"fuzz: {target:8} {int(runs[1]) if runs else 0:11,} runs, {reached[-1][0]} edges"
        f" and {reached[-1][1]} features reached"
    )


def found(program: Path, said: str) -> str:
    """What a target found, where its input stands, and the command that runs it again."""
    complaint, written = COMPLAINT.search(said), WRITTEN.search(said)
    lines = [
        f"fuzz: {program.name} FOUND: {complaint[0] if complaint else 'it ended, and said not why'}"
    ]
    if written:
        command = [os.path.relpath(program), *LIMITS, os.path.relpath(written[1])]
        lines += [f"  input: {written[1]}", f"  again: {shlex.join(command)}"]
    return "\n".join(lines)


def work(target: str, clang: str, seconds: int, keeps: bool) -> str | None:
    """What was found, if anything was."""
    program, new = build(target, clang), BUILD / f"{target}.new"
    new.mkdir(exist_ok=True)
    good, said = fuzz(program, new, seconds)
    if not good:
        print(said, flush=True)
        return found(program, said)
    print(summary(target, said), flush=True)
    if keeps:
        keep(program, new)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; none: all")
    parser.add_argument("--seconds", type=int, default=int(os.environ.get("FUZZ_SECONDS", "60")))
    parser.add_argument("--keep", action="store_true", help="make the corpora anew")
    options = parser.parse_args(arguments)
    if strangers := set(options.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(strangers)} (there are {', '.join(TARGETS)})")
    clang = shutil.which(os.environ.get("CLANG", "clang"))
    if clang is None:
        print("fuzz: clang is missing: scripts/install-peers installs it", file=sys.stderr)
        return 3
    BUILD.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        jobs = [
            pool.submit(work, target, clang, options.seconds, options.keep)
            for target in options.targets or TARGETS
        ]
    finds = [find for job in jobs if (find := job.result())]
    print("\n".join(finds or [f"fuzz: nothing found by {len(jobs)} targets"]))
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
