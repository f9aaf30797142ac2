"""What each port may take of the process: file descriptors and address space.

Both are shared out when the switch starts, so that a port which takes all that it is offered
leaves the others theirs. Descriptors are bounded by the queue pairs that a port offers: each has
two rings, and a ring has three eventfds.
"""

import logging
import resource
from dataclasses import replace

from vhostfast.errors import EnvironmentLacks
from vhostfast.switch.config import Config

log = logging.getLogger("vhostfast")

FDS_OF_PAIR = 6
FDS_OF_PORT = 48  # sockets, lock, memory, log, and a message's 8 that come before the old 8 go
FDS_OF_WORKER = 2
FDS_OF_SWITCH = 64
ADDRESSES = 112 << 40  # bytes of the 2^47 that we have, less room for logs and for ourselves


def memory_max(ports: int) -> int:
    """Bytes of guest memory that each of so many ports may have mapped, old and new at once."""
    return ADDRESSES // (2 * ports)


def fit_fds(config: Config) -> Config:
    """Take as many descriptors as we may, and offer no more queue pairs than they are enough for.

    Raises EnvironmentLacks if they aren't enough for one each.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count, workers = len(config.ports), len(config.cpus or (0,))
    fixed = FDS_OF_SWITCH + FDS_OF_WORKER * workers + FDS_OF_PORT * count
    pairs = pairs_each(hard - fixed, [port.queue_pairs for port in config.ports])
    if pairs == 0:
        raise EnvironmentLacks(
            f"{count} ports may take {fixed + FDS_OF_PAIR * count} file descriptors and this"
            f" process may have {hard}: raise the limit (ulimit -n, LimitNOFILE=) or have fewer"
        )
    if any(port.queue_pairs > pairs for port in config.ports):
        log.warning(
            "this process may have %d file descriptors: each port offers %d queue pairs at most; "
            "for more raise the limit (ulimit -n, LimitNOFILE=)",
            hard,
            pairs,
        )
    ports = (replace(port, queue_pairs=min(port.queue_pairs, pairs)) for port in config.ports)
    return replace(config, ports=tuple(ports))


def pairs_each(fds: int, wanted: list[int]) -> int:
    """The most queue pairs that every port may have, if none has more than it wants; 0: too few."""
    fitting = (
        pairs
        for pairs in range(max(wanted), 0, -1)
        if FDS_OF_PAIR * sum(min(pairs, each) for each in wanted) <= fds
    )
    return next(fitting, 0)
