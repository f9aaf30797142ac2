"""What the figures of some rounds come to, and that JSON keeps them all."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import RATES, latencies, loss_free, report

from vhostfast.bench.report import Report, load
from vhostfast.errors import EnvironmentLacks, UsageError


def test_medians_and_ranges() -> None:
    rate = report().figures("64", "vhostfast")
    assert (rate.median, rate.low, rate.high) == (12.0, 8.0, 30.0)
    assert report().figures("64", "vhostfast", "lost").median == 0.25
    assert report().frames() == ["64"]
    assert report().frame_mean("64") == 64


def test_ratios_are_of_rounds_not_of_medians() -> None:
    ratio = report().ratio("64", "vhostfast", "dpdk")
    assert ratio.values == (3.0, 4.0, 6.0)
    assert (ratio.low, ratio.median, ratio.high) == (3.0, 4.0, 6.0)


def test_who_is_held_against_whom() -> None:
    one = report()
    assert one.held_against("vhostfast") == ["dpdk", "bare"]
    assert one.held_against("dpdk") == ["bare"]
    assert one.held_against("bare") == []
    assert one.held_against("null") == []
    assert report({"vhostfast": (1.0,)}).held_against("vhostfast") == []


@pytest.mark.parametrize("make", [report, latencies, loss_free])
def test_json_and_back(make: Callable[[], Report], tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(make().as_dict()))
    assert load(path) == make()


def test_a_report_of_before_there_were_kinds(tmp_path: Path) -> None:
    told = json.loads(json.dumps(report().as_dict()))
    del told["kind"]
    for one in told["rounds"]:
        del one["load"]
    (tmp_path / "run.json").write_text(json.dumps(told))
    assert load(tmp_path / "run.json") == report()


def test_times_in_short() -> None:
    first, *_, last = latencies().as_dict()["summary"]
    assert (first["row"], first["load"], first["p50_ns"]) == ("bare", "10%", 100)
    assert (last["row"], last["load"], last["mpps"]) == ("vhostfast", "90%", 9)
    assert (last["p99_ns"], last["p99_ns_low"], last["p99_ns_high"]) == (18_000, 9000, 27_000)
    assert "ratio_to_bare" not in last


def test_a_ratio_to_nothing_is_none() -> None:
    nothing = loss_free({**RATES, "bare": (0.0, 10.0, 40.0)})
    assert nothing.held_against("vhostfast") == ["dpdk"]


def test_summary_says_it_in_short() -> None:
    rows = {row["row"]: row for row in report().as_dict()["summary"]}
    assert list(rows) == list(RATES)
    ours = rows["vhostfast"]
    assert (ours["mpps"], ours["mpps_low"], ours["mpps_high"]) == (12.0, 8.0, 30.0)
    assert ours["gbps"] == pytest.approx(12e6 * 64 * 8 / 1e9)
    assert (ours["ratio_to_dpdk"], ours["ratio_to_bare"]) == (4.0, 0.75)
    assert "ratio_to_bare" not in rows["null"]


NO_RUN = r"run\.json is not what vhostfast bench --json prints: "


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "truncated"),
        ("[]", "Expected `object`, got `array`"),
        ("{}", "missing required field `format`"),
        ('{"format": "1"}', r"Expected `int`, got `str` - at `\$.format`"),
        ('{"format": 2}', "its format is 2, and this version reads 1"),
        ('{"format": 1}', "missing required field `machine`"),
        ('{"rounds": {"vhostfast": []}}', "it is of bench idle, which can be neither compared nor"),
        ("\xff", "malformed"),
        ('{"format": NaN}', "malformed"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=NO_RUN + f".*{says}"):
        load(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("told['rounds'] = 3", r"Expected `array`, got `int` - at `\$.rounds`"),
        ("told['rounds'] = []", "it has no rounds of 64"),
        ("told['rounds'][1]['frames'] = '65'", "a round has other sizes"),
        ("told['rounds'][1]['distances'][0] = 'far'", r"at `\$.rounds\[1\].distances\[0\]`"),
        ("del told['rounds'][2]['samples']['dpdk']", "or rows than its commands"),
        ("told['rounds'][0]['samples']['dpdk']['mpps'] = '4'", r"got `str` - at `\$.mpps`"),
        ("told['rounds'][0]['samples']['dpdk'] = {}", "missing required field `mpps`"),
        ("told['kind'] = 'odd'", "its kind is odd: none of throughput"),
        ("told['kind'] = 'latency'", "missing required field `p50_ns`"),
        ("told['subject'] = 'ovs'", "ovs is not among its commands"),
        ("told['versus'] = 'ovs'", "ovs is not among its commands"),
        ("told['machine'] = {}", "its machine has no cpu"),
        ("told['plan']['rounds'] = 0", "give at least one round"),
        ("told['plan']['workload'] = []", r"got `array` - at `\$.workload`"),
        ("told['plan']['workload']['frames'] = []", "--sizes: there are none"),
        ("told['plan']['workload']['pattern'] = 'odd'", "--pattern odd: choose one of"),
    ],
)
def test_a_run_that_has_been_changed(tmp_path: Path, change: str, says: str) -> None:
    told = json.loads(json.dumps(report().as_dict()))
    exec(change, {"told": told})
    path = tmp_path / "run.json"
    path.write_text(json.dumps(told))
    with pytest.raises(UsageError, match=NO_RUN + f".*{says}"):
        load(path)


def test_options_that_are_newer_than_a_run_are_as_they_were_before(tmp_path: Path) -> None:
    told = json.loads(json.dumps(report().as_dict()))
    del told["plan"]["workload"]["regions"]
    (tmp_path / "run.json").write_text(json.dumps(told))
    assert load(tmp_path / "run.json") == report()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentLacks, match=r"none\.json: No such file or directory: name what"):
        load(tmp_path / "none.json")
