"""Options that are written once: each command has them, less those that are settled for it."""

import inspect
from dataclasses import fields
from pathlib import Path

import pytest

from vhostfast.cli.bench_options import Options, with_options


def _command(options: Options, own: int, other: str = "x") -> None:
    seen.append((options, own, other))


seen: list[tuple[Options, int, str]] = []


@pytest.fixture(autouse=True)
def unseen() -> None:
    seen.clear()


def test_a_command_gets_them_all_as_one() -> None:
    command = with_options(_command, {"queues": 3}, {"sizes": "99"})
    parameters = inspect.signature(command).parameters
    names = [field.name for field in fields(Options) if field.name != "queues"]
    assert list(parameters) == ["own", "other", *names]
    assert parameters["sizes"].default == "99"
    assert command.__doc__ == _command.__doc__
    defaults = {name: parameters[name].default for name in names}
    command(own=7, other="y", **defaults | {"ring_size": 64, "plot": Path("a.svg")})
    ((options, own, other),) = seen
    assert (own, other) == (7, "y")
    assert (options.queues, options.sizes, options.ring_size) == (3, "99", 64)
    assert options.plot == Path("a.svg")
    assert options.pattern == Options().pattern
