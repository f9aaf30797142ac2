"""A command to which the kernel refuses one system call: forbid.py NUMBER ERRNO COMMAND...

As in a container, or on a kernel that lacks it: a seccomp filter loads the call's number, compares
it, and answers with the error or lets it pass. It holds for the command too.
"""

import ctypes
import os
import struct
import sys

NO_NEW_PRIVS, SECCOMP, FILTER = 38, 22, 2  # prctl
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ERROR, ALLOW = 0x50000, 0x7FFF0000


def main(number: int, error: int, command: list[str]) -> None:
    steps = [
        (LOAD, 0, 0, 0),
        (JUMP_IF_EQUAL, 0, 1, number),
        (RETURN, 0, 0, ERROR | error),
        (RETURN, 0, 0, ALLOW),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    head = ctypes.create_string_buffer(struct.pack("=H6xQ", len(steps), ctypes.addressof(program)))
    libc = ctypes.CDLL(None)
    assert libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(SECCOMP, FILTER, head) == 0
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
