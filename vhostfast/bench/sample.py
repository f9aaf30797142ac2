"""One measurement: the driver plays the guests of a back-end, on a thread of its own."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from vhostfast.bench.backend import TESTPMD, Running, starved_ns
from vhostfast.bench.workload import IDLE_RING_SIZE, Frames, Plan
from vhostfast.core.traffic import FLOWS_MAX
from vhostfast.driver.frontend import FEATURES, Frontend
from vhostfast.driver.memory import GuestMemory
from vhostfast.driver.migration import Migration
from vhostfast.driver.traffic import Counters, Load, Station, Traffic, mac
from vhostfast.errors import (
    Disconnected,
    EnvironmentLacks,
    ProtocolError,
    UsageError,
    VhostfastError,
)
from vhostfast.protocol.features import VirtioFeature

VERIFY_EVERY = 64  # packets, in the timed part
VERIFIED_PACKETS = 20_000  # of each queue, in the pass that verifies all
VERIFY_S = 5.0
ANSWER_S = 5.0  # longer than any back-end takes to be there or to answer
EDGES_S = 30.0  # more than the timed part can take longer than it should
LOOK_S, SHORT_LOOK_S = 0.05, 0.001
LOG_TAKE_S = 0.1  # between two looks into the log: a hypervisor copies meanwhile
PATIENCE_S = 3.0  # for the first packet, where others keep the back-end from its CPU
LINGER_S = 1.0  # so long nothing has moved: what has not come is lost
IDLE_MIN = 0.02  # of the driver's time; with less it is the driver that was measured
FAULTS = ("corrupt", "foreign", "reordered", "repeated")
T = TypeVar("T", bound=Traffic)


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured in the timed part, both directions together.

    `mpps`: millions of packets a second. `cycles`: of the time-stamp counter, in which one packet
    went. `idle`: the share of its time, 0 to 1, that the driver waited; near 0 the figure is the
    driver's. `lost`: the share of packets that were taken and never came. `verified`: packets of
    which each byte was looked at. `starved`: the share of the timed part in which the back-end or
    the driver, whoever fared worse, waited for its CPU because somebody else had it.
    """

    MAIN: ClassVar = ("mpps",)  # figures whose spread is told, and compared
    BESIDE: ClassVar = ("cycles", "idle", "lost")  # of which the median says enough

    mpps: float
    cycles: float
    idle: float
    lost: float
    verified: int
    starved: float


class Guests:
    """The guests of a back-end, connected: as many as the workload has, or all of them idle.

    Idle ones have small rings, in pages of 4 KiB, with all their receive buffers on offer.
    """

    def __init__(self, run: Running, plan: Plan, stack: ExitStack, *, idle: bool = False) -> None:
        self.run = run
        self.plan = plan
        work = plan.workload
        busy = 0 if idle else work.busy_guests
        features = FEATURES if work.mergeable else FEATURES & ~VirtioFeature.MRG_RXBUF
        self.frontends: list[Frontend] = []
        for number, socket in enumerate(run.sockets):
            ring_size = work.ring_size if number < busy else min(work.ring_size, IDLE_RING_SIZE)
            regions = work.cuts() if number < busy else ((0, work.memory_size(ring_size)),)
            memory = GuestMemory(regions, hugepages=plan.hugepages and number < busy)
            try:
                frontend = Frontend(
                    socket,
                    stack.enter_context(memory),
                    queue_pairs=work.queues,
                    ring_size=ring_size,
                    features=features,
                    timeout_s=ANSWER_S,
                )
            except UsageError as error:
                raise UsageError(f"{run.name}: {error}") from None
            self.frontends.append(stack.enter_context(frontend))
        self.busy, self.idle = self.frontends[:busy], self.frontends[busy:]
        agreed = self.frontends[0].features
        if work.mergeable and VirtioFeature.MRG_RXBUF not in agreed:
            raise UsageError(f"{run.name} offers no mergeable buffers: give --no-mergeable")
        if work.layout == "indirect" and VirtioFeature.INDIRECT_DESC not in agreed:
            raise UsageError(f"{run.name} offers no indirect descriptors: give another --layout")
        self._migrations = self._migrate(stack) if run.log else []
        self._pages = 0  # found marked
        self._log_due = 0.0

    def _migrate(self, stack: ExitStack) -> list[Migration]:
        try:
            return [stack.enter_context(Migration(frontend)) for frontend in self.busy]
        except EnvironmentLacks as error:
            raise UsageError(f"{self.run.name}: {error}; give --log off") from None

    @contextmanager
    def traffic(
        self, frames: Frames, kind: str, verify_every: int, packets: int | None = None
    ) -> Iterator[Traffic]:
        """As `traffic_of`, with all as fast as it goes, or up to so many packets a queue."""

        def make(stations: list[Station], load: Load) -> Traffic:
            for station in stations:
                station.packets = packets
            return Traffic(stations, load, idle="spin")

        with self.traffic_of(make, frames, kind, verify_every) as traffic:
            yield traffic

    @contextmanager
    def traffic_of(
        self,
        make: Callable[[list[Station], Load], T],
        frames: Frames,
        kind: str,
        verify_every: int,
    ) -> Iterator[T]:
        """Rings that run, and traffic ready to be; at the end they are stopped, and the rest of
        what came is taken. With a log, all that is written meanwhile has to be in it."""
        work = self.plan.workload
        load = Load(kind, frames.sizes, work.layout, work.buffer_size, verify_every, work.gap)
        with self.looking_on():
            for frontend in self.busy:
                frontend.start()
            traffic = make(self._stations(), load)
            for migration in self._migrations:
                migration.begin()
            time.sleep(self.run.settle_s)
            yield traffic
            for frontend in self.busy:
                frontend.stop()
            self._take_logs()
            for migration in self._migrations:
                migration.close()
            traffic.finish()

    @contextmanager
    def looking_on(self) -> Iterator[None]:
        """The rings of idle guests run inside."""
        for frontend in self.idle:
            frontend.start()
        stations = [Station(one, mac(0), mac(0), 0, sends=False) for one in self.idle]
        waiting = Traffic(stations, Load()) if stations else None
        yield
        for frontend in self.idle:
            frontend.stop()
        if waiting:
            waiting.finish()

    def look(self) -> None:
        """To be called often meanwhile: whether the back-end lives, and what is in the log.

        Raises EnvironmentLacks.
        """
        self.run.require_alive()
        if time.monotonic() >= self._log_due:
            self._take_logs()

    def _take_logs(self) -> None:
        self._log_due = time.monotonic() + LOG_TAKE_S
        self._pages += sum(len(migration.take()) for migration in self._migrations)

    def _stations(self) -> list[Station]:
        """Two by two. Flows are told apart as far as there are numbers for them."""
        work = self.plan.workload
        one_way = work.pattern == "one-way"
        sends = work.sends
        return [
            Station(
                frontend,
                mac(number),
                mac(number ^ 1),
                number * work.queues % (FLOWS_MAX // (2 * work.queues) * 2 * work.queues),
                sends=sends and (not one_way or number % 2 == 0),
                receives=not one_way or number % 2 == 1,
            )
            for number, frontend in enumerate(self.busy)
        ]

    def require_right(self, frames: Frames, counters: Counters) -> None:
        """Raises VhostfastError for a byte that is wrong, or a frame that shouldn't be there."""
        if not self.plan.workload.sends:
            self._require_lengths(frames, counters)
            return
        wrong = {name: n for name in FAULTS if (n := getattr(counters, name))}
        if wrong:
            told = ", ".join(f"{count} {name}" for name, count in wrong.items())
            raise VhostfastError(
                f"{self.run.name}: frames of {frames.name} bytes did not arrive as they were sent:"
                f" {told} of {counters.received}"
            )

    def _require_lengths(self, frames: Frames, counters: Counters) -> None:
        """Nobody knows what is in frames that a back-end makes itself, but how long they are, all
        together."""
        if counters.corrupt:
            raise VhostfastError(
                f"{self.run.name}: {counters.corrupt} of {counters.arrived + counters.corrupt}"
                " frames have a length that can't be: less than a header, or more than a buffer"
            )
        size = (counters.received_bytes + counters.foreign_bytes) / max(counters.arrived, 1)
        if counters.arrived and size != frames.mean:
            raise UsageError(
                f"--sizes {frames.name}: what {self.run.name} sends has {size:.6g} bytes on average"
            )

    def require_at_home(self, traffic: Traffic) -> None:
        """Raises VhostfastError if a guest has frames of another than its peer."""
        stations, queues = traffic.stations, self.plan.workload.queues
        for number in range(len(stations)):
            peer = stations[number ^ 1 if len(stations) > 1 else number].flow
            if astray := traffic.heard(number) - set(range(peer, peer + queues)):
                raise VhostfastError(
                    f"{self.run.name}: guest {number} has frames that were for others, of flow"
                    f" {min(astray)}"
                )

    def require_marks(self, counters: Counters) -> None:
        """Raises VhostfastError for a log without a mark, though packets went."""
        if (counters.done or counters.arrived) and self._migrations and self._pages == 0:
            raise VhostfastError(f"{self.run.name}: the log is on, and nothing was marked in it")


@contextmanager
def connected(run: Running, plan: Plan, *, idle: bool = False) -> Iterator[Guests]:
    """The back-end's guests, all `idle` if so. What goes wrong with it inside becomes a sentence.

    Raises EnvironmentLacks for a back-end that dies, doesn't answer or leaves; VhostfastError for
    one that breaks the rules of a ring.
    """
    try:
        with ExitStack() as stack:
            yield Guests(run, plan, stack, idle=idle)
    except (TimeoutError, Disconnected) as error:
        _settle(run)
        what = "has left" if isinstance(error, Disconnected) else "doesn't answer"
        raise EnvironmentLacks(f"{run.name} {what} at {run.sockets[0]}{run.said()}") from error
    except ProtocolError as error:
        _settle(run)
        hint = ""
        if error.request == "used ring" and plan.workload.load == "lean":
            hint = "; --load lean needs one that gives back in order, touch and full don't"
        raise VhostfastError(f"{run.name}: {error}{hint}") from error


def _settle(run: Running) -> None:
    """If the back-end is about to be seen dead, that is what to say."""
    time.sleep(LOOK_S)
    run.require_alive()


def verify(guests: Guests, frames: Frames) -> Counters:
    """Every byte of VERIFIED_PACKETS from each queue that sends; or, where the back-end alone does,
    the length of as many in all, or of what comes in VERIFY_S. Raises VhostfastError as above, or
    EnvironmentLacks if nothing comes."""
    work = guests.plan.workload
    senders = work.busy_guests // 2 if work.pattern == "one-way" else work.busy_guests
    total = VERIFIED_PACKETS * work.queues * senders if work.sends else None
    until = time.monotonic() + VERIFY_S
    with (
        guests.traffic(frames, "full", 1, VERIFIED_PACKETS) as traffic,
        driving(guests.plan, traffic, VERIFY_S, expected=total) as driver,
    ):
        while not driver.future.done():
            guests.look()
            time.sleep(LOOK_S)
            enough = traffic.counters().arrived >= VERIFIED_PACKETS
            if not work.sends and (enough or time.monotonic() >= until):
                traffic.stop()
    counters = traffic.counters()
    guests.require_right(frames, counters)
    guests.require_at_home(traffic)
    guests.require_marks(counters)
    if counters.arrived == 0:
        guests.run.require_alive()
        raise EnvironmentLacks(nothing_came(guests.run, counters))
    return counters


def nothing_came(run: Running, counters: Counters) -> str:
    """As a sentence, which end of the back-end it was."""
    if counters.sent == 0:
        return (
            f"{run.name} sent nothing, and no guest does: start one that sends by itself, such as"
            f" {TESTPMD} with --forward-mode=txonly{run.said()}"
        )
    if counters.done == 0:
        return f"{run.name} took no packet of {counters.sent} that were offered{run.said()}"
    if counters.arrived:
        return (
            f"{run.name} delivered {counters.arrived} packets before the time that counts, and none"
            f" in it: it stands still, or others have its CPU{run.said()}"
        )
    return f"{run.name} took {counters.done} packets and delivered none{run.said()}"


@dataclass(slots=True)
class Driver:
    """The thread that turns the guests' rings."""

    thread_id: int
    future: "Future[None]"

    def starved_ns(self) -> int:
        return starved_ns(Path(f"/proc/self/task/{self.thread_id}"))


@contextmanager
def driving(
    plan: Plan, traffic: Traffic, seconds: float, expected: int | None = None
) -> Iterator[Driver]:
    """Traffic on the driver's CPU, for `seconds` or until all that is expected has come; where no
    guest sends, until nothing has for so long, or it is stopped."""
    linger_s = LINGER_S if expected else 0 if plan.workload.sends else seconds

    def settle() -> int:
        os.sched_setaffinity(0, {plan.driver_cpu})  # of this thread alone
        return threading.get_native_id()

    def run() -> None:
        traffic.run(seconds, linger_s=linger_s, expected=expected)

    with ThreadPoolExecutor(1) as threads:
        thread_id = threads.submit(settle).result()
        driver = Driver(thread_id, threads.submit(run))
        try:
            yield driver
        except BaseException:
            traffic.stop()
            raise
    driver.future.result()


def measure(guests: Guests, frames: Frames) -> Sample:
    """The timed part, after its warm-up. Raises as `verify`."""
    plan, run, work = guests.plan, guests.run, guests.plan.workload
    whole_s = plan.warm_up_s + plan.seconds + EDGES_S
    with (
        guests.traffic(frames, work.load, VERIFY_EVERY) as traffic,
        driving(plan, traffic, whole_s) as driver,
    ):
        _wait(guests, traffic, plan.warm_up_s)
        before = _now(run, traffic, driver)
        _wait(guests, traffic, plan.seconds)
        after = _now(run, traffic, driver)
        if work.sends:
            traffic.stop_sending()
        else:
            traffic.stop()
    counters = traffic.counters()
    if run.checked and (work.sends or work.load != "lean"):  # which looks at no length
        guests.require_right(frames, counters)
    guests.require_marks(counters)
    return _sample(run, counters, before, after)


@dataclass(frozen=True, slots=True)
class _Moment:
    counters: Counters
    busy: int
    idle: int
    seconds: float
    starved_ns: tuple[int, int]


def _now(run: Running, traffic: Traffic, driver: Driver) -> _Moment:
    starved = run.starved_ns(), driver.starved_ns()
    busy, idle = traffic.cycles()
    return _Moment(traffic.counters(), busy, idle, time.perf_counter(), starved)


def _wait(guests: Guests, traffic: Traffic, seconds: float) -> None:
    """Sleep until the time is up and something has come, but not longer than the back-end lives."""
    run = guests.run
    before = _packets(run, traffic.counters())
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds + PATIENCE_S:
        guests.look()
        if spent >= seconds and _packets(run, traffic.counters()) > before:
            break
        time.sleep(max(min(seconds - spent, LOOK_S), SHORT_LOOK_S))


def _packets(run: Running, counters: Counters) -> int:
    """What counts: of a back-end that need not be right, what it gave back."""
    return counters.arrived if run.checked else counters.done


def _sample(run: Running, counters: Counters, before: _Moment, after: _Moment) -> Sample:
    packets = _packets(run, after.counters) - _packets(run, before.counters)
    if packets == 0:
        raise EnvironmentLacks(nothing_came(run, counters))
    cycles = after.busy - before.busy + after.idle - before.idle
    lost = counters.lost(counters.done) / counters.done if run.checked and counters.done else 0.0
    seconds = after.seconds - before.seconds
    waited_ns = max(b - a for a, b in zip(before.starved_ns, after.starved_ns, strict=True))
    return Sample(
        mpps=packets / seconds / 1e6,
        cycles=cycles / packets,
        idle=(after.idle - before.idle) / cycles,
        lost=max(lost, 0.0),
        verified=counters.verified if counters.sent else 0,
        starved=min(waited_ns / seconds / 1e9, 1.0),
    )
