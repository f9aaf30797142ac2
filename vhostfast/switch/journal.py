"""How much of the log one port may fill.

A line of the log begins with its port's name. Of each kind of line, which is its format, a port has
LINES in PERIOD_S; what is more is counted, and the count told when the period is over:

    vm0: … and 3,412 more like this in the last 10 s: "refused: %s"

The kinds are those in the code, so that a port's lines are bounded whatever it sends. Who asks for
the messages themselves (--log-level debug) gets DEBUG_LINES of them: a guest of 64 queue pairs that
boots sends some 900.
"""

import logging

LINES = 20
DEBUG_LINES = 2000
PERIOD_S = 10.0

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
