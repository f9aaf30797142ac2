"""Whether a peer's file can be memory that we share, without asking whoever serves the file.

fstat() and fstatfs() of a file on FUSE ask its server, and to touch a page of it does: the one
would make all ports wait, the other a worker. So first comes what only the kernel is asked for:
seals, which memfds and files on tmpfs and hugetlbfs have and no others; else the file's mount.
"""

import fcntl
import os
import re

from vhostfast.errors import ProtocolError

NEVER_WAIT = {"tmpfs", "hugetlbfs", "ramfs", "ext2", "ext3", "ext4", "xfs", "btrfs"}


def identity(fd: int, what: str) -> tuple[int, int]:
    """(device, inode) of a file that may be mapped. Raises ProtocolError if it isn't one whose
    pages are there whoever sent it; `what` it would be is named."""
    if not _has_seals(fd):
        kind = _file_system(fd)
        if kind not in NEVER_WAIT:
            raise ProtocolError(
                what,
                "fd",
                f"{readable_name(fd)}, {f'on {kind}' if kind else 'on no mount that is seen here'}",
                "a memfd, or a regular file on a file system (tmpfs, hugetlbfs, ext4, xfs, btrfs)"
                " that is mounted for this process too: memory that can be shared (share=on)",
            )
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def readable_name(fd: int) -> str:
    """As the kernel knows the file. The peer may have named it: lines, terminal escapes."""
    return ascii(os.readlink(f"/proc/self/fd/{fd}"))[1:-1]


def _has_seals(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def _file_system(fd: int) -> str | None:
    """The type of the file system that holds a file, if its mount is one that we see."""
    if not os.readlink(f"/proc/self/fd/{fd}").startswith("/"):
        return None  # nor may we ask more: an epoll's fdinfo waits for a lock that a peer may hold
    with open(f"/proc/self/fdinfo/{fd}") as info:
        mount_id = re.findall(r"^mnt_id:\s*(\d+)$", info.read(), re.MULTILINE)
    with open("/proc/self/mountinfo", errors="replace", newline="\n") as mounts:  # any names
        kinds = {line.split(" ")[0]: line.partition(" - ")[2].split(" ")[0] for line in mounts}
    return kinds.get(mount_id[0])
