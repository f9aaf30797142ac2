"""Each test_*.c and exhaustive_*.c here is a test: compiled with ASan and UBSan, no Python in it,
run once."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CC = shlex.split(os.environ.get("CC", "gcc"))
FLAGS = [
    "-std=gnu11", "-D_GNU_SOURCE", "-O0", "-g", "-fno-strict-aliasing", "-fno-omit-frame-pointer",
    "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-Wno-psabi",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread",
    f"-I{ROOT}/csrc",
]  # fmt: skip


@pytest.mark.parametrize("source", sorted(HERE.glob("test_*.c")), ids=lambda path: path.stem)
def test_c(source: Path, tmp_path: Path) -> None:
    program = tmp_path / source.stem
    subprocess.run([*CC, *FLAGS, str(source), "-o", str(program)], check=True)
    run = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("source", sorted(HERE.glob("exhaustive_*.c")), ids=lambda path: path.stem)
def test_every_case_there_is(source: Path, tmp_path: Path) -> None:
    """Not samples: all of a small world, optimized, for there are millions."""
    program = tmp_path / source.stem
    subprocess.run([*CC, *FLAGS, "-O2", str(source), "-o", str(program)], check=True)
    run = subprocess.run([program], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr


def test_what_breaks_off_is_put_right_in_optimized_code_too(tmp_path: Path) -> None:
    """It relies on the order of stores that the compiler keeps (guard.h)."""
    program = tmp_path / "test_mend"
    flags = [flag for flag in FLAGS if not flag.startswith(("-O", "-fsanitize", "-fno-sanitize"))]
    source = str(HERE / "test_mend.c")
    subprocess.run([*CC, *flags, "-O3", source, "-o", str(program)], check=True)
    run = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    "header", sorted((ROOT / "csrc").glob("**/*.h")), ids=lambda path: path.name
)
def test_header_stands_alone(header: Path) -> None:
    alone = ["-x", "c", "-fsyntax-only", "-include", str(header), "/dev/null"]
    subprocess.run([*CC, *FLAGS, *alone], check=True)
