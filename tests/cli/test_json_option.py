"""A file that is given to --json: each command says, before it begins, how that goes."""

import sys

import pytest

import vhostfast.bench.idle  # noqa: F401  the extensions keep two fds from when they are loaded
from vhostfast.cli.main import WRONG_USAGE, main


def said(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["vhostfast", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == WRONG_USAGE
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize(
    "words",
    [
        "bench --json a.json",
        "bench --sizes 64 --json a.json",
        "bench latency --json a.json",
        "bench loss-free --json a.json --rounds 1",
        "bench idle --json a.json",
        "demo --json a.json",
        "audit-migration --socket /nowhere --json a.json",
        "switch --port a=vhost-user:/nowhere/a --json a.json",
    ],
)
def test_a_file_is_for_the_shell(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    err = said(words, monkeypatch, capsys)
    assert err == "vhostfast: --json prints on stdout: write --json > a.json\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("bench --json latency", "--json: give it behind latency"),
        ("bench idle --json --ports 1", "--ports 1: give 2 to 256"),
        ("bench compare --json pyproject.toml Makefile", "pyproject.toml is not what"),
    ],
)
def test_a_word_that_is_no_file_to_write(
    words: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in said(words, monkeypatch, capsys)
