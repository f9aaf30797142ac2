"""Writes the table of hostile cases in docs/security.md, from the tests that play them.

A Python test, or one of its parameters, says what it plays by a mark:

    @pytest.mark.hostile("rings", "a chain that is a loop", "port closes")

and a C test by a comment `/* hostile: rings | a chain that is a loop | port closes */`. The area is
one of AREAS; the outcome begins with one of OUTCOMES, which the test asserts.
"""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "security.md"
HEADING = "## Hostile cases and their outcomes\n"
AREAS = ("stream", "fds", "messages", "memory", "log", "rings", "packets", "process")
OUTCOMES = (
    "delivered",  # lawful, if odd
    "no effect",
    "dropped and counted",  # that packet; the port goes on
    "refused",  # that message, with a reason in the log and to whoever asked; the port goes on
    "port closes",  # with a reason in the log and in its counter
    "exits",  # with a sentence that says what to do, and a code
)

Row = tuple[str, str, str, str]  # area, case, outcome, file


class Collector:
    """A pytest plugin that takes the marks of whatever is collected."""

    def __init__(self) -> None:
        self.rows: set[Row] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            file = str(item.path.relative_to(ROOT))
            for mark in item.iter_markers("hostile"):
                area, case, outcome = mark.args
                self.rows.add((area, case, outcome, file))


def python_rows() -> set[Row]:
    collector = Collector()
    quiet = ["--collect-only", "-qqq", "--no-header", "-p", "no:cacheprovider"]
    code = pytest.main([*quiet, "-m", "hostile", str(ROOT / "tests")], plugins=[collector])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        sys.exit(f"the tests can't be collected: {code!r}")
    return collector.rows


def c_rows() -> set[Row]:
    rows = set()
    for path in (ROOT / "tests").rglob("*.c"):
        for match in re.finditer(r"/\*\s*hostile: ([^|]*)\|([^|]*)\|([^*]*)\*/", path.read_text()):
            area, case, outcome = (" ".join(cell.split()) for cell in match.groups())
            rows.add((area, case, outcome, str(path.relative_to(ROOT))))
    return rows


def table(rows: set[Row]) -> str:
    """Markdown: a section an area, in the order of AREAS; a row a case."""
    parts = [HEADING]
    for area in AREAS:
        mine = sorted(row[1:] for row in rows if row[0] == area)
        if mine:
            parts.append(
                f"\n### {area.capitalize()}\n\n| What is sent or done | Outcome | Test |\n"
            )
            parts.append("|---|---|---|\n")
            parts += [f"| {case} | {outcome} | `{file}` |\n" for case, outcome, file in mine]
    return "".join(parts)


def document(rows: set[Row]) -> str:
    """docs/security.md with the table put in: the last section, whatever was there."""
    return DOCUMENT.read_text().partition(HEADING)[0] + table(rows)


def faults(rows: set[Row]) -> list[str]:
    """What can't stand in the table."""
    found = [f"{row}: no such area" for row in rows if row[0] not in AREAS]
    found += [f"{row}: no such outcome" for row in rows if not row[2].startswith(OUTCOMES)]
    return found + [f"{row}: a cell has a bar" for row in rows if "|" in "".join(row)]


def main() -> None:
    rows = python_rows() | c_rows()
    if wrong := faults(rows):
        sys.exit("\n".join(wrong))
    new = document(rows)
    if "--check" in sys.argv and DOCUMENT.read_text() != new:
        sys.exit("docs/security.md is not what the tests say: run scripts/hostile_table.py")
    DOCUMENT.write_text(new)


if __name__ == "__main__":
    main()
