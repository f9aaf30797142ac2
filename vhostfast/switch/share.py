"""What each port may take of the process: file descriptors and address space.

Both are shared out when the switch starts, so that a port which takes all that it is offered
leaves the others theirs. Descriptors are bounded by the queue pairs that a port offers: each has
two rings, and a ring has three eventfds; and by the regions of memory, each of a file: what pairs
leave is for those.
"""

import logging
import resource
from dataclasses import replace
from pathlib import Path

from vhostfast.errors import EnvironmentLacks
from vhostfast.switch.config import Config

log = logging.getLogger("vhostfast")

FDS_OF_PAIR = 6
FDS_OF_PORT = 48  # sockets, lock, memory, log, a message's 8 that come before the old 8 go, and 16
# that wait to be closed (backend/closing.py)
REGIONS_OF_PORT = 8  # in these 48
FDS_OF_WORKER = 2
FDS_OF_SWITCH = 64
MAPS_OF_SWITCH = 4096  # libraries, threads' stacks, logs
MAPS_MAX, MAPS_USUAL = Path("/proc/sys/vm/max_map_count"), 65530
ADDRESSES = 112 << 40  # bytes of the 2^47 that we have, less room for logs and for ourselves


def memory_max(ports: int) -> int:
    """Bytes of guest memory that each of so many ports may have mapped, old and new at once."""
    return ADDRESSES // (2 * ports)


def memory_slots(config: Config) -> int:
    """How many regions each port may hold: each is a descriptor and a map, and one port's are
    mapped anew before the old ones go. As many as a table may have there always are."""
    ports = len(config.ports)
    fds = _fds_left(config) - FDS_OF_PAIR * sum(port.queue_pairs for port in config.ports)
    maps = _maps_max() - MAPS_OF_SWITCH
    return max(min(REGIONS_OF_PORT + fds // ports, maps // (ports + 1)), REGIONS_OF_PORT)


def _maps_max() -> int:
    try:
        return int(MAPS_MAX.read_text())
    except FileNotFoundError:  # as ProcSubset=pid has it, in our systemd unit
        return MAPS_USUAL


def _fds_left(config: Config) -> int:
    """Descriptors for queue pairs, and for more regions than a table's."""
    fixed = FDS_OF_SWITCH + FDS_OF_WORKER * len(config.cpus or (0,))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit - fixed - FDS_OF_PORT * len(config.ports)


def fit_fds(config: Config) -> Config:
    """Take as many descriptors as we may, and offer no more queue pairs than they are enough for.

    Raises EnvironmentLacks if they aren't enough for one each.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count, left = len(config.ports), _fds_left(config)
    pairs = pairs_each(left, [port.queue_pairs for port in config.ports])
    if pairs == 0:
        raise EnvironmentLacks(
            f"{count} ports may take {hard - left + FDS_OF_PAIR * count} file descriptors and this"
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
