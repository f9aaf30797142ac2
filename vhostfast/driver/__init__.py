"""A front-end and its guest, for whoever tests or measures a vhost-user back-end.

    with GuestMemory() as memory, Frontend("/run/a.sock", memory) as frontend:
        frontend.start()
        ring = frontend.transmit_ring().ring
        ring.add([(gpa, size, False)])          # header and frame, in guest memory
        ring.kick()

`Traffic` sends and verifies millions of packets a second between such guests; `Migration` plays
the front-end's part of a live migration.
"""

from vhostfast.core.driver import DriverRing
from vhostfast.driver.frontend import FEATURES, PROTOCOL_FEATURES, Frontend
from vhostfast.driver.memory import GuestMemory
from vhostfast.driver.migration import DirtyLog, Migration
from vhostfast.driver.traffic import Counters, Load, Pool, Station, Traffic, mac, pair
from vhostfast.driver.vring import Vring

__all__ = [
    "FEATURES",
    "PROTOCOL_FEATURES",
    "Counters",
    "DirtyLog",
    "DriverRing",
    "Frontend",
    "GuestMemory",
    "Load",
    "Migration",
    "Pool",
    "Station",
    "Traffic",
    "Vring",
    "mac",
    "pair",
]
