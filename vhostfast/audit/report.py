"""What an audit found: a row for each shape, and each fault by its page."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from vhostfast.protocol.message import LOG_PAGE

MISSED, CAUSELESS, LATE_WRITE, LATE_MARK, BROKEN = (
    "missed",
    "marked without cause",
    "written after the stop",
    "marked after the stop",
    "broken",
)


@dataclass(frozen=True, slots=True)
class Fault:
    """`kind` is one of the above; `gpa` says where in guest memory, `what` what lies there or
    happened, `when` in which pass it was seen."""

    kind: str
    gpa: int | None
    what: str
    when: str

    def __str__(self) -> str:
        place = "" if self.gpa is None else f"page {self.gpa // LOG_PAGE:#x}, {self.gpa:#x}: "
        return f"{self.kind}: {place}{self.what}, {self.when}"


@dataclass(slots=True)
class Row:
    """A shape's: packets that the migrated guest sent and received, rounds of the hypervisor, marks
    that it read, and faults. `notes` say what could not be looked at."""

    shape: str
    sent: int = 0
    received: int = 0
    rounds: int = 0
    marks: int = 0
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, sentence: str) -> None:
        """Say it, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def count(self, *kinds: str) -> int:
        """How many faults of these kinds."""
        return sum(fault.kind in kinds for fault in self.faults)

    def blame(self, kind: str, when: str, found: Iterable[tuple[int, str]]) -> None:
        """Faults at (GPA, what lies there); each page once a kind and time."""
        known = [fault for fault in self.faults if (fault.kind, fault.when) == (kind, when)]
        pages = {fault.gpa // LOG_PAGE for fault in known if fault.gpa is not None}
        for gpa, what in found:
            if gpa // LOG_PAGE not in pages:
                pages.add(gpa // LOG_PAGE)
                self.faults.append(Fault(kind, gpa, what, when))

    def break_(self, what: str, when: str) -> None:
        """A fault that is nowhere in memory."""
        fault = Fault(BROKEN, None, what, when)
        if fault not in self.faults:
            self.faults.append(fault)


@dataclass(slots=True)
class Report:
    """All rows; the shapes that the back-end does not offer, and those before which it ended."""

    rows: list[Row] = field(default_factory=list)
    not_offered: list[str] = field(default_factory=list)
    not_reached: list[str] = field(default_factory=list)
    sabotage: float = 0.0

    @property
    def good(self) -> bool:
        """Whether no fault was found, in any row."""
        return not self.not_reached and not any(row.faults for row in self.rows)

    @property
    def whole(self) -> bool:
        """Whether all was looked at that can be, in each row."""
        return not any(row.notes for row in self.rows)
