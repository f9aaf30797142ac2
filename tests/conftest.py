"""What holds for every test: it leaves no fd behind, and closes none that it did not open."""

import gc
import os
from collections.abc import Iterator

import pytest
from host import closed


def open_fds() -> dict[int, str]:
    """Every fd of this process and what it is: a path, or a kind and an inode. Those that a thread
    is about to close are none."""
    closed()
    fds = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            fds[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the directory that was being listed
    return fds


@pytest.fixture(autouse=True)
def same_fds() -> Iterator[None]:
    before = open_fds()
    yield
    if open_fds() != before:
        gc.collect()  # a fabric, its ports and its workers know each other
    assert open_fds() == before, "the test changed the fds of the process"
