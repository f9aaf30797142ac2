"""Build the extensions; everything else is in pyproject.toml.

VHOSTFAST_SANITIZE=address,undefined builds them with those sanitizers.
"""

import os
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

sanitize = os.environ.get("VHOSTFAST_SANITIZE")
flags = ["-std=gnu11", "-O3", "-g1", "-fno-strict-aliasing", "-Wall", "-Wno-unused-function"]
link: list[str] = []
DIRECTIVES = {"language_level": 3, "auto_pickle": False, "autotestdict": False}
if sanitize:
    flags += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-O1"]
    link += [f"-fsanitize={sanitize}"]


def extension(path: Path) -> Extension:
    return Extension(
        ".".join(path.with_suffix("").parts),
        [str(path)],
        include_dirs=["csrc"],
        depends=glob("csrc/**/*.h", recursive=True),
        extra_compile_args=flags,
        extra_link_args=link,
    )


setup(
    ext_modules=cythonize(
        [extension(path) for path in sorted(Path("vhostfast/core").glob("*.pyx"))],
        build_dir="build/cython",
        compiler_directives=DIRECTIVES,
    ),
    options={"build_ext": {"parallel": os.cpu_count()}},
)
