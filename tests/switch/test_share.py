"""How descriptors and addresses are shared out among ports, and what the switch says if they are
too few."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from daemon import COMMAND, daemon, ports

from vhostfast.driver import Frontend, GuestMemory
from vhostfast.protocol.message import Request
from vhostfast.switch import share
from vhostfast.switch.config import Config, PortSpec
from vhostfast.switch.share import FDS_OF_PAIR, memory_max, memory_slots, pairs_each

LIMITED = (
    "import os, resource, sys; n = int(sys.argv[1]);"
    " resource.setrlimit(resource.RLIMIT_NOFILE, (n, n)); os.execv(sys.argv[2], sys.argv[2:])"
)


@pytest.mark.parametrize(
    ("fds", "wanted", "pairs"),
    [
        (10_000, [128, 128], 128),
        (FDS_OF_PAIR * 200, [128, 128], 100),
        (FDS_OF_PAIR * 200, [128, 8], 128),
        (FDS_OF_PAIR * 100, [128, 8], 92),
        (FDS_OF_PAIR * 2, [128, 128], 1),
        (FDS_OF_PAIR * 2 - 1, [128, 128], 0),
        (-1, [1], 0),
    ],
)
def test_pairs_are_as_many_as_all_ports_may_use_at_once(fds, wanted, pairs):
    assert pairs_each(fds, wanted) == pairs


@pytest.mark.parametrize("ports", [1, 2, 3, 256])
def test_all_ports_old_and_new_memory_fit_in_our_addresses(ports):
    assert 2 * ports * memory_max(ports) <= (1 << 47) - (15 << 40)
    assert memory_max(ports) >= 200 << 30


@pytest.mark.parametrize(
    ("limit", "maps", "ports", "slots"),
    [
        (1 << 20, 65530, 2, 61434 // 3),
        (1 << 20, 65530, 256, 239),
        (64 + 2 + 2 * (48 + 6), 65530, 2, 8),
        (64 + 2 + 2 * (48 + 6 + 100), 65530, 2, 108),
        (1 << 20, 4096, 2, 8),
        (1 << 20, None, 256, 239),
    ],
)
def test_regions_are_as_many_as_all_ports_may_have_at_once(
    monkeypatch, tmp_path, limit, maps, ports, slots
):
    monkeypatch.setattr(share, "MAPS_MAX", tmp_path / "max_map_count")
    if maps is not None:
        share.MAPS_MAX.write_text(f"{maps}\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    config = Config(tuple(PortSpec(f"vm{i}", f"/run/{i}", queue_pairs=1) for i in range(ports)))
    assert memory_slots(config) == slots


@pytest.mark.parametrize(
    ("limit", "pairs", "slots"),
    [(400, 47, 12), (64 + 2 + 48 + 6 * 128 + 92, 128, 100), (20_000, 128, 509)],
)
def test_what_is_offered_is_what_there_are_fds_for(tmp_path, monkeypatch, limit, pairs, slots):
    monkeypatch.setattr("daemon.COMMAND", [sys.executable, "-c", LIMITED, str(limit), *COMMAND])
    with daemon(*ports(tmp_path / "a", options=",queues=128")) as switch:
        with GuestMemory(((0, 4 << 20),)) as memory, Frontend(tmp_path / "a", memory) as frontend:
            offered = frontend.ask(Request.GET_QUEUE_NUM)
            assert frontend.ask(Request.GET_MAX_MEM_SLOTS) == slots
        _, err = switch.end()
    assert offered == pairs
    assert ("each port offers" in err) == (offered < 128)


@pytest.mark.hostile("process", "too few file descriptors for one queue pair a port", "exits")
def test_too_few_fds_is_a_sentence(tmp_path: Path) -> None:
    limited = [sys.executable, "-c", LIMITED, "100", *COMMAND, *ports(tmp_path / "a")]
    ended = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert ended.returncode == 3
    assert ended.stderr.startswith("vhostfast: 1 ports may take 120 file descriptors and this")
    assert os.listdir(tmp_path) == []
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 100
