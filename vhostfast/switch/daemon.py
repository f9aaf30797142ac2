"""The switch as a process: in which order it starts, what signals do, in which order it ends.

    signal handlers -> sockets -> fabric and workers -> connections     ... and back

Sockets come before the heavy imports, so that whoever starts a guest next finds them: its first
message waits in the socket for the tenth of a second that the rest takes.

SIGTERM and SIGINT end it, with a summary; SIGUSR1 asks for a summary and nothing else.
"""

import asyncio
import contextlib
import functools
import grp
import logging
import os
import pwd
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from vhostfast.device.endpoint import Connector, Listener, Refused, Serve
from vhostfast.errors import EnvironmentLacks
from vhostfast.switch.config import Config, PortSpec
from vhostfast.switch.journal import PERIOD_S, Moderation
from vhostfast.switch.share import fit_fds, memory_max, memory_slots

log = logging.getLogger("vhostfast")

TEARDOWN_S = 0.5  # for connections to end; SIGTERM to exit is promised within a second
NOTIFY_S = 5.0  # for systemd to take a message
ID_MAX = 2**32 - 1  # which means "leave it" to chown, and is nobody's
AGE_TICK_S = 10.0
AGE_LIMIT_TICKS = 30  # an address unseen for 300 s is forgotten, as IEEE 802.1D has it


@dataclass(frozen=True, slots=True)
class Summary:
    """Counters since the start: of each port by name, and of all workers together.

    `time`: when they were read, in seconds since 1970. `busy_cycles` are the time-stamp counter's,
    of turns that moved packets.
    """

    time: float
    ports: dict[str, dict[str, int]]
    busy_cycles: int
    packets: int


class Switch:
    """Fabric, workers and the connections of one Config's ports. Made in a running event loop."""

    def __init__(self, config: Config) -> None:
        # Not at the top: numpy and the extensions take longer to load than the sockets may.
        from vhostfast.backend.worker import Workers
        from vhostfast.core.fabric import CALLS_NEVER_WAIT, Fabric
        from vhostfast.core.witness import Witness

        if config.witness:
            Witness(()).close()
        if not CALLS_NEVER_WAIT:
            log.warning(
                "the system call io_setup is forbidden or /proc/sys/fs/aio-max-nr is reached:"
                " a hostile front-end can hold up the others by its call fd"
            )
        self._config = config
        self._fabric = Fabric(forward=config.forward)
        self._ports = [self._fabric.add_port(spec.name) for spec in config.ports]
        self._workers = Workers(self._fabric, cpus=config.cpus, mode=config.mode)

    def __enter__(self) -> "Switch":
        self._workers.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.stop()
        self._fabric.close()

    def serves(self) -> list[Serve]:
        """For each port in order, what serves a connected socket."""
        from vhostfast.backend.connection import Connection
        from vhostfast.backend.worker import FabricPort
        from vhostfast.protocol.features import MEMORY_SLOTS_MAX, Offer

        witness = self._config.witness
        slots = min(memory_slots(self._config), MEMORY_SLOTS_MAX)

        def serving(port: FabricPort, offer: Offer) -> Serve:
            return lambda sock: Connection(sock, port, offer, witness=witness).serve()

        return [
            serving(
                FabricPort(port, self._workers),
                Offer.net(
                    spec.queue_pairs,
                    offloads=spec.offloads,
                    memory_max=memory_max(len(self._ports)),
                    memory_slots=slots,
                ),
            )
            for port, spec in zip(self._ports, self._config.ports, strict=True)
        ]

    def refusals(self) -> list[Refused]:
        """For each port in order, what counts a connection that was turned away."""
        return [functools.partial(port.count, "connections_refused") for port in self._ports]

    async def age(self) -> None:
        """Let the forwarding table forget addresses that nobody uses any more; for ever."""
        while True:
            await asyncio.sleep(AGE_TICK_S)
            self._fabric.age(AGE_LIMIT_TICKS)

    def summary(self) -> Summary:
        """The counters as they are now; exact once the workers have stopped."""
        busy_cycles, packets = self._workers.cycles()
        ports = {port.name: port.counters() for port in self._ports}
        return Summary(time.time(), ports, busy_cycles, packets)


async def run(config: Config, report: Callable[[Summary], None]) -> None:
    """Be the switch until SIGTERM or SIGINT. `report` gets a summary at the end and on SIGUSR1.

    Raises EnvironmentLacks or UsageError, before any front-end is served, if it can't be.
    """
    config = fit_fds(config)
    moderation = Moderation()
    for handler in logging.getLogger().handlers:
        handler.addFilter(moderation)
    ending, asked = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    loop.add_signal_handler(signal.SIGUSR1, asked.set)
    with contextlib.ExitStack() as stack:
        stack.callback(moderation.tell)
        sockets = [_open(spec, config, stack) for spec in config.ports]
        with Switch(config) as switch:
            ends = zip(sockets, switch.serves(), switch.refusals(), strict=True)
            jobs = [asyncio.create_task(port.run(serve, refused)) for port, serve, refused in ends]
            jobs += [
                asyncio.create_task(switch.age()),
                asyncio.create_task(_report_when(asked, report, switch)),
                asyncio.create_task(_tell(moderation)),
            ]
            _tell_ready()
            await _until(ending, jobs)
        report(switch.summary())


def _tell_ready() -> None:
    """To systemd, if it asks: whoever it starts after us finds our sockets (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(NOTIFY_S)
            sock.sendto(b"READY=1", address)
    except OSError as error:
        log.error("NOTIFY_SOCKET cannot be told that the switch is ready: %s", error)


async def _until(ending: asyncio.Event, jobs: list[asyncio.Task[None]]) -> None:
    """Wait for `ending`, then cancel the jobs; one that ends by itself is a bug, and raised."""
    end = asyncio.create_task(ending.wait())
    await asyncio.wait([end, *jobs], return_when=asyncio.FIRST_COMPLETED)
    faulty = [job for job in jobs if job.done()]
    for task in (end, *jobs):
        task.cancel()
    _, stuck = await asyncio.wait([end, *jobs], timeout=TEARDOWN_S)
    if stuck:
        log.error("%d connections did not end within %s s", len(stuck), TEARDOWN_S)
    for job in faulty:
        job.result()


async def _tell(moderation: Moderation) -> None:
    while True:
        await asyncio.sleep(PERIOD_S)
        moderation.tell()


async def _report_when(
    asked: asyncio.Event, report: Callable[[Summary], None], switch: Switch
) -> None:
    while True:
        await asked.wait()
        asked.clear()
        report(switch.summary())


def _open(spec: PortSpec, config: Config, stack: contextlib.ExitStack) -> Listener | Connector:
    """A port's socket, which `stack` closes."""
    uids = None if config.allow_uid is None else frozenset(map(_user, config.allow_uid))
    port = (
        Connector(spec.name, spec.path, uids)
        if spec.client
        else Listener(spec.name, spec.path, config.socket_mode, _group(config.socket_group), uids)
    )
    stack.callback(port.close)
    return port


def _group(name: str | None) -> int | None:
    if name is None:
        return None
    if _is_id(name):
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise EnvironmentLacks(
            f"--socket-group {name}: there is no such group: create it or name another"
        ) from None


def _user(name: str) -> int:
    if _is_id(name):
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise EnvironmentLacks(
            f"--allow-uid {name}: there is no such user: create it or name another"
        ) from None


def _is_id(name: str) -> bool:
    return name.isascii() and name.isdecimal() and int(name) < ID_MAX
