"""The pass at full speed: migrations amid traffic that never waits for them, so that races show.

The guests run in threads of their own, without the GIL. A is stopped as a hypervisor stops it: its
processors first, then its rings. B goes on sending, and what A's memory and log do then is watched.
"""

import threading
import time
from contextlib import ExitStack
from typing import Self

from vhostfast.audit.places import Places
from vhostfast.audit.report import CAUSELESS, LATE_MARK, LATE_WRITE, MISSED, Row
from vhostfast.audit.source import Source
from vhostfast.audit.stage import Stage
from vhostfast.driver.migration import Migration
from vhostfast.driver.traffic import Load, Station, Traffic
from vhostfast.errors import ProtocolError
from vhostfast.protocol.message import LOG_PAGE

EPISODE_S = 0.1  # from the begin of a migration to its stop
WATCH_S = 0.3  # after a shape's last stop
SHORT_WATCH_S = 0.03  # after the others
START_S = 5.0  # for the first packet
CANCELLED_S = 0.01  # between two migrations
RESTARTING_S = 0.01  # from the kick to the log, to see whether the back-end waits for that
RESTARTED_S = 0.02
ROUNDS_A_LOG = 8
WHEN = "at full speed"


class Guest:
    """A station's traffic in a thread, from `start` to `stop`."""

    def __init__(self, station: Station, load: Load) -> None:
        self.traffic = Traffic([station], load)
        self.error: ProtocolError | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.traffic.run()
        except ProtocolError as error:
            self.error = error

    def start(self) -> Self:
        """Send and receive; returns when the back-end has taken something, or after START_S."""
        self._thread.start()
        deadline = time.monotonic() + START_S
        while self._thread.is_alive() and not self.traffic.counters().done:
            if time.monotonic() > deadline:
                break
            time.sleep(0.001)
        return self

    def stop(self) -> None:
        """As its processors are stopped. May be called twice."""
        self.traffic.stop()
        if self._thread.ident is not None:
            self._thread.join()


class Episode:
    """One migration of A amid traffic, from the start of all rings to their stop."""

    def __init__(self, stage: Stage, row: Row, sabotage: float) -> None:
        self._stage, self._row, self._sabotage = stage, row, sabotage
        self._shape = stage.shape
        self._guests: list[Guest] = []
        self._stack = ExitStack()

    def run(self, seconds: float, watch_s: float) -> None:
        """Migrate for `seconds`, then watch A for `watch_s`."""
        frontend = self._stage.migrated
        with self._stack as stack:
            for station in self._stage.stations():
                station.frontend.start(self._shape.base)
                self._guests.append(Guest(station, self._shape.load))
                stack.callback(self._end, self._guests[-1])
            for guest in self._guests:
                guest.start()
            places = Places(frontend.rings, self._guests[0].traffic.pools, frontend.header_size)
            migration = stack.enter_context(Migration(frontend, offset=self._shape.log_offset))
            source = self._begin(migration, places)
            source = self._rounds(source, places, seconds)
            self._guests[0].stop()
            frontend.stop()
            source.round()
            self._compare(source, places)
            self._watch(source, places, watch_s)
            self._account(source, places)
            for other in self._stage.frontends[1:]:
                self._guests[-1].stop()
                other.stop()

    def _begin(self, migration: Migration, places: Places) -> Source:
        migration.begin()
        source = Source(migration, places.writable(), sabotage=self._sabotage)
        self._stack.callback(source.close)
        return source

    # --- Amid the traffic ---

    def _rounds(self, source: Source, places: Places, seconds: float) -> Source:
        """Rounds, and what the shape does with its log; the source that goes on."""
        begin = time.monotonic()
        cancelled = self._shape.log != "cancelled"
        while (passed := time.monotonic() - begin) < seconds:
            source.round()
            if self._shape.log == "replaced" and source.rounds % ROUNDS_A_LOG == 0:
                source.round(source.migration.replace())
            if not cancelled and passed > seconds / 2:
                cancelled = True
                source = self._cancel(source, places)
        if self._shape.log == "restarted":
            self._restart(source)
        return source

    def _cancel(self, source: Source, places: Places) -> Source:
        source.migration.cancel()
        self._account(source, places)
        source.close()
        time.sleep(CANCELLED_S)
        return self._begin(source.migration, places)

    def _restart(self, source: Source) -> None:
        """A's guest resets its card amid the migration, and looks at nothing that B sends it then:
        so what is lost isn't written anew."""
        self._guests[0].stop()
        source.migration.frontend.stop()
        source.round()
        source.migration.frontend.reset(self._shape.base)
        Traffic(self._stage.stations()[:1], self._shape.load)  # blanks buffers and offers them
        source.round()
        source.migration.restart(RESTARTING_S)
        end = time.monotonic() + RESTARTED_S
        while time.monotonic() < end:
            source.round()

    # --- After the stop ---

    def _compare(self, source: Source, places: Places) -> None:
        found = source.differing()
        source.fetch(found)
        self._row.blame(MISSED, WHEN, [(gpa, places.name(gpa)) for gpa in found.values()])

    def _watch(self, source: Source, places: Places, seconds: float) -> None:
        """Neither A's memory nor its log may change any more."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(0.005)
            written = source.differing()
            source.fetch(written)  # of these no more is said; what comes meanwhile differs still
            marked = [page * LOG_PAGE for page in source.migration.take().tolist()]
            for kind, found in ((LATE_WRITE, written.values()), (LATE_MARK, marked)):
                self._row.blame(kind, WHEN, [(gpa, places.name(gpa)) for gpa in found])

    def _account(self, source: Source, places: Places) -> None:
        """What the source has counted, into the row."""
        row = self._row
        row.rounds += source.rounds
        row.marks += source.marks
        causeless = [(page * LOG_PAGE, places.name_page(page)) for page in source.causeless]
        row.blame(CAUSELESS, WHEN, causeless)
        if source.migration.log.before.any():
            row.blame(CAUSELESS, WHEN, [(0, "before the log in its file")])

    def _end(self, guest: Guest) -> None:
        guest.stop()
        counters = guest.traffic.counters()
        if guest is self._guests[0]:
            self._row.sent += counters.done
            self._row.received += counters.received
        if guest.error is not None:
            self._row.break_("the rules of a ring: " + str(guest.error), WHEN)
        if counters.corrupt + counters.foreign:
            self._row.break_(f"{counters.corrupt + counters.foreign} frames are corrupt", WHEN)
        if not counters.done:
            self._row.break_("nothing of what a guest sent was taken", WHEN)


def full_speed(stage: Stage, row: Row, seconds: float, sabotage: float) -> None:
    """Migrations of A in `stage`, together `seconds` long; what was found goes into `row`."""
    count = max(1, round(seconds / EPISODE_S))
    for number in range(count):
        watch_s = WATCH_S if number == count - 1 else SHORT_WATCH_S
        Episode(stage, row, sabotage).run(seconds / count, watch_s)
