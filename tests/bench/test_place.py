"""What a run says of its machine, and demands of it."""

import os
import resource
import subprocess
import sys

import pytest

from vhostfast.bench import place
from vhostfast.bench.workload import Plan, Workload
from vhostfast.errors import EnvironmentLacks, UsageError

CPUS = sorted(os.sched_getaffinity(0))
VAST = Plan(Workload(ring_size=32768, queues=16))  # 4.7 GiB of 2 MiB pages


def test_a_machine_is_told_by_what_a_figure_depends_on() -> None:
    told = place.describe()
    assert told["cpus"] == os.cpu_count()
    assert told["kernel"] == os.uname().release
    assert told["cpu"]
    assert told["version"]
    assert set(told) == {"cpu", "cpus", "kernel", "hugepages", "version", "commit"}


def test_hugepages_that_lack() -> None:
    free = place.hugepages()[1]
    with pytest.raises(EnvironmentLacks, match=rf"^{free} hugepages .* are needed; as root: echo"):
        place.choose_hugepages("on", VAST)
    use, sentence = place.choose_hugepages("auto", VAST)
    assert not use
    assert f"Pages of 4 KiB, which are slower: {free} hugepages" in sentence
    assert place.choose_hugepages("off", VAST) == (False, "")
    with pytest.raises(UsageError, match="--hugepages maybe: choose one of auto, on, off"):
        place.choose_hugepages("maybe", VAST)


def test_hugepages_that_are_there() -> None:
    free, plan = place.hugepages()[1], Plan()
    use, sentence = place.choose_hugepages("auto", plan)
    assert use == (free >= 2 + place.SPARE_HUGEPAGES)
    assert bool(sentence) != use


def test_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as are needed, and never fewer than before."""
    limits = [(1024, 20000)]
    monkeypatch.setattr(resource, "getrlimit", lambda _which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _which, limit: limits.append(limit))
    place.require_fds(Plan())
    assert limits == [(1024, 20000)]
    place.require_fds(Plan(Workload(ports=256)))
    assert limits[1:] == [(5504, 20000)]
    place.require_fds(Plan(Workload(ports=128)))
    assert limits[2:] == []
    place.require_fds(Plan(Workload(ports=256, busy="2", regions=8)))
    assert limits[2:] == [(7296, 20000)]
    limits.append((1024, 8192))
    with pytest.raises(EnvironmentLacks, match=r"256 guests of 4 .* need 11648 .* and 8192 are al"):
        place.require_fds(Plan(Workload(ports=256, queues=4)))


@pytest.mark.parametrize("which", ["worker", "driver"])
def test_a_cpu_that_is_not_there(which: str) -> None:
    cpus = {"worker_cpu": CPUS[0], "driver_cpu": CPUS[-1], f"{which}_cpu": 4095}
    with pytest.raises(EnvironmentLacks, match=f"--{which}-cpu 4095: there is no such CPU"):
        place.require_cpus(Plan(**cpus))


@pytest.mark.slow
def test_a_cpu_that_others_have() -> None:
    spin = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    command = ["taskset", "-c", str(CPUS[0]), *spin]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout
            other.stdout.readline()
            with pytest.raises(EnvironmentLacks, match=f"CPU {CPUS[0]} is busy, perhaps with"):
                place.require_free(CPUS[0])
        finally:
            other.kill()


def test_other_threads_make_way_and_come_back() -> None:
    before = os.sched_getaffinity(0)
    plan = Plan(worker_cpu=CPUS[0], driver_cpu=CPUS[-1])
    with place.out_of_the_way(plan):
        inside = os.sched_getaffinity(0)
        assert CPUS[0] not in inside
        assert inside == {CPUS[-1]} or CPUS[-1] not in inside
    assert os.sched_getaffinity(0) == before


def test_the_distance_is_that_of_a_cache_line() -> None:
    before = os.sched_getaffinity(0)
    assert 1 < place.distance(CPUS[0], CPUS[-1]) < 100_000
    assert os.sched_getaffinity(0) == before
