"""What tests with real peers share."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for sockets: pytest's own have names too long for them."""
    path = Path(tempfile.mkdtemp(prefix="vhostfast-"))
    yield path
    shutil.rmtree(path)
