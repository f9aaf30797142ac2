"""The picture shows what the report says: every row, every figure, and their spread."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import RATES, latencies, loss_free, report

from vhostfast.bench.plot import draw, require
from vhostfast.bench.report import Report
from vhostfast.errors import EnvironmentLacks, UsageError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def fonts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """matplotlib keeps open those that it has used: before fds are counted."""
    for one in (report(), latencies()):
        draw(one, tmp_path_factory.mktemp("fonts") / "run.svg")


def drawn(one: Report, folder: Path) -> str:
    path = folder / "run.svg"
    draw(one, path)
    text = path.read_text()
    assert text.startswith("<?xml")
    return re.sub(r'id="\w+"|#\w+', "", text)  # made anew each time


@pytest.mark.parametrize("make", [report, loss_free])
def test_rates_by_size(make: object, tmp_path: Path) -> None:
    assert callable(make)
    picture = drawn(make(), tmp_path)
    for word in (*RATES, "millions of packets a second", "bytes of a frame", "3 rounds", ">64<"):
        assert word in picture.replace("5 rounds", "3 rounds")
    wider = drawn(make({**RATES, "vhostfast": (12.0, 1.0, 30.0)}), tmp_path)
    assert wider != picture  # the same median


def test_times_against_the_load(tmp_path: Path) -> None:
    picture = drawn(latencies(), tmp_path)
    for row in ("bare", "vhostfast"):
        for quantile in ("p50", "p99", "p99.9"):
            assert f">{row} {quantile}<" in picture
    for word in ("microseconds", "offered", "64 bytes"):
        assert word in picture
    assert drawn(latencies(spread=2.0), tmp_path) != picture
    assert drawn(latencies(), tmp_path) == picture


def test_a_place_where_it_can_not_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--plot /tmp/x.png: give a name that ends in .svg"):
        require(Path("/tmp/x.png"))
    with pytest.raises(EnvironmentLacks, match="there is no folder /no/such"):
        require(Path("/no/such/x.svg"))
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(EnvironmentLacks, match=r"folder.svg: Is a directory"):
        draw(report(), tmp_path / "folder.svg")


def test_without_matplotlib(tmp_path: Path) -> None:
    """As where only `pip install vhostfast` was done."""
    (tmp_path / "run.json").write_text(json.dumps(report().as_dict()))
    command = (
        "import sys; sys.modules['matplotlib'] = None\nfrom vhostfast.cli.main import main; main()"
    )
    for options in (["plot", "run.json", "x.svg"], ["--plot=x.svg"], ["latency", "--plot=x.svg"]):
        done = subprocess.run(
            [sys.executable, "-c", command, "bench", *options],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 3
        assert done.stderr == (
            "vhostfast: matplotlib isn't installed: pip install 'vhostfast[plot]'\n"
        )
