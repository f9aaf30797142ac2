"""make soak: a long run of all that may happen at once, and what must hold at its end.

    python tests/soak.py [--minutes 10] [--seed 1]

Two switches, one that patches and one that learns with two workers. On each two honest guests
exchange frames, every byte checked, through episodes of chance: a migration whose copy is compared,
a pause, a guest that starts anew, one that connects anew amid the traffic. Beside them a process
that means ill (attacks.py) acts at a third port, and is killed now and then; where it has a peer of
its own, that one sends to it all the while.

At the end of each minute everybody is at rest: then frames are accounted for, and memory, maps, fds
and threads of the switches counted. Exit code 1: something did not hold, and it says what.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from daemon import Daemon, ports, wait_for

from vhostfast.driver import Frontend, GuestMemory, Migration
from vhostfast.driver.traffic import Counters, Load, Station, Traffic, mac, pair
from vhostfast.errors import VhostfastError
from vhostfast.protocol.message import LOG_PAGE

ATTACKS = Path(__file__).with_name("attacks.py")
MEMORY = ((0, 8 << 20),)
SIZES = (64, 300, 1500, 590)
LAYOUTS = ("direct", "chained", "indirect")
PATIENCE_S = 240.0  # others may have the machine for minutes
MINUTE_S = 60.0
GROWTH_MAX = 4 << 20  # bytes of anonymous memory, from the first rest to the last
MAPS_MORE = 16  # of malloc's, which come with work
DROPS = ("rx_dropped_no_receiver", "tx_dropped_full")


class Fault(Exception):
    """Something did not hold: a sentence."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Fault(what)


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        require(time.monotonic() < deadline, what)
        time.sleep(0.005)


@dataclass(frozen=True)
class Size:
    """What a process holds while nobody does anything."""

    anonymous: int  # bytes
    maps: int
    fds: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Self:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        maps = Path(f"/proc/{pid}/maps").read_text().count("\n")
        fds = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        anonymous = int(fields["RssAnon"].split()[0]) << 10
        return cls(anonymous, maps, fds, int(fields["Threads"]))

    def within(self, other: Self) -> bool:
        """Of what must not grow; a thread that closes what was sent may be there at first."""
        return self.fds <= other.fds and self.threads <= other.threads


class Attackers:
    """A process of attacks.py, killed and begun anew by chance."""

    def __init__(self, path: Path, chance: random.Random) -> None:
        self.acts: Counter[str] = Counter()
        self.kills = 0
        self._path, self._chance = path, chance
        self._process: subprocess.Popen[str] | None = None
        self._until = 0.0

    def tend(self) -> None:
        """Now and then: begin, kill."""
        if self._process is None:
            command = [
                sys.executable,
                str(ATTACKS),
                str(self._path),
                str(self._chance.random())[2:],
            ]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            self._until = time.monotonic() + self._chance.uniform(0.5, 8.0)
        elif self._process.poll() is not None:
            raise Fault(f"an attacker has ended by itself, with {self._process.returncode}")
        elif time.monotonic() > self._until:
            self.stop()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            out, _ = self._process.communicate()
            self.acts.update(out.split())
            self.kills += 1
            self._process = None


class Guest:
    """An honest front-end, as it comes and goes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.memory = GuestMemory(MEMORY)
        self.frontend = Frontend(path, self.memory, timeout_s=PATIENCE_S)

    def start(self) -> None:
        self.frontend.start()

    def come_back(self) -> None:
        """Another front-end, another connection."""
        self.close()
        self.memory = GuestMemory(MEMORY)
        self.frontend = Frontend(self.path, self.memory, timeout_s=PATIENCE_S)

    def close(self) -> None:
        self.frontend.close()
        self.memory.close()


@dataclass
class Scene:
    """One switch, its two honest guests, and what comes to the third port."""

    name: str
    switch: Daemon
    guests: list[Guest]
    attackers: Attackers
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter)
    first: Size | None = None  # before any work
    warm: Size | None = None

    def episode(self, seconds: float) -> None:
        """Traffic, what happens amid it, and the account."""
        for guest in self.guests:
            guest.start()
        before = self.counted()
        frontends = [guest.frontend for guest in self.guests]
        load = Load(sizes=SIZES, layout=self.chance.choice(LAYOUTS))
        stations = pair(*frontends[:2])
        stations += [Station(guest, mac(3), mac(4), flow=2) for guest in frontends[2:]]
        traffic = Traffic(stations, load, idle="wait")
        with running(traffic, frontends):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                self.attackers.tend()
                happening = self.chance.choice(HAPPENINGS)
                happening(self, self.chance.choice((0, 1)), traffic)
                self.done[happening.__name__] += 1
                self.more(traffic)
        self.account(traffic, before)
        self.done["episodes"] += 1
        if self.chance.random() < 0.5:
            self.guests[self.chance.choice((0, 1))].come_back()
            self.done["came_back"] += 1

    def more(self, traffic: Traffic, count: int = 200) -> None:
        wanted = [traffic.counters(i).received + count for i in (0, 1)]
        eventually(
            lambda: all(traffic.counters(i).received >= wanted[i] for i in (0, 1)),
            f"{self.name}: the honest traffic has stopped",
        )

    def counted(self) -> dict[str, dict[str, int]]:
        ports: dict[str, dict[str, int]] = self.switch.summary()["ports"]
        return ports

    def account(self, traffic: Traffic, before: dict[str, dict[str, int]]) -> None:
        """Each frame came once, whole and in order, or was dropped for a reason that is counted."""
        after, total = self.counted(), traffic.counters(0) + traffic.counters(1)
        delta = {
            name: {key: after[name][key] - before[name][key] for key in after[name]}
            for name in after
        }
        came, late, twice = 0, 0, 0
        for station, flow in ((0, 1), (1, 0)):
            received, _, reordered, repeated = traffic.flow(station, flow)
            came, late, twice = came + received, late + reordered, twice + repeated
        sent, honest = total.sent, [delta["vm0"], delta["vm1"]]
        dropped = sum(port[key] for port in honest for key in DROPS)
        self.done["frames"] += came
        self.done["dropped"] += sent - came
        told = f"{self.name}: {sent} sent, {came} came, {dropped} dropped and counted"
        require(total.corrupt == 0, f"{told}, {total.corrupt} corrupt")
        require((late, twice) == (0, 0), f"{told}, {late} late, {twice} twice")
        require(total.done == sent, f"{told}, {total.done} given back")
        taken, given = (sum(port[key] for port in honest) for key in ("rx_packets", "tx_packets"))
        require(taken == sent, f"{told}, {taken} taken")
        require(given == total.received + total.foreign, f"{told}, {given} given")
        faults = {name: port["faults"] for name, port in delta.items() if name != "vm2"}
        require(not any(faults.values()), f"{told}, an honest port closed: {faults}")
        if self.name == "patch":
            require(sent - came == dropped, told)
        else:  # while an address is unknown its frames go to the third port, or are dropped there
            other = delta["vm2"]
            require(sent - came <= dropped + other["tx_packets"] + other["tx_dropped_full"], told)

    def rest(self) -> Size:
        """Once whoever means ill has left, and the others have stopped: what the switch holds."""
        self.attackers.stop()
        for guest in self.guests:
            guest.frontend.start()
            guest.frontend.stop()
        first = self.first
        if first is not None:
            eventually(
                lambda: Size.of(self.switch.pid).within(first),
                f"{self.name}: {Size.of(self.switch.pid)}, at first {first}",
            )
        return Size.of(self.switch.pid)

    def require_flat(self) -> None:
        """Memory counts from the first rest after work on: by then all has been used once."""
        first, now = self.first, self.rest()
        assert first is not None
        require(now.within(first), f"{self.name}: {now}, at first {first}")
        require(now.maps <= first.maps + MAPS_MORE, f"{self.name}: {now}, at first {first}")
        if self.warm is None:
            self.warm = now
        grown = now.anonymous - self.warm.anonymous
        require(grown <= GROWTH_MAX, f"{self.name}: {now}, at first {self.warm}")


# --- What happens amid the traffic ----------------------------------------------------------------


def nothing(_: Scene, __: int, ___: Traffic) -> None:
    time.sleep(0.2)


def pause(scene: Scene, who: int, _: Traffic) -> None:
    """The guest's rings stop, and go on where they were."""
    frontend = scene.guests[who].frontend
    frontend.stop()
    time.sleep(scene.chance.uniform(0, 0.05))
    frontend.resume()


def reconnect(scene: Scene, who: int, _: Traffic) -> None:
    """The connection is lost; the rings are taken up by the next."""
    guest = scene.guests[who]
    guest.frontend.reconnect(guest.path)


def migration(scene: Scene, who: int, traffic: Traffic) -> None:
    """What only the switch writes, receive buffers and their used ring, is copied as the log says,
    and equals memory when the rings have stopped."""
    guest = scene.guests[who]
    vring = guest.frontend.receive_ring()
    pools = [pool for pool in traffic.pools if pool.vring is vring]
    spans = [(pool.gpa, pool.size) for pool in pools] + [(vring.used_gpa, 6 + 8 * vring.size)]
    with Migration(guest.frontend) as log:
        log.begin()
        copy = {span: guest.memory.view(*span).copy() for span in spans}
        for turn in range(scene.chance.randrange(1, 6)):
            pages = log.replace() if turn % 3 == 2 else log.take()
            copy_pages(guest.memory, copy, pages)
            time.sleep(0.01)
        guest.frontend.stop()
        copy_pages(guest.memory, copy, log.take())
        for (gpa, size), data in copy.items():
            differ = np.flatnonzero(guest.memory.view(gpa, size) != data)
            if differ.size:
                page = (gpa + int(differ[0])) // LOG_PAGE
                raise Fault(f"{scene.name}: page {page:#x} was written and not marked")
    guest.frontend.resume()


def copy_pages(
    memory: GuestMemory, copy: dict[tuple[int, int], np.ndarray], pages: np.ndarray
) -> None:
    for (gpa, size), data in copy.items():
        for page in pages:
            first = max(int(page) * LOG_PAGE, gpa)
            end = min((int(page) + 1) * LOG_PAGE, gpa + size)
            if first < end:
                data[first - gpa : end - gpa] = memory.view(first, end - first)


HAPPENINGS = (nothing, pause, reconnect, migration)


@contextmanager
def running(traffic: Traffic, frontends: list[Frontend]) -> Iterator[None]:
    """To the last frame: all that the first two guests have sent is taken, then the rings stop, and
    what came by then is counted."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            traffic.run(linger_s=PATIENCE_S)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
        traffic.stop_sending()
        eventually(
            lambda: errors != [] or all(taken(traffic.counters(i)) for i in (0, 1)),
            f"not all is taken: {traffic.counters(0)}, {traffic.counters(1)}",
        )
        for frontend in frontends:
            frontend.stop()
    finally:
        traffic.stop()
        thread.join()
    if errors:
        raise Fault(f"an honest guest's ring: {errors[0]}")
    traffic.finish()


def taken(counters: Counters) -> bool:
    return counters.done == counters.sent


# --- The run ------------------------------------------------------------------------------------


@contextmanager
def scene(folder: Path, forward: str, cpus: str, seed: int) -> Iterator[Scene]:
    names = "abcd" if forward == "patch" else "abc"
    paths = [folder / f"{forward}-{name}" for name in names]
    options = [*ports(*paths), f"--forward={forward}", f"--cpus={cpus}", "--json"]
    with ExitStack() as stack:
        switch = Daemon(*options, log=folder / f"{forward}.log")
        stack.callback(switch.kill)
        wait_for(*paths)
        guests = [Guest(path) for path in paths if path != paths[2]]
        for guest in guests:
            stack.callback(guest.close)
        chance = random.Random(seed)
        attackers = Attackers(paths[2], chance)
        stack.callback(attackers.stop)
        it = Scene(forward, switch, guests, attackers, chance)
        it.first = it.rest()
        yield it
        switch.end()


def soak(seconds: float, seed: int, folder: Path) -> None:
    """Raises Fault."""
    with scene(folder, "patch", "0", seed) as one, scene(folder, "learn", "0,1", seed + 1) as two:
        began, minute = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            end = min(began + seconds, time.monotonic() + min(MINUTE_S, seconds / 3))
            while time.monotonic() < end:
                for it in (one, two):
                    it.episode(it.chance.uniform(1.0, 4.0))
            minute += 1
            for it in (one, two):
                it.require_flat()
            print(f"{time.monotonic() - began:6.0f} s  {line(one)}; {line(two)}", flush=True)
        for it in (one, two):
            acts = ", ".join(f"{name} {n}" for name, n in sorted(it.attackers.acts.items()))
            print(f"{it.name}: {it.attackers.kills} attackers killed: {acts}")


def line(it: Scene) -> str:
    size, done = Size.of(it.switch.pid), it.done
    happened = ", ".join(f"{name} {done[name]}" for name in ("migration", "reconnect", "pause"))
    return (
        f"{it.name}: {done['frames']} frames whole, {done['dropped']} dropped and counted,"
        f" {happened}, came back {done['came_back']}, {sum(it.attackers.acts.values())} attacks,"
        f" {size.anonymous >> 10} KiB, {size.fds} fds, {size.maps} maps"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Honest and hostile guests for a long time.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            soak(arguments.minutes * 60, arguments.seed, Path(folder))
        except (Fault, VhostfastError) as fault:
            print(f"FAILED: {fault}")
            for log in Path(folder).glob("*.log"):
                print(f"--- {log.name}", *log.read_text().splitlines()[-20:], sep="\n")
            return 1
    print("good: nothing lost on honest ports that was not counted, memory and fds flat")
    return 0


if __name__ == "__main__":
    sys.exit(main())
