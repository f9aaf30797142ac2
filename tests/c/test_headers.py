"""Each test_*.c and exhaustive_*.c here is a test: compiled with ASan and UBSan, no Python in it,
run once."""

import os
import re
import shlex
import shutil
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


def instrumented(source: str, program: Path, csrc: Path, *links: str) -> None:
    """Compile as for ThreadSanitizer, which knows no fences; link it only if told to."""
    plain = [flag for flag in FLAGS if not flag.startswith(("-fsanitize", "-fno-sanitize", "-I"))]
    flags = [*plain, "-Wno-tsan", f"-I{csrc}", f"-I{HERE}"]
    compiled = program.with_suffix(".o")
    command = [*CC, *flags, "-fsanitize=thread", "-c", str(HERE / source), "-o", str(compiled)]
    subprocess.run(command, check=True)
    subprocess.run([*CC, str(compiled), "-pthread", *links, "-o", str(program)], check=True)


@pytest.mark.parametrize("source", ["test_races.c", "test_worker.c"])
def test_no_race_between_worker_and_control_plane(source: str, tmp_path: Path) -> None:
    program = tmp_path / "races"
    instrumented(source, program, ROOT / "csrc", "-fsanitize=thread")
    run = subprocess.run(in_place(program), capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


def in_place(program: Path) -> list[str]:
    """ThreadSanitizer of gcc 12 cannot live with every layout that the kernel may choose."""
    return ["setarch", "-R", str(program)] if shutil.which("setarch") else [str(program)]


# What is broken on purpose, to see that it is found: file, what stands there, what instead.
RACES = [
    ("burst.h", "ring->shared && exchange_acquire_u32(&ring->lock, 1)", "false"),
    ("port.h", "(enum fault)load_once_u32(&port->fault)", "(enum fault)port->fault"),
]  # fmt: skip
SECOND_LOADS = [
    ("split.h", "desc = load_once_desc(&ring->desc[index]);",
     "desc = load_once_desc(&ring->desc[load_once_desc(&ring->desc[index]).len ? index : 0]);"),
    ("direct.h", "store_addresses(frame, &addresses[at]);", "(void)0;"),
]  # fmt: skip


def broken(folder: Path, file: str, stands: str, instead: str) -> Path:
    csrc = folder / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    text = (csrc / file).read_text()
    assert text.count(stands) == 1, f"{file} has no such line, or several"
    (csrc / file).write_text(text.replace(stands, instead))
    return csrc


@pytest.mark.parametrize(("file", "stands", "instead"), RACES)
def test_a_race_is_seen(file: str, stands: str, instead: str, tmp_path: Path) -> None:
    program = tmp_path / "races"
    csrc = broken(tmp_path, file, stands, instead)
    instrumented("test_races.c", program, csrc, "-fsanitize=thread")
    for _ in range(10):  # on a busy machine the threads may not meet
        run = subprocess.run(in_place(program), capture_output=True, text=True, timeout=60)
        if "WARNING: ThreadSanitizer: data race" in run.stderr:
            return
    pytest.fail(f"no race was seen: {run.stderr}")


@pytest.mark.parametrize("what", ["one receiver", "flood"])
def test_each_guest_word_is_loaded_once(what: str, tmp_path: Path) -> None:
    program = tmp_path / "read_once"
    instrumented("read_once.c", program, ROOT / "csrc")
    run = subprocess.run([program, what], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(("file", "stands", "instead"), SECOND_LOADS)
def test_a_second_load_is_seen(file: str, stands: str, instead: str, tmp_path: Path) -> None:
    program = tmp_path / "read_once"
    instrumented("read_once.c", program, broken(tmp_path, file, stands, instead))
    run = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert re.search("is loaded at .* and again|memcmp", run.stderr), run.stdout


@pytest.mark.parametrize(
    "header", sorted((ROOT / "csrc").glob("**/*.h")), ids=lambda path: path.name
)
def test_header_stands_alone(header: Path) -> None:
    alone = ["-x", "c", "-fsyntax-only", "-include", str(header), "/dev/null"]
    subprocess.run([*CC, *FLAGS, *alone], check=True)
