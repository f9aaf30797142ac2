"""vhostfast: a fast vhost-user network back-end. Names are imported when they are first used.

Layers import downward only (tests/test_house.py):

    cli -> switch, bench, audit -> device -> backend, driver -> protocol | core -> csrc
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhostfast.device.net import NetDevice as NetDevice
    from vhostfast.device.net import serve as serve
    from vhostfast.device.net import serve_device as serve_device
    from vhostfast.errors import EnvironmentLacks as EnvironmentLacks
    from vhostfast.errors import ProtocolError as ProtocolError
    from vhostfast.errors import UsageError as UsageError
    from vhostfast.errors import VhostfastError as VhostfastError

_WHERE = {
    "NetDevice": "vhostfast.device.net",
    "serve": "vhostfast.device.net",
    "serve_device": "vhostfast.device.net",
    "EnvironmentLacks": "vhostfast.errors",
    "ProtocolError": "vhostfast.errors",
    "UsageError": "vhostfast.errors",
    "VhostfastError": "vhostfast.errors",
}
__all__ = list(_WHERE)


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'vhostfast' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(_WHERE)
