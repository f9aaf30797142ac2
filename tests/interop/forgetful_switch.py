"""`vhostfast`, but for one thing: what it marks in a migration log nobody ever sees.

The control of test_migration.py: a migration served by this one must lose pages, or the comparison
can't find any.
"""

import os
from typing import Any

from vhostfast.backend import reconcile
from vhostfast.cli.main import main
from vhostfast.core.memory import Log


def log_of_our_own(_fd: int, size: int, offset: int, **options: Any) -> Log:
    own = os.memfd_create("thrown-away")
    try:
        os.truncate(own, offset + size)
        return Log(own, size, offset, **options)
    finally:
        os.close(own)


reconcile.Log = log_of_our_own  # type: ignore[assignment,misc]
main()
