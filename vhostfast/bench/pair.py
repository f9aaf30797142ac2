"""Two virtual machines and the switch between them, three processes: verified traffic both ways.

Worker cycles come from the switch itself: asked by SIGUSR1 before and after, it prints its counters
(`vhostfast switch --json`).
"""

import asyncio
import json
import os
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from vhostfast.driver.traffic import Counters
from vhostfast.errors import VhostfastError

Progress = Callable[[int, int, float], None]  # size, packets so far, share of the time: 0 to 1

ANSWER_S = 10.0  # longer than any answer takes on a machine that is busy with something else
END_S = 2.0
PATIENCE = 10  # looks at what is under way, after which what has not come is lost


@dataclass(frozen=True, slots=True)
class Result:
    """What became of the frames of one size (bytes, without FCS), both ways together.

    `packets` arrived good; the first `counted` of them in `seconds`, while both were sending.
    `cycles` are the switch's, for each packet it moved.
    """

    size: int
    packets: int
    counted: int
    seconds: float
    cycles: float
    lost: int
    corrupt: int
    reordered: int

    @property
    def mpps(self) -> float:
        """Millions of packets a second."""
        return self.counted / self.seconds / 1e6

    @property
    def gbps(self) -> float:
        """Gigabits of frames a second."""
        return self.mpps * self.size * 8 / 1e3

    @property
    def good(self) -> bool:
        """Whether packets went and each arrived once, in order and unharmed."""
        return self.packets > 0 and not (self.lost or self.corrupt or self.reordered)


class Talker:
    """A process that we talk to in JSON lines."""

    def __init__(self, name: str, process: Process) -> None:
        self.name = name
        self.process = process

    async def say(self, **order: object) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        await self.process.stdin.drain()

    async def hear(self) -> dict[str, Any]:
        """Its next line. Raises VhostfastError if it has ended or is silent for too long."""
        assert self.process.stdout
        try:
            line = await asyncio.wait_for(self.process.stdout.readline(), ANSWER_S)
        except TimeoutError:
            raise VhostfastError(f"{self.name} has said nothing for {ANSWER_S:.0f} s") from None
        if not line:
            await self.ended()
        heard: dict[str, Any] = json.loads(line)
        return heard

    async def ask(self, **order: object) -> dict[str, Any]:
        """Say something and hear the answer."""
        await self.say(**order)
        return await self.hear()

    async def ended(self) -> NoReturn:
        """Wait until it ends, though it should not: raises VhostfastError then."""
        code = await self.process.wait()
        raise VhostfastError(f"{self.name} has ended, exit code {code}: see above why")


@asynccontextmanager
async def talker(name: str, module: str, *arguments: str) -> AsyncIterator[Talker]:
    """`python -m module arguments`, ended with the block: asked first, then killed."""
    command = (sys.executable, "-m", module, *arguments)
    # Of a session of its own: Ctrl-C is for us, who then end it.
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, start_new_session=True
    )
    try:
        yield Talker(name, process)
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.communicate(), END_S)
        except TimeoutError:
            process.kill()
            await process.communicate()


async def exchange(sizes: Sequence[int], seconds: float, progress: Progress) -> list[Result]:
    """Run the three processes and let both machines send for `seconds` at each of `sizes`.

    Raises VhostfastError if one of the processes fails.
    """
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vhostfast-"))
        sockets = [os.path.join(folder, f"vm{number}.sock") for number in range(2)]
        ports = [f"--port=vm{number}=vhost-user:{path}" for number, path in enumerate(sockets)]
        options = ("--forward=patch", f"--mode={mode()}", "--json", "--log-level=warning")
        switch = await stack.enter_async_context(
            talker("the switch", "vhostfast", "switch", *ports, *options)
        )
        machines = [
            await stack.enter_async_context(
                talker(f"virtual machine {number}", "vhostfast.bench.machine", path)
            )
            for number, path in enumerate(sockets)
        ]
        all_sizes = _all_sizes(switch, machines, sizes, seconds, progress)
        tasks = [asyncio.create_task(job) for job in (all_sizes, switch.ended())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:  # nobody hears of a process that is to be ended
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def mode() -> str:
    """How the switch's worker waits, and so how all three do.

    Three that never sleep need three CPUs, and one for everybody else; on fewer each gives way when
    it has nothing to do, or else a packet waits for the scheduler.
    """
    return "poll" if len(os.sched_getaffinity(0)) >= 4 else "adaptive"


async def _all_sizes(
    switch: Talker,
    machines: list[Talker],
    sizes: Sequence[int],
    seconds: float,
    progress: Progress,
) -> list[Result]:
    return [await _one_size(switch, machines, size, seconds, progress) for size in sizes]


async def _one_size(
    switch: Talker, machines: list[Talker], size: int, seconds: float, progress: Progress
) -> Result:
    for number, machine in enumerate(machines):
        idle = "spin" if mode() == "poll" else "wait"
        await machine.say(size=size, number=number, idle=idle)
    for machine in machines:
        await machine.hear()
    before = await _summary(switch)
    for machine in machines:
        await machine.say(seconds=seconds)
    received = [0, 0]
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def follow(number: int) -> dict[str, Any]:
        while "counters" not in (heard := await machines[number].hear()):
            received[number] = heard["received"]
            progress(size, sum(received), min((loop.time() - began) / seconds, 1.0))
        return heard

    reports = list(await asyncio.gather(follow(0), follow(1)))
    for _ in range(PATIENCE):
        if not _lost(reports):
            break
        reports = await asyncio.gather(*[machine.ask(again=True) for machine in machines])
    after = await _summary(switch)
    for machine in machines:
        await machine.say(again=False)
    progress(size, sum(report["counters"]["received"] for report in reports), 1.0)
    moved = after["packets"] - before["packets"]
    cycles = (after["busy_cycles"] - before["busy_cycles"]) / moved if moved else 0.0
    return _result(size, reports, cycles)


async def _summary(switch: Talker) -> dict[str, Any]:
    switch.process.send_signal(signal.SIGUSR1)
    return await switch.hear()


def _lost(reports: Sequence[dict[str, Any]]) -> int:
    """Packets that one machine has sent and the other has not received, both ways."""
    first, second = (Counters(**report["counters"]) for report in reports)
    return first.lost(second.sent) + second.lost(first.sent)


def _result(size: int, reports: Sequence[dict[str, Any]], cycles: float) -> Result:
    counters = [Counters(**report["counters"]) for report in reports]
    return Result(
        size=size,
        packets=sum(one.received for one in counters),
        counted=sum(report["received"] for report in reports),
        seconds=max(report["seconds"] for report in reports),
        cycles=cycles,
        lost=_lost(reports),
        corrupt=sum(one.corrupt + one.foreign for one in counters),
        reordered=sum(one.reordered + one.repeated for one in counters),
    )
