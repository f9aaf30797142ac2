"""Open vSwitch with DPDK as a back-end, in a folder of its own:

    python -m vhostfast.bench.ovs WORKER DRIVER huge|plain QUEUES SOCKET...

An ovsdb-server that dies with it, a netdev bridge that learns (NORMAL), a dpdkvhostuser port for
each socket, and in the end this process is ovs-vswitchd: its poll thread on CPU WORKER, the rest of
it on CPU DRIVER. All files are in the folder of the sockets, which must all lie in one; its devices
are in the network namespace that this was started in.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

VSWITCHD = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"  # Debian's
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
BRIDGE = "bench"
DATABASE_S = 10.0
MEMORY_MIB, QUEUE_MEMORY_MIB = 160, 32  # for two ports, and for each queue pair that they have
PLAIN_MEMORY_MIB = 512


def settings(worker: int, driver: int, pages: str, queues: int) -> dict[str, str]:
    """What other_config says of DPDK."""
    extra = "--no-pci --no-telemetry --in-memory"
    if pages == "plain":
        # It adds --in-memory unless there is --legacy-mem; --no-huge can't be with that.
        extra = f"--no-pci --no-telemetry --no-huge --legacy-mem -m {PLAIN_MEMORY_MIB}"
    told = {
        "dpdk-init": "true",
        "pmd-cpu-mask": f"{1 << worker:#x}",
        "dpdk-lcore-mask": f"{1 << driver:#x}",
        "dpdk-extra": extra,
        "per-port-memory": "true",  # or it begins with a quarter of a million buffers
    }
    if pages == "huge":
        told["dpdk-socket-mem"] = str(MEMORY_MIB + QUEUE_MEMORY_MIB * queues)
    return told


def configuration(config: dict[str, str], sockets: Sequence[Path]) -> list[str]:
    """Words for ovs-vsctl. A port's name is its socket's."""
    words = ["set", "Open_vSwitch", "."]
    words += [f'other_config:{key}="{value}"' for key, value in config.items()]
    words += ["--", "add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev"]
    for socket in sockets:
        words += ["--", "add-port", BRIDGE, socket.name]
        words += ["--", "set", "Interface", socket.name, "type=dpdkvhostuser"]
    return words


def main(worker: str, driver: str, pages: str, queues: str, *paths: str) -> None:
    """Become ovs-vswitchd."""
    sockets = [Path(path) for path in paths]
    (folder,) = {socket.parent for socket in sockets}
    os.environ |= {name: str(folder) for name in ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR")}
    database, listen = folder / "conf.db", folder / "db.sock"
    subprocess.run(["ovsdb-tool", "create", database, SCHEMA], check=True)
    server = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "ovsdb-server", database, f"--remote=punix:{listen}",
         f"--unixctl={folder / 'db.ctl'}"],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + DATABASE_S
    while not listen.is_socket():
        if (code := server.poll()) is not None:
            sys.exit(f"ovs: ovsdb-server has ended, exit code {code}")
        if time.monotonic() > deadline:
            sys.exit("ovs: ovsdb-server has made no socket")
        time.sleep(0.01)
    config = configuration(settings(int(worker), int(driver), pages, int(queues)), sockets)
    control = ["ovs-vsctl", "--no-wait", f"--db=unix:{listen}"]
    subprocess.run([*control, "init"], check=True)
    subprocess.run([*control, *config], check=True)
    os.execv(VSWITCHD, [VSWITCHD, f"unix:{listen}", f"--unixctl={folder / 'vswitchd.ctl'}"])


if __name__ == "__main__":
    main(*sys.argv[1:])
