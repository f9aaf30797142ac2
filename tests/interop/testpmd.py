"""dpdk-testpmd as a peer: a front-end, a back-end, a wire between pcap files.

Commands go to its prompt by stdin; what stands before the next prompt is the answer. Behind a pipe
libc would hold answers back while prompts pass at once, hence `stdbuf -o0`. testpmd quits at the
end of its stdin, so none survives a test process that was killed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from child import Child

PROGRAM = "dpdk-testpmd"
PROMPT = "testpmd> "
MEMORY_MIB = 192


@dataclass(frozen=True, slots=True)
class PortStats:
    """What `show port stats` says of one port; packets and bytes since testpmd started."""

    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int


class Testpmd(Child):
    """One testpmd, with `threads` that forward.

    `folder` holds its run-time files; `cpus` are those of its main thread and of its forwarding
    threads, by default the last that we may use. `options` are testpmd's own, behind the `--`.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    def __init__(
        self,
        name: str,
        folder: Path,
        vdevs: Sequence[str],
        *,
        options: Sequence[str] = (),
        threads: int = 1,
        cpus: tuple[int, int] | None = None,
    ) -> None:
        last = max(os.sched_getaffinity(0))
        main, forwarding = cpus or (last, last)
        lcores = ",".join([f"0@{main}", *(f"{n}@{forwarding}" for n in range(1, threads + 1))])
        argv = ["stdbuf", "-o0", PROGRAM, "--lcores", lcores, "--no-pci"]
        argv += ["--no-telemetry", "--no-shconf", "--no-huge", "-m", str(MEMORY_MIB)]
        argv += ["--log-level=pmd.net.virtio.init:info"]
        argv += [word for vdev in vdevs for word in ("--vdev", vdev)]
        argv += ["--", "-i", f"--nb-cores={threads}", "--total-num-mbufs=16384", *options]
        super().__init__(name, argv, {"RUNTIME_DIRECTORY": str(folder)})

    def ready(self, timeout_s: float = 40) -> None:
        """Wait for the first prompt: ports are there, and configured."""
        self.wait_for(re.escape(PROMPT), timeout_s=timeout_s)

    def command(self, text: str, timeout_s: float = 20) -> str:
        """Give a command, return what it printed. `ready` must have returned before."""
        start = len(self.output)
        self.write(text + "\n")
        end = self.wait_for(re.escape(PROMPT), start, timeout_s)
        return self.output[start : end.start()]

    def stats(self) -> dict[int, PortStats]:
        """The counters of every port, by its number."""
        return parse_stats(self.command("show port stats all"))

    def start(self) -> None:
        self.command("start")

    def stop(self) -> None:
        self.command("stop")

    def restart_ports(self) -> None:
        """Close and open every port: pcap sources start anew, pcap sinks are whole on disk."""
        self.command("port stop all")
        self.command("port start all")

    def _ask_to_end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()


def parse_stats(text: str) -> dict[int, PortStats]:
    """Counters by port out of what `show port stats all` prints."""
    ports = {}
    blocks = re.split(r"NIC statistics for port (\d+)", text)[1:]
    for number, block in zip(blocks[::2], blocks[1::2], strict=True):
        count = {name: int(n) for name, n in re.findall(r"([RT]X-\w+): +(\d+)", block)}
        names = ("RX-packets", "RX-bytes", "TX-packets", "TX-bytes")
        ports[int(number)] = PortStats(*(count[name] for name in names))
    return ports
