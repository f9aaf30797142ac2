"""The log: how much of it one port may fill, and that nobody waits for who reads it.

A line of the log begins with its port's name. Of each kind of line, which is its format, a port has
LINES in PERIOD_S; what is more is counted, and the count told when the period is over:

    vm0: … and 3,412 more like this in the last 10 s: "refused: %s"

The kinds are those in the code, so that a port's lines are bounded whatever it sends. Who asks for
the messages themselves (--log-level debug) gets DEBUG_LINES of them: a guest of 64 queue pairs that
boots sends some 900.

Lines are written by a thread of their own, and so are summaries: who stands still and leaves the
pipe full that it should read would else hold up every message of every front-end, and the end.
"""

import logging
import os
import queue
import select
import threading
from collections.abc import Callable

LINES = 20
DEBUG_LINES = 2000
PERIOD_S = 10.0
WAITING_LINES = 10_000  # some MB
LAST_S = 0.2  # at the end, for what is not yet written

log = logging.getLogger("vhostfast")


class Moderation(logging.Filter):
    """Put it on a handler, and call `tell` every PERIOD_S and at the end.

    Lines of no port, and those that `tell` writes, go through.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[tuple[str, str, int], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name != log.name or not isinstance(record.args, tuple) or not record.args:
            return True
        port, kind = str(record.args[0]), str(record.msg)
        if not kind.startswith("%s: ") or kind.startswith("%s: …"):
            return True
        key = port, kind, DEBUG_LINES if record.levelno <= logging.DEBUG else LINES
        self._counts[key] = self._counts.get(key, 0) + 1
        return self._counts[key] <= key[2]

    def tell(self) -> None:
        """Say how many were left out since the last time, and begin to count anew."""
        counts, self._counts = self._counts, {}
        for (port, kind, limit), count in counts.items():
            if count > limit:
                more = f"{count - limit:,}"
                log.warning(
                    '%s: … and %s more like this in the last %.0f s: "%s"',
                    port,
                    more,
                    PERIOD_S,
                    kind.removeprefix("%s: "),
                )


class Writer:
    """Writes texts to `fd`, each whole and in order; nobody waits for who reads them.

    `waiting` of them may wait to be written. `failed` is called for one that can't be, by the
    thread that writes. At the end (`close`) what waits has LAST_S.
    """

    def __init__(self, fd: int, waiting: int, failed: Callable[[OSError], None]) -> None:
        self._fd = fd
        self._failed = failed
        self._texts: queue.Queue[str | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def put(self, text: str) -> bool:
        """Whether there was room."""
        try:
            self._texts.put_nowait(text)
        except queue.Full:
            return False
        return True

    def close(self) -> bool:
        """Whether all of it was written, or has failed."""
        try:
            self._texts.put(None, timeout=LAST_S)
        except queue.Full:
            return False  # who has not read for so long
        self._thread.join(LAST_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        end_of_cut = b""  # of a text of which a part was written
        while (text := self._texts.get()) is not None:
            left = whole = end_of_cut + text.encode(errors="backslashreplace")
            try:
                while left:
                    left = left[self._write(left) :]
                end_of_cut = b""
            except OSError as error:  # its reader has gone, or the disk is full
                end_of_cut = end_of_cut if left is whole else b"\n"
                self._failed(error)

    def _write(self, data: bytes) -> int:
        """How much was. Whoever else has this file may have told it not to wait."""
        while True:
            try:
                return os.write(self._fd, data)
            except BlockingIOError:
                select.select([], [self._fd], [])


class LogWriter(logging.Handler):
    """Writes the log to `fd`. Of its lines, WAITING_LINES may wait; what is more is lost, and its
    count told once there is room."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._lost = 0
        self._writer = Writer(fd, WAITING_LINES, self._lose)

    def emit(self, record: logging.LogRecord) -> None:
        lines = self.format(record) + "\n"
        if self._lost:
            lines = f"… {self._lost:,} lines were lost: nobody read the log\n" + lines
        self._lost = 0 if self._writer.put(lines) else self._lost + 1

    def _lose(self, _: OSError) -> None:
        self.acquire()
        self._lost += 1
        self.release()

    def close(self) -> None:
        self._writer.close()
        super().close()
