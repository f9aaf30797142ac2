"""The linters and type checkers, each a test. Their configuration: pyproject.toml, .clang-tidy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
EXTENSIONS = [f"vhostfast.core.{path.stem}" for path in sorted(ROOT.glob("vhostfast/core/*.pyi"))]
HEADERS_OF_THE_DRIVER = ("pace", "dirty", "bare", "distance")
# Headers that no other header includes: the rest is checked with them.
HEADERS = [
    f"csrc/{name}.h"
    for name in ("device", "worker", *(f"driver/{name}" for name in HEADERS_OF_THE_DRIVER))
]
C_FLAGS = ["-x", "c", "-std=gnu11", "-D_GNU_SOURCE", "-Icsrc"]

TOOLS = {
    "ruff check": ["ruff", "check", "."],
    "ruff format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy"],
    "stubtest": ["stubtest", *EXTENSIONS],
    "cython-lint": ["cython-lint", "vhostfast/core"],
    **{
        f"clang-tidy {header}": ["clang-tidy", "--quiet", header, "--", *C_FLAGS]
        for header in HEADERS
        if (ROOT / header).exists()
    },
}


@pytest.mark.parametrize("tool", TOOLS)
def test_tool_has_nothing_to_say(tool):
    program, *arguments = TOOLS[tool]
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"  # cython-lint looks for pycodestyle in it
    run = subprocess.run(
        [BIN / program, *arguments],
        cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, f"\n{run.stdout}{run.stderr}"
