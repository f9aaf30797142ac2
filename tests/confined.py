"""Runs vhostfast with less than a program has by itself.

    python tests/confined.py HOW python -m vhostfast ARGUMENT...

HOW is `uid`, for an ordinary user's if we are root, or `unit`, for the restrictions of the systemd
unit that the kernel takes from anybody: system calls, address families, memory that is executed.
A call that is not listed ends the process, where the unit would refuse it.
"""

import ctypes
import os
import pkgutil
import platform
import re
import struct
import subprocess
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parent.parent
UNIT = ROOT / "contrib" / "systemd" / "vhostfast.service"
NOBODY = 65534

# linux/prctl.h, linux/seccomp.h, linux/bpf_common.h, linux/audit.h
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 22, 2, 38, 65
KILL, ALLOW, REFUSE = 0x80000000, 0x7FFF0000, 0x00050000 | 97  # EAFNOSUPPORT
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06
NUMBER_AT, ARCH_AT, ARGUMENT_AT = 0, 4, 16  # in struct seccomp_data
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
AF_UNIX = 1


def settings(name: str) -> list[str]:
    """The words of all lines of a setting of the unit."""
    lines = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return [word for line in lines for word in line.split()]


def numbers() -> dict[str, int]:
    """This machine's system calls by name, as its C compiler knows them."""
    source = "#include <sys/syscall.h>\n"
    command = ["gcc", "-E", "-dM", "-"]
    run = subprocess.run(command, input=source, capture_output=True, text=True, check=True)
    return {name: int(n) for name, n in re.findall(r"#define __NR_(\w+) (\d+)\n", run.stdout)}


def program(allowed: list[str]) -> bytes:
    """The filter: these calls, of this machine's native kind, and sockets of AF_UNIX alone."""
    number = numbers()
    code = [
        (LOAD, 0, 0, ARCH_AT), (IF_EQUAL, 1, 0, ARCH[platform.machine()]), (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT), (IF_EQUAL, 0, 4, number["socket"]),
        (LOAD, 0, 0, ARGUMENT_AT), (IF_EQUAL, 0, 1, AF_UNIX),
        (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE),
    ]  # fmt: skip
    for name in allowed:
        if name in number:  # older calls are not on every machine
            code += [(IF_EQUAL, 0, 1, number[name]), (RETURN, 0, 0, ALLOW)]
    code.append((RETURN, 0, 0, KILL))
    return b"".join(struct.pack("HBBI", *each) for each in code)


def control(option: int, *arguments: int | ctypes.c_void_p) -> None:
    """prctl. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    padded = [*arguments, 0, 0, 0, 0][:4]
    if libc.prctl(option, *(ctypes.c_ulong(a) if isinstance(a, int) else a for a in padded)):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def install(filter: bytes) -> None:
    code = ctypes.create_string_buffer(filter, len(filter))
    length = len(filter) // struct.calcsize("HBBI")
    fprog = ctypes.create_string_buffer(struct.pack("HP", length, ctypes.addressof(code)))
    control(PR_SET_NO_NEW_PRIVS, 1)
    control(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(fprog))


def confine() -> None:
    """From here on, and for whatever we become."""
    assert settings("NoNewPrivileges") == settings("MemoryDenyWriteExecute") == ["yes"]
    assert settings("RestrictAddressFamilies") == ["AF_UNIX"]
    try:
        control(PR_SET_MDWE, 1)
    except OSError as error:
        if error.errno != 22:  # Linux before 6.3 knows nothing of it
            raise
    install(program(settings("SystemCallFilter")))


def become_nobody() -> None:
    """Modules first: nobody may have no right to read them. Root's rights go with the uid."""
    import vhostfast

    for module in pkgutil.walk_packages(vhostfast.__path__, "vhostfast."):
        if module.name != "vhostfast.__main__":
            import_module(module.name)
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def main() -> None:
    how, *command = sys.argv[1:]
    if how == "unit":
        confine()
        os.execv(command[0], command)
    become_nobody()
    from vhostfast.cli.main import main as run

    sys.argv = command[2:]
    run()


if __name__ == "__main__":
    main()
