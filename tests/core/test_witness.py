"""The kernel's record of written pages, through two maps of one memfd: ours, and somebody's."""

import errno
import os
import re
import subprocess
import sys

import forbid
import numpy as np
import pytest

from vhostfast.core.driver import Mapping
from vhostfast.core.witness import SYS_USERFAULTFD, Witness
from vhostfast.errors import EnvironmentLacks

PAGES = 3000  # more ranges, if every second page is written, than one scan gives
PAGE = 4096
USERFAULTFD = SYS_USERFAULTFD[os.uname().machine]


@pytest.fixture
def maps():
    fd = os.memfd_create("memory")
    os.ftruncate(fd, PAGES * PAGE)
    yield [Mapping(fd, PAGES * PAGE).array() for _ in range(2)]
    os.close(fd)


@pytest.fixture
def witness(maps):
    witness = Witness([(maps[0].ctypes.data, PAGES * PAGE)])
    yield witness
    witness.close()


def pages(witness, memory):
    """The pages of `memory` that the witness names."""
    return [
        page
        for address, size in witness.written()
        for page in range(
            (address - memory.ctypes.data) // PAGE, (address - memory.ctypes.data + size) // PAGE
        )
    ]


def test_each_written_page_once(maps, witness):
    ours, _ = maps
    assert pages(witness, ours) == []
    ours[5] = 1
    ours[8 * PAGE - 1 : 9 * PAGE + 1] = 1
    ours[-1] = 1
    assert pages(witness, ours) == [0, 7, 8, 9, PAGES - 1]
    assert pages(witness, ours) == []
    ours[9 * PAGE] = 2
    assert pages(witness, ours) == [9]


def test_the_same_bytes_again(maps, witness):
    maps[0][PAGE] = maps[0][PAGE]
    assert pages(witness, maps[0]) == [1]


def test_reading_is_no_writing(maps, witness):
    assert int(maps[0].sum()) == 0
    assert pages(witness, maps[0]) == []


def test_writes_of_others_are_theirs(maps, witness):
    ours, theirs = maps
    theirs[::PAGE] = 1
    assert pages(witness, ours) == []
    assert int(ours[PAGE]) == 1


def test_more_ranges_than_one_scan_gives(maps, witness):
    maps[0][:: 2 * PAGE] = 1
    assert pages(witness, maps[0]) == list(range(0, PAGES, 2))
    assert pages(witness, maps[0]) == []


def test_what_was_written_before_is_not_in_it(maps):
    maps[0][:] = 1
    witness = Witness([(maps[0].ctypes.data, PAGES * PAGE)])
    assert witness.written() == []
    witness.close()
    witness.close()
    maps[0][:] = 2
    again = Witness([(maps[0].ctypes.data, PAGES * PAGE)])
    maps[0][0] = 3
    assert pages(again, maps[0]) == [0]
    again.close()


def test_several_maps(maps):
    ours, theirs = maps
    both = Witness([(array.ctypes.data, 4 * PAGE) for array in maps])
    ours[0] = theirs[PAGE] = theirs[4 * PAGE] = 1
    assert sorted(both.written()) == sorted(
        [(ours.ctypes.data, PAGE), (theirs.ctypes.data + PAGE, PAGE)]
    )
    both.close()


def test_a_map_that_is_none():
    with pytest.raises(EnvironmentLacks, match="no record of written pages"):
        Witness([(np.zeros(1).ctypes.data & 7 | 1, PAGE)])


@pytest.mark.parametrize(
    ("code", "sentence"),
    [(errno.EPERM, "forbidden here: allow .*userfaultfd"), (errno.ENOSYS, "takes 6.7 or newer")],
)
def test_a_kernel_that_keeps_no_record(code, sentence):
    ask = "from vhostfast.core.witness import SYS_USERFAULTFD, Witness; Witness([])"
    command = [sys.executable, forbid.__file__, str(USERFAULTFD), str(code)]
    run = subprocess.run(
        [*command, sys.executable, "-c", ask], capture_output=True, text=True, check=False
    )
    assert re.search(f"EnvironmentLacks: .*{sentence}", run.stderr)
