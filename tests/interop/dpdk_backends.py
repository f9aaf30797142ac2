"""The two back-ends that real front-ends meet: our switch, and as a control DPDK's own.

Each takes a folder for its files and the sockets of its ports; `ready` returns when front-ends may
come. With `client` they connect, and go on trying until somebody listens.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from child import DIES_WITH_US, Child
from testpmd import Testpmd


class Switch(Child):
    """`vhostfast switch`, polling on CPU 0, or adaptive and wherever there is room.

    `options` are more of its own. Without `queues` a port has as many pairs as its front-end.
    `program` is what Python runs.
    """

    def __init__(
        self,
        folder: Path,
        sockets: Sequence[Path],
        *,
        client: bool = False,
        queues: int | None = 1,
        forward: str = "patch",
        adaptive: bool = False,
        options: Sequence[str] = (),
        program: Sequence[str] = ("-m", "vhostfast"),
    ) -> None:
        self.sockets = [] if client else list(sockets)
        argv = [*DIES_WITH_US, sys.executable, *program, "switch", "--forward", forward, *options]
        argv += ["--mode", "adaptive"] if adaptive else ["--mode", "poll", "--cpus", "0"]
        for index, socket in enumerate(sockets):
            port = f"p{index}=vhost-user:{socket}" + ",client" * client
            argv += ["--port", port + (f",queues={queues}" if queues else "")]
        super().__init__("switch", argv)

    def ready(self) -> None:
        deadline = time.monotonic() + 10
        while not all(socket.is_socket() for socket in self.sockets):
            assert self.process.poll() is None, f"the switch ended at once:\n{self.tail()}"
            assert time.monotonic() < deadline, f"no sockets from the switch:\n{self.tail()}"
            time.sleep(0.01)


class Vhost(Testpmd):
    """testpmd with a net_vhost port a socket, joined two by two."""

    __test__ = False

    def __init__(
        self, folder: Path, sockets: Sequence[Path], *, client: bool = False, queues: int = 1
    ) -> None:
        vdevs = [
            f"net_vhost{index},iface={socket},queues={queues}" + ",client=1" * client
            for index, socket in enumerate(sockets)
        ]
        for socket in sockets:
            if not client:
                socket.unlink(missing_ok=True)  # a dead one, which DPDK refuses to replace
        options = [f"--rxq={queues}", f"--txq={queues}", "--disable-link-check"]
        first = min(os.sched_getaffinity(0))
        super().__init__("vhost", folder, vdevs, options=options, cpus=(first, first))

    def ready(self, timeout_s: float = 40) -> None:
        super().ready(timeout_s)
        self.command("set fwd io retry")
        self.command("set burst tx delay 100 retry 20000")
        self.start()
