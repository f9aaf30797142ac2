"""A measurement is of what arrived as it was sent, or it is none."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vhostfast.bench import place, sample
from vhostfast.bench.backend import Backend, bare, null, ours, running
from vhostfast.bench.sample import Sample, connected, measure, verify
from vhostfast.bench.workload import Frames, Plan, Workload, parse_frames
from vhostfast.driver.migration import Migration
from vhostfast.driver.traffic import Counters
from vhostfast.errors import EnvironmentLacks, UsageError, VhostfastError
from vhostfast.protocol.message import Region

CPUS = sorted(os.sched_getaffinity(0))
FAULTY = Path(__file__).parent / "faulty.py"
(SMALL,) = parse_frames("64")
pytestmark = pytest.mark.slow


def plan(**workload: object) -> Plan:
    work = Workload(**workload)  # type: ignore[arg-type]
    return Plan(work, seconds=0.1, warm_up_s=0.05, worker_cpu=CPUS[0], driver_cpu=CPUS[-1])


def both(backend: Backend, of: Plan, frames: Frames = SMALL) -> tuple[Counters, Sample]:
    with running(backend, of) as run, connected(run, of) as guests:
        return verify(guests, frames), measure(guests, frames)


@pytest.mark.parametrize(
    "workload",
    [
        {},
        {"pattern": "one-way", "load": "touch"},
        {"pattern": "loop", "load": "full", "mode": "adaptive"},
        {"queues": 2, "layout": "chained", "mergeable": False, "mode": "interrupt"},
        {"ring_size": 1024, "layout": "indirect", "load": "full"},
        {"log": "on", "load": "touch", "queues": 2},
        {"ports": 6, "busy": "2"},
        {"ports": 6, "pattern": "one-way", "load": "touch"},
        {"buffer_size": 512, "load": "touch"},
        {"buffer_size": 500, "load": "full", "layout": "indirect", "ring_size": 1024},
        {"regions": 8, "load": "touch", "ring_size": 64},
        {"regions": 8, "load": "full", "layout": "indirect", "queues": 4},
        {"regions": 509},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", ["64", "imix"])
def test_our_switch_under_every_workload(workload: dict[str, object], size: str) -> None:
    of = plan(**workload)
    (frames,) = parse_frames(size)
    checked, timed = both(replace(ours(of), log=of.workload.log == "on"), of, frames)
    senders = {"loop": 1, "one-way": 3 if of.workload.ports == 6 else 1}.get(of.workload.pattern, 2)
    assert checked.received == checked.verified == senders * of.workload.queues * 20_000
    assert timed.mpps > 0
    assert timed.cycles > 0
    assert timed.lost == 0
    assert timed.verified > 0
    assert 0 <= timed.idle <= 1
    assert 0 <= timed.starved <= 1


def test_memory_of_busy_guests_is_told_in_pieces() -> None:
    of = plan(regions=8, ports=4, busy="2")
    with running(ours(of), of) as run, connected(run, of) as guests:
        assert [len(one.memory.regions) for one in guests.frontends] == [8, 8, 1, 1]


@pytest.mark.parametrize(
    "workload",
    [
        {"regions": 509},
        {"regions": 256, "layout": "chained"},
        {"regions": 256, "pattern": "one-way", "load": "touch"},
        {"regions": 509, "pattern": "loop", "queues": 4, "layout": "indirect"},
        {"regions": 8, "ring_size": 64},
    ],
    ids=str,
)
def test_every_region_has_buffers_and_the_first_has_the_rings(workload: dict[str, object]) -> None:
    """And each lies in one region."""
    of = plan(**workload)
    with (
        running(ours(of), of) as run,
        connected(run, of) as guests,
        guests.traffic(of.workload.frames[0], of.workload.load, 1) as traffic,
    ):
        regions = guests.frontends[0].memory.regions
        rings, seen = [], set()
        for pool in traffic.pools:
            if pool.vring.memory is guests.frontends[0].memory:
                slots = pool.vring.size >> (of.workload.layout == "chained")
                for gpa in range(pool.gpa, pool.gpa + slots * pool.stride, pool.stride):
                    assert where(regions, gpa) == where(regions, gpa + 2111)
                    seen.add(where(regions, gpa))
                rings.append(where(regions, pool.vring.used_gpa + 6 + 8 * pool.vring.size))
    assert seen == set(range(len(regions)))
    assert set(rings) == {0}


def where(regions: tuple[Region, ...], gpa: int) -> int:
    (found,) = [i for i, one in enumerate(regions) if one.gpa <= gpa < one.gpa + one.size]
    return found


def test_learned_addresses() -> None:
    """A frame for a guest that is behind is dropped, as by any bridge; what comes is right."""
    of = plan(forward="learn", load="full")
    checked, timed = both(ours(of), of)
    assert 0 < checked.received == checked.verified <= 40_000
    assert timed.mpps > 0


def faulty(kind: str) -> Backend:
    return Backend(kind, f"{sys.executable} {FAULTY} {kind} {{0}}")


def test_a_slow_honest_one_passes() -> None:
    checked, timed = both(faulty("good"), plan(pattern="loop", load="full"))
    assert checked.received == checked.verified > 0
    assert timed.mpps > 0


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("flip", VhostfastError, r"^flip: frames of 64 bytes did not arrive as .*: \d+ corrupt of"),
        ("twice", VhostfastError, r"^twice: .*: \d+ repeated of"),
        ("drop", EnvironmentLacks, r"^drop took 20000 packets and delivered none"),
        ("deaf", EnvironmentLacks, r"^deaf took no packet of 256 that were offered"),
        ("die", EnvironmentLacks, r"^die has ended, exit code 9; it said:\n(.*\n)*out of luck"),
        ("mute", EnvironmentLacks, r"^mute doesn't answer at /"),
    ],
)
def test_a_fault_is_a_sentence(
    kind: str, error: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "ANSWER_S", 1.0)
    with pytest.raises(error, match=says) as caught:
        both(faulty(kind), plan(pattern="loop", load="full"))
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("flip", "corrupt"),
        ("die", "has ended, exit code 9"),
        ("deaf", "took no packet"),
        ("tired", r"^tired delivered \d+ packets before the time that counts, and none in it"),
    ],
)
def test_the_timed_part_sees_it_too(kind: str, says: str) -> None:
    """Without the pass before, which would have stopped at it."""
    of = plan(pattern="loop", load="full")
    with (
        pytest.raises(VhostfastError, match=says),
        running(faulty(kind), of) as run,
        connected(run, of) as guests,
    ):
        measure(guests, SMALL)


def test_sockets_that_nobody_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "ANSWER_S", 0.2)
    backend = Backend("running", sockets=(str(tmp_path / "a"), str(tmp_path / "b")))
    with pytest.raises(EnvironmentLacks, match=rf"nobody serves {tmp_path}/a: start the back-end"):
        both(backend, plan())


def test_more_queues_than_there_are() -> None:
    of = plan(pattern="loop", queues=2)
    one = Backend("one", ours(of).command.replace("{socket}", "{socket},queues=1"))
    with pytest.raises(UsageError, match="queue_pairs=2: the back-end has 1"):
        both(one, of)


def test_null_need_not_be_right() -> None:
    of = plan(load="full")
    with running(null(of), of) as run, connected(run, of) as guests:
        timed = measure(guests, SMALL)
    assert timed.mpps > 0
    assert timed.lost == 0


def test_lean_frames_in_small_buffers() -> None:
    (frames,) = parse_frames("1500")
    of = plan(buffer_size=512)
    checked, timed = both(
        ours(replace(of, workload=replace(of.workload, frames=(frames,)))), of, frames
    )
    assert checked.received == 40_000
    assert timed.lost == 0
    with (
        running(ours(of), of) as run,
        connected(run, of) as guests,
        guests.traffic(frames, "lean", 1) as traffic,
    ):
        assert traffic.pools[0].stride == 512
    assert timed.verified > 100  # with their rest, or they would not be right


def test_a_guest_that_only_sends() -> None:
    of = plan(pattern="send-only")
    with running(replace(ours(of), checked=False), of) as run, connected(run, of) as guests:
        timed = measure(guests, SMALL)
    assert timed.mpps > 0
    with pytest.raises(EnvironmentLacks, match="deaf took no packet of"):
        both(replace(faulty("deaf"), checked=False), of)


@pytest.mark.parametrize("load", ["lean", "touch", "full"])
def test_a_guest_that_only_receives(load: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a back-end sends by itself: nobody knows its bytes, but how long they are."""
    monkeypatch.setattr(sample, "VERIFIED_PACKETS", 500)
    of = plan(pattern="receive-only", load=load, log="on")
    checked, timed = both(replace(faulty("talk"), log=True), of)
    assert (checked.received, checked.corrupt, checked.sent) == (0, 0, 0)
    assert checked.foreign > 0
    assert checked.foreign_bytes == 64 * checked.foreign
    assert timed.mpps > 0
    assert (timed.verified, timed.lost) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "size", "error", "says"),
    [
        ("talk", 512, UsageError, "^--sizes 512: what talk sends has 64 bytes on average"),
        ("babble", 64, UsageError, r"^--sizes 64: what babble sends has 64\.5 bytes on average"),
        ("deaf", 64, EnvironmentLacks, "^deaf sent nothing, .* with --forward-mode=txonly"),
    ],
)
def test_nothing_or_something_else_to_receive(
    kind: str, size: int, error: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "VERIFY_S", 0.5)
    (frames,) = parse_frames(str(size))
    with pytest.raises(error, match=says) as caught:
        both(faulty(kind), plan(pattern="receive-only", frames=(frames,)), frames)
    assert type(caught.value) is error


def test_lengths_that_cannot_be() -> None:
    of = plan(pattern="receive-only")
    with running(faulty("talk"), of) as run, connected(run, of) as guests:
        with pytest.raises(VhostfastError, match="talk: 3 of 10 frames have a length that can't"):
            guests.require_right(SMALL, Counters(foreign=7, foreign_bytes=448, corrupt=3))
        guests.require_right(SMALL, Counters(foreign=7, foreign_bytes=448))


def test_256_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of which sends and receives."""
    monkeypatch.setattr(sample, "VERIFIED_PACKETS", 100)
    of = plan(ports=256)
    place.require_fds(of)
    for backend in (ours(of), bare(of)):
        with running(backend, of) as run, connected(run, of) as guests:
            assert len(guests.frontends) == 256
            assert verify(guests, SMALL).verified == 256 * 100


# --- The log --------------------------------------------------------------------------------------


def test_the_log_is_read_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was marked once is marked again after that."""
    takes: list[int] = []
    take = Migration.take

    def noted(migration: Migration) -> object:
        pages = take(migration)
        takes.append(len(pages))
        return pages

    monkeypatch.setattr(Migration, "take", noted)
    monkeypatch.setattr(sample, "LOG_TAKE_S", 0.0)
    of = plan()
    with running(replace(ours(of), log=True), of) as run, connected(run, of) as guests:
        measure(guests, SMALL)
    assert sum(count > 0 for count in takes) > 2


def test_one_that_marks_nothing_is_found_out() -> None:
    of = plan()
    with pytest.raises(VhostfastError, match="bare: the log is on, and nothing was marked in it"):
        both(replace(bare(of), log=True), of)


def test_one_that_can_not_log() -> None:
    of = plan(pattern="loop", load="full")
    with pytest.raises(
        UsageError, match=r"^logless: .* does not offer LOG_SHMFD: .*; give --log off"
    ):
        both(replace(faulty("logless"), log=True), of)


def test_frames_for_others_are_found_out() -> None:
    """Four guests whose back-end joins the first to the third."""
    of = plan(ports=4)
    crossed = ours(of).command.replace("{socket}", "")
    crossed = crossed.replace("--port=vm{n}=vhost-user:", "")
    crossed += " ".join(f"--port=vm{n}=vhost-user:{{{n}}}" for n in (0, 2, 1, 3))
    with pytest.raises(VhostfastError, match=r"^crossed: guest 0 has frames that were for others"):
        both(Backend("crossed", crossed), of)
