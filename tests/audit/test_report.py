"""Rows, faults, and what makes a report good."""

import pytest

from vhostfast.audit.report import CAUSELESS, MISSED, Fault, Report, Row


def test_each_page_is_blamed_once_a_kind_and_time() -> None:
    row = Row("direct")
    row.blame(MISSED, "exact", [(0x1000, "a"), (0x1FFF, "b"), (0x2000, "c")])
    row.blame(MISSED, "exact", [(0x2001, "d")])
    row.blame(MISSED, "later", [(0x2001, "d")])
    row.blame(CAUSELESS, "exact", [(0x2001, "d")])
    assert [fault.what for fault in row.faults] == ["a", "c", "d", "d"]
    assert (row.count(MISSED), row.count(CAUSELESS), row.count(MISSED, CAUSELESS)) == (3, 1, 4)


def test_faults_as_sentences() -> None:
    fault = Fault(MISSED, 0x12345, "used ring of vring 0, idx", "exact")
    assert str(fault) == "missed: page 0x12, 0x12345: used ring of vring 0, idx, exact"
    row = Row("direct")
    row.break_("the back-end has gone", "exact")
    row.break_("the back-end has gone", "exact")
    assert [str(fault) for fault in row.faults] == ["broken: the back-end has gone, exact"]


@pytest.mark.parametrize(
    ("rows", "not_reached", "good"),
    [
        ([Row("a")], [], True),
        ([Row("a"), Row("b", faults=[Fault(MISSED, 0, "", "")])], [], False),
        ([Row("a")], ["b"], False),
    ],
)
def test_a_report_is_good_without_any_fault(
    rows: list[Row], not_reached: list[str], good: bool
) -> None:
    assert Report(rows, not_offered=["c"], not_reached=not_reached).good is good
