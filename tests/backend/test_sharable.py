"""What may be memory, told without asking whoever serves the file."""

import ctypes
import os
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from waiting import MNT_DETACH, close, held_epoll, libc, unanswered

from vhostfast.backend.sharable import NEVER_WAIT, identity, readable_name
from vhostfast.errors import ProtocolError


def refusal(fd: int) -> str:
    with pytest.raises(ProtocolError) as caught:
        identity(fd, "guest memory")
    return str(caught.value)


def mount(kind: str, source: str, folder: Path) -> None:
    done = libc.mount(source.encode(), bytes(folder), kind.encode(), 0, None)
    assert done == 0, f"{kind} cannot be mounted: {os.strerror(ctypes.get_errno())}: run as root"


def test_a_memfd_is_known_by_its_inode() -> None:
    one, two = os.memfd_create("one"), os.memfd_create("two")
    again = os.open(f"/proc/self/fd/{one}", os.O_RDWR)
    assert identity(one, "") == identity(again, "") != identity(two, "")
    for fd in (one, two, again):
        os.close(fd)


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_a_file_on_a_mount_that_is_seen(kind: str, tmp_path: Path) -> None:
    """ramfs has no seals: its mount says what it is, and no more once it has been taken away."""
    mount(kind, "none", tmp_path)
    fd = os.open(tmp_path / "memory", os.O_RDWR | os.O_CREAT)
    status = os.fstat(fd)
    assert identity(fd, "") == (status.st_dev, status.st_ino)
    assert libc.umount2(bytes(tmp_path), MNT_DETACH) == 0
    if kind == "tmpfs":
        assert identity(fd, "") == (status.st_dev, status.st_ino)
    else:
        assert "on no mount that is seen here" in refusal(fd)
    os.close(fd)


def test_a_file_on_the_disk_that_tests_run_on() -> None:
    with tempfile.NamedTemporaryFile() as file:
        command = ["findmnt", "-n", "-o", "FSTYPE", "-T", file.name]
        kind = subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
        if kind in NEVER_WAIT:
            status = os.fstat(file.fileno())
            assert identity(file.fileno(), "") == (status.st_dev, status.st_ino)
        else:
            assert f"on {kind}, must be" in refusal(file.fileno())


def test_on_fuse_nobody_is_asked() -> None:
    """The server is silent: to ask it would take as long as it lives."""
    with unanswered() as fd:
        assert readable_name(fd).endswith("/memory")
        assert "on fuse, must be a memfd, or a regular file" in refusal(fd)
    close(fd)


def test_an_epoll_whose_lock_is_held() -> None:
    with held_epoll() as fd:
        assert "anon_inode:[eventpoll], on no mount that is seen here" in refusal(fd)
    close(fd)


@pytest.mark.parametrize("name", [b"\xff", b"a\rb", b"a\x0b - b", "a\u2028b".encode()])
def test_others_mounts_have_any_name(name: bytes, tmp_path: Path) -> None:
    """Whoever may use fusermount chooses it."""
    with ExitStack() as stack:
        folders = {"ramfs": tmp_path / "memory", "tmpfs": tmp_path / os.fsdecode(name)}
        for kind, folder in folders.items():
            folder.mkdir()
            mount(kind, "none", folder)
            stack.callback(libc.umount2, bytes(folder), MNT_DETACH)
        fd = os.open(folders["ramfs"] / "file", os.O_RDWR | os.O_CREAT)
        stack.callback(os.close, fd)
        status = os.fstat(fd)
        assert identity(fd, "") == (status.st_dev, status.st_ino)


def test_what_is_on_a_mount_but_no_memory() -> None:
    fd = os.open("/proc/self/comm", os.O_RDONLY)
    assert "/comm, on proc, must be" in refusal(fd)
    os.close(fd)


def test_what_is_on_no_mount() -> None:
    fd = os.eventfd(0)
    assert "anon_inode:[eventfd], on no mount that is seen here" in refusal(fd)
    assert "share=on" in refusal(fd)
    os.close(fd)


def test_a_name_is_one_line() -> None:
    fd = os.memfd_create("a\nb\x1b[1m\u00e9")
    assert readable_name(fd) == "/memfd:a\\nb\\x1b[1m\\xe9 (deleted)"
    os.close(fd)
