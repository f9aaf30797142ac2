"""What can be asked of a run, and how what can't is refused."""

import json
from typing import Any

import pytest

from vhostfast.bench.workload import HUGEPAGE, PATTERNS, Frames, Plan, Workload, parse_frames
from vhostfast.errors import UsageError


def test_sizes_and_imix() -> None:
    frames = parse_frames("60, 1514,IMIX")
    assert [one.name for one in frames] == ["60", "1514", "imix"]
    assert [one.mean for one in frames[:2]] == [60, 1514]
    assert sorted(frames[2].sizes) == [60] * 7 + [590] * 4 + [1514]
    assert frames[2].mean == pytest.approx((7 * 60 + 4 * 590 + 1514) / 12)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("59", "59 bytes doesn't fit: give 60 to 1514"),
        ("1515", "1515 bytes doesn't fit"),
        ("64,,1500", "'' is not a number"),
        ("-64", "'-64' is not a number"),
        ("6e1", "not a number"),
        ("big", "'big' is not a number of bytes, nor imix"),
        ("64,512,64", "given twice"),
    ],
)
def test_sizes_that_do_not_fit(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_frames(text)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"pattern": "round"},
            "--pattern round: choose one of both-ways, one-way, loop, send-only, receive-only",
        ),
        ({"load": "heavy"}, "--load heavy: choose one of full, touch, lean"),
        ({"layout": "odd"}, "--layout odd: choose"),
        ({"forward": "flood"}, "--forward flood: choose one of patch, learn"),
        ({"forward": "learn", "ports": 4}, "--forward learn: frames go to all 4 guests until"),
        ({"busy": "3"}, "--busy 3: choose one of all, 2"),
        ({"ports": 3}, "--ports 3: give 2 to 256, two by two"),
        ({"ports": 0}, "--ports 0: give"),
        ({"ports": 258}, "--ports 258: give"),
        ({"ports": 4, "pattern": "loop"}, "--ports 4: --pattern loop has one guest"),
        (
            {"frames": parse_frames("64,512"), "pattern": "receive-only"},
            "--pattern receive-only: give one of --sizes",
        ),
        ({"frames": parse_frames("imix"), "pattern": "receive-only"}, "give one of --sizes"),
        ({"ports": 4, "pattern": "send-only"}, "--ports 4: --pattern send-only has one guest"),
        ({"ports": 256, "queues": 8}, "--ports 256 of --queues 8: the driver turns 1024 pairs"),
        ({"buffer_size": 100}, "--buffer-size 100: give 128 to 2112 bytes"),
        ({"buffer_size": 4096}, "--buffer-size 4096: give"),
        (
            {"frames": parse_frames("1500"), "buffer_size": 1024, "mergeable": False},
            "--buffer-size 1024: a frame takes several .*: leave --no-mergeable away",
        ),
        (
            {"frames": parse_frames("64,imix"), "buffer_size": 1024},
            "--buffer-size 1024: --load lean counts buffers",
        ),
        ({"log": "maybe"}, "--log maybe: choose one of off, on, both"),
        ({"mode": "sleep"}, "--mode sleep: choose one of poll, interrupt, adaptive"),
        ({"ring_size": 100}, "--ring-size 100: give a power of two, 64 to 32768"),
        ({"ring_size": 32}, "--ring-size 32"),
        ({"ring_size": 65536}, "--ring-size 65536"),
        ({"queues": 0}, "--queues 0"),
        ({"queues": 17}, "--queues 17: give 1 to 16"),
        ({"regions": 0}, "--regions 0: give 1 to 509"),
        ({"frames": ()}, "--sizes: there are none"),
        ({"regions": 510}, "--regions 510: give 1 to 509"),
        (
            {"regions": 509, "pattern": "one-way"},
            "--regions 509: there are 256 buffers, .*: give fewer, or a larger --ring-size",
        ),
        ({"regions": 257, "layout": "chained"}, "--regions 257: there are 256 buffers"),
    ],
)
def test_workloads_that_cannot_be(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Workload(**change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rounds": 0}, "at least one round"),
        ({"seconds": 0.0}, "some time"),
        ({"seconds": float("nan")}, "some time"),
        ({"warm_up_s": -1.0}, "--warm-up -1: give seconds"),
        ({"worker_cpu": 3, "driver_cpu": 3}, "both 3"),
    ],
)
def test_plans_that_cannot_be(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Plan(**change)


def test_memory_is_whole_hugepages_and_grows_with_the_rings() -> None:
    sizes = [
        Workload(ring_size=size, queues=queues).memory_size(size)
        for size, queues in ((64, 1), (256, 1), (4096, 1), (4096, 4))
    ]
    assert sizes == sorted(sizes)
    assert all(size % HUGEPAGE == 0 for size in sizes)
    assert sizes[-1] > 4 * 2 * 4096 * 2112  # the buffers alone


@pytest.mark.parametrize("queues", [1, 3])
@pytest.mark.parametrize("ring_size", [256, 32768])
@pytest.mark.parametrize("regions", [1, 3, 8, 127, 509])
def test_memory_is_cut_at_pages_and_stays_whole(ring_size: int, regions: int, queues: int) -> None:
    work = Workload(ring_size=ring_size, regions=regions, queues=queues)
    cuts = work.cuts()
    assert len(cuts) == regions
    assert [gpa for gpa, _ in cuts] == [0, *(gpa + size for gpa, size in cuts[:-1])]
    assert all(gpa % 4096 == 0 and size > 0 for gpa, size in cuts)
    assert sum(size for _, size in cuts) == work.memory_size(ring_size)


def test_alone_or_two_by_two() -> None:
    guests = {name: Workload(pattern=name).guests for name in PATTERNS}
    assert guests == {"both-ways": 2, "one-way": 2, "loop": 1, "send-only": 1, "receive-only": 1}
    assert (Workload(ports=64).guests, Workload(ports=64).busy_guests) == (64, 64)
    assert (Workload(ports=64, busy="2").guests, Workload(ports=64, busy="2").busy_guests) == (
        64,
        2,
    )


@pytest.mark.parametrize(
    ("layout", "buffer_size", "merges"),
    [
        ("direct", 512, False),
        ("direct", 511, True),
        ("chained", 564, False),
        ("chained", 563, True),
    ],
)
def test_when_a_frame_takes_several_buffers(layout: str, buffer_size: int, merges: bool) -> None:
    frames = parse_frames("64,500")
    assert Workload(frames, layout=layout, buffer_size=buffer_size).merges is merges


def test_a_plan_as_json() -> None:
    plan = Plan(Workload((Frames("64", (64,)), Frames("x", (60, 70)))))
    told = plan.as_dict()
    assert json.loads(json.dumps(told)) == told
    assert told["workload"]["frames"][1] == {"name": "x", "sizes": [60, 70]}
