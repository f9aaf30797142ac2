"""A front-end and its guest, for whoever tests or measures a vhost-user back-end."""

from vhostfast.core.driver import DriverRing
from vhostfast.driver.frontend import Frontend
from vhostfast.driver.memory import GuestMemory
from vhostfast.driver.vring import Vring

__all__ = ["DriverRing", "Frontend", "GuestMemory", "Vring"]
