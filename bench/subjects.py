"""bench/steps.c as a library: compiled as the extensions are, its loops without Python.

A call does a step COUNT times, so what a table gives in us a call is ns a step.
"""

import ast
import ctypes
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from vhostfast.core import fabric
from vhostfast.errors import VhostfastError

HERE = Path(__file__).parent
ROOT = HERE.parent
CC = "gcc"
COUNT = 1000
LAYOUTS = ("direct", "chained", "indirect")  # enum pool_layout
LEVELS = {name: fabric.LEVELS.index(name) for name in reversed(fabric.levels())}  # this CPU's


def c_flags() -> list[str]:
    """What setup.py compiles the extensions with."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "flags":
            return [*ast.literal_eval(node.value), "-D_GNU_SOURCE", f"-I{ROOT / 'csrc'}"]
    raise LookupError("setup.py has no flags")


def compile_c(program: Path, *arguments: str) -> None:
    """From files of this folder, and options."""
    words = [str(HERE / word) if word.endswith(".c") else word for word in arguments]
    run = subprocess.run([CC, *c_flags(), *words, "-pthread", "-o", str(program)])
    if run.returncode != 0:
        raise VhostfastError(f"{' '.join(arguments)} doesn't compile: see above")


class Steps(ctypes.CDLL):
    """The functions of steps.h; arguments and results are numbers."""

    _func_restype_ = ctypes.c_uint64


@cache
def steps() -> Steps:
    with TemporaryDirectory() as folder:
        library = Path(folder, "steps.so")
        compile_c(library, "steps.c", "-fPIC", "-shared")
        return Steps(str(library))


def shapes() -> list[str]:
    """What a burst can be like; prepare_burst takes the place in this list."""
    addresses = iter(map(steps().shape_name, range(100)).__next__, 0)
    return [ctypes.string_at(address).decode() for address in addresses]
