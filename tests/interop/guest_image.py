"""What the guests boot: Debian's cloud kernel, and an initramfs of busybox and `guest.c`.

Made once into `.guest/`, beside this file, and again when this file, `guest.c` or what that
includes changes. The kernel's package is fetched and unpacked, not installed. No cpio, no root:
the archive is written here.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE / ".guest"
PROGRAM = HERE / "guest.c"
HEADERS = HERE.parents[1] / "csrc"
INCLUDED = ("driver/frame.h", "driver/flow.h", "spec.h", "sync.h")
KERNEL_PACKAGE = "linux-image-cloud-amd64"
MODULES = (
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/net/virtio_net",
)
EMPTY_FOLDERS = ("dev", "proc", "sys", "tmp")
COMPILER = ("gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-static")
NEEDED = ("qemu-system-x86_64", "busybox", "gcc", "apt-get", "apt-cache", "dpkg-deb")
INSTALL = "run scripts/install-peers as root"

FOLDER_MODE, PROGRAM_MODE, LINK_MODE = 0o040755, 0o100755, 0o120777


class Lacks(AssertionError):
    """This machine lacks something that the QEMU tests need; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Image:
    kernel: Path
    initramfs: Path


def image() -> Image:
    """The kernel and the initramfs, made if they are not there yet. Raises `Lacks`."""
    missing = [tool for tool in NEEDED if shutil.which(tool) is None]
    if missing:
        raise Lacks(f"{', '.join(missing)} not found: {INSTALL}")
    FOLDER.mkdir(exist_ok=True)
    with open(FOLDER / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = (PROGRAM, Path(__file__), *(HEADERS / name for name in INCLUDED))
        source = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
        made = Image(FOLDER / "vmlinuz", FOLDER / f"initramfs-{source[:16]}.gz")
        if not made.initramfs.exists():
            _make(made)
    return made


def _make(made: Image) -> None:
    for old in FOLDER.glob("initramfs-*"):
        old.unlink()
    package = _kernel_package()
    tree = FOLDER / "kernel"
    shutil.rmtree(tree, ignore_errors=True)
    _run("dpkg-deb", "-x", str(package), str(tree))
    shutil.copy(next(tree.glob("boot/vmlinuz-*")), made.kernel)
    program = FOLDER / "guest"
    _run(*COMPILER, "-I", str(HEADERS), "-o", str(program), str(PROGRAM))
    modules = next(tree.glob("lib/modules/*/kernel"))
    partial = made.initramfs.with_suffix(".partial")
    partial.write_bytes(gzip.compress(_archive(program, modules), 6))
    shutil.rmtree(tree)
    partial.rename(made.initramfs)  # last: its name says that all of it is there


def _kernel_package() -> Path:
    """The .deb of the newest cloud kernel that apt knows, fetched unless it is here."""
    depends = _run("apt-cache", "depends", KERNEL_PACKAGE)
    names = [line.split()[1] for line in depends.splitlines() if "Depends: linux-image-" in line]
    if not names:
        raise Lacks(f"apt knows no {KERNEL_PACKAGE}: {INSTALL}")
    if not list(FOLDER.glob(f"{names[0]}_*.deb")):
        _run("apt-get", "download", "-q", names[0])
    return next(FOLDER.glob(f"{names[0]}_*.deb"))


def _run(*argv: str) -> str:
    done = subprocess.run(argv, cwd=FOLDER, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise Lacks(f"{' '.join(argv)}: {done.stderr.strip()} ({INSTALL})")
    return done.stdout


def _archive(program: Path, modules: Path) -> bytes:
    """The initramfs, as a cpio archive in the "newc" format."""
    return b"".join(
        _record(inode, name, mode, data)
        for inode, (name, mode, data) in enumerate(_entries(program, modules), 1)
    )


def _entries(program: Path, modules: Path) -> Iterator[tuple[str, int, bytes]]:
    busybox = shutil.which("busybox")
    assert busybox is not None
    for folder in ("bin", "modules", *EMPTY_FOLDERS):
        yield folder, FOLDER_MODE, b""
    yield "bin/busybox", PROGRAM_MODE, Path(busybox).read_bytes()
    yield "bin/guest", PROGRAM_MODE, program.read_bytes()
    yield "init", LINK_MODE, b"bin/guest"
    for applet in _run(busybox, "--list").split():
        if applet != "busybox":
            yield f"bin/{applet}", LINK_MODE, b"busybox"
    for module in MODULES:
        data = (modules / f"{module}.ko").read_bytes()
        yield f"modules/{Path(module).name}.ko", PROGRAM_MODE, data
    yield "TRAILER!!!", 0, b""


def _record(inode: int, name: str, mode: int, data: bytes) -> bytes:
    """One file: thirteen hexadecimal fields, name, data; both padded to four bytes."""
    links, owner, group, time, devices = 1, 0, 0, 0, (0, 0, 0, 0)
    encoded = name.encode() + b"\0"
    fields = (inode, mode, owner, group, links, time, len(data), *devices, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return b"".join(part + b"\0" * (-len(part) % 4) for part in (header, data))
