"""A real guest: QEMU under TCG with one vhost-user card, driven through a serial port and QMP.

The kernel's console and QEMU's own messages are the process's output; every command and its answer
is put between them, so that one log tells the story. QEMU connects to sockets on which we listen
already: nothing that it says is lost. It dies with the test process.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from child import DIES_WITH_US, Child
from guest_image import image

PROGRAM = "qemu-system-x86_64"
# No multiple of 256 KiB: then QEMU before 9.0 loses writes of an emulated guest in a migration.
MEMORY = "262152K"
KERNEL_ARGUMENTS = "console=ttyS0 quiet tsc=reliable no_timer_check panic=-1"
BOOT_TIMEOUT_S = 60
MEMORY_BLOCKS = "/sys/devices/system/memory/memory[0-9]*"
DIMM_MIB = 128  # a block of Linux's memory
END_OF_ANSWER = re.compile(rb"\x1e(\d+)\n")  # as guest.c writes it
MEMORY_NAME = "memory-backend-memfd"
SHARED_MEMORY = f"{MEMORY_NAME},id=ram,size={MEMORY},share=on"
FEATURES_FILE = "/sys/class/net/{}/device/features"


@dataclass(frozen=True, slots=True)
class Card:
    """A guest's network card. `options` go to `-device virtio-net-pci`: ("event_idx=off", …).

    With `server` QEMU makes the socket; with `reconnect` it comes back to a back-end that went.
    """

    socket: Path
    number: int = 1  # the last byte of its MAC and IP addresses
    options: Sequence[str] = ()
    queue_pairs: int = 1
    server: bool = False
    reconnect: bool = False

    @property
    def address(self) -> str:
        return f"10.0.0.{self.number}"

    @property
    def mac(self) -> str:
        return f"52:54:00:00:00:{self.number:02x}"

    def arguments(self) -> list[str]:
        name = f"card{self.number}"
        chardev = f"socket,id={name},path={self.socket}"
        chardev += ",server=on,wait=off" if self.server else ""
        chardev += ",reconnect=1" if self.reconnect else ""
        # Without KVM, MSI-X and vhost-user kill QEMU 7.2: hence vectors=0.
        fixed = ("romfile=", "disable-legacy=on", "vectors=0", f"mac={self.mac}")
        device = ",".join(("virtio-net-pci", f"netdev=net-{name}", *fixed, *self.options))
        netdev = f"vhost-user,id=net-{name},chardev={name},queues={self.queue_pairs}"
        return ["-chardev", chardev, "-netdev", netdev, "-device", device]


class Guest(Child):
    """A guest that is starting; `ready` waits until it takes commands and its card is up.

    Its sockets are made in `folder`. `memory` is the `-object` with id `ram` that is its memory,
    and `slots` are free for more (`plug`).
    `more` cards, of other numbers, are its eth1 and so on. With `incoming` it doesn't boot: it
    waits for a guest that migrates to that socket, which stands still there until `cont` if it is
    `paused`.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        card: Card,
        memory: str = SHARED_MEMORY,
        *,
        slots: int = 0,
        more: Sequence[Card] = (),
        incoming: Path | None = None,
        paused: bool = False,
    ) -> None:
        self.card = card
        self.incoming = incoming
        self._commands = _Listener(folder / f"{name}-commands.sock")
        self._control = _Listener(folder / f"{name}-qmp.sock")
        boot = image()
        # As many vCPUs as queue pairs: virtio-net uses no more pairs than that.
        argv = [*DIES_WITH_US, "nice", "-n", "5", PROGRAM]
        room = f",slots={slots},maxmem=8G" if slots else ""
        argv += ["-accel", "tcg", "-cpu", "max", "-smp", str(card.queue_pairs), "-m", MEMORY + room]
        argv += ["-machine", "q35,memory-backend=ram", "-object", memory, "-bios", "qboot.rom"]
        argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        argv += ["-kernel", str(boot.kernel), "-initrd", str(boot.initramfs)]
        argv += ["-append", KERNEL_ARGUMENTS, "-chardev", "stdio,id=console,signal=off"]
        argv += ["-chardev", f"socket,id=commands,path={self._commands.path}"]
        argv += ["-serial", "chardev:console", "-serial", "chardev:commands"]
        argv += ["-qmp", f"unix:{self._control.path}", *card.arguments()]
        argv += [word for other in more for word in other.arguments()]
        argv += ["-incoming", f"unix:{incoming}"] if incoming else []
        argv += ["-S"] if paused else []
        super().__init__(name, argv)

    def ready(self) -> None:
        """Wait for the boot, then bring the card up with its address."""
        self.result(BOOT_TIMEOUT_S)
        self.bring_up()

    def bring_up(self) -> None:
        """Give the card its address, and let it go."""
        self.run(f"ip address add {self.card.address}/24 dev eth0 && ip link set eth0 up")

    def begin(self, command: str) -> None:
        """Give sh in the guest a command; its `result` must be taken before the next."""
        self._note(f"{self.name}# {command}\n")
        self._commands.send(command.encode() + b"\n")

    def result(self, timeout_s: float = 20) -> str:
        """What the command printed. AssertionError if its status isn't 0, or it took too long."""
        answer, status = self._commands.receive(END_OF_ANSWER, timeout_s, self._failure)
        self._note(answer)
        assert status == "0", f"{self.name}: exit status {status}:\n{answer}"
        return answer

    def run(self, command: str, timeout_s: float = 20) -> str:
        self.begin(command)
        return self.result(timeout_s)

    def plug(self, number: int) -> None:
        """Plug a DIMM, whose file is its own, into a slot, and wait until the guest has seen it."""
        name, size = f"memory{number}", DIMM_MIB << 20
        options = {"id": name, "size": size, "share": True}
        before = self.run(f"ls -d {MEMORY_BLOCKS} | wc -l").strip()
        self.control("object-add", **{"qom-type": MEMORY_NAME, **options})
        self.control("device_add", driver="pc-dimm", id=f"dimm{number}", memdev=name)
        # Asked to let go of one that it hasn't seen, a guest doesn't hear it: ACPI tells of both
        # by one event, and it takes it for the first.
        self.run(f"while [ $(ls -d {MEMORY_BLOCKS} | wc -l) = {before} ]; do sleep 0.05; done")

    def unplug(self, number: int, timeout_s: float = 20) -> None:
        """Ask the guest to let a DIMM go, and wait until it is gone."""
        name = f"dimm{number}"
        self.control("device_del", id=name)
        deadline = time.monotonic() + timeout_s
        while name in (one["data"]["id"] for one in self.control("query-memory-devices")):
            assert time.monotonic() < deadline, f"{self.name} keeps {name}"
            time.sleep(0.05)

    def reboot(self) -> None:
        """Have the guest reboot, and wait until its card is up again."""
        self.control("set-action", reboot="reset")
        self.begin("reboot -f")
        self.ready()
        self.control("set-action", reboot="shutdown")

    def reset(self) -> None:
        """Press the reset button: the guest has no say. Then as `reboot`."""
        self.control("set-action", reboot="reset")
        self.control("system_reset")
        self.ready()
        self.control("set-action", reboot="shutdown")

    def control(self, command: str, **arguments: object) -> Any:
        """Run a QMP command, return what it returns."""
        if not self._control.connected:
            self._reply("QMP")
            self._control.send(b'{"execute": "qmp_capabilities"}\n')
            self._reply("return")
        request = {"execute": command, "arguments": arguments}
        self._control.send(json.dumps(request).encode() + b"\n")
        return self._reply("return")

    def _reply(self, key: str) -> Any:
        while True:
            line, _ = self._control.receive(re.compile(rb"(\r?\n)"), 20, self._failure)
            message = json.loads(line)
            assert "error" not in message, f"{self.name}: QMP: {message['error']}"
            if key in message:
                return message[key]

    def wait_for_status(self, status: str, timeout_s: float = 20) -> None:
        """Until QEMU says that the guest is so: "running", "paused", "postmigrate" …"""
        deadline = time.monotonic() + timeout_s
        while (now := self.control("query-status")["status"]) != status:
            assert time.monotonic() < deadline, f"{self.name} is {now}, not {status}"
            time.sleep(0.01)

    def features(self, interface: str = "eth0") -> int:
        """The virtio feature bits that driver and device have agreed on."""
        bits = self.run(f"cat {FEATURES_FILE.format(interface)}").strip()
        return int(bits[::-1], 2)

    def counters(self) -> dict[str, int]:
        """What `guest card` says: ring sizes and the driver's counters."""
        lines = self.run("guest card eth0").splitlines()
        return {name: int(count) for name, count in (line.split() for line in lines)}

    def _note(self, text: str) -> None:
        with self._grown:
            self.output += text

    def _failure(self, why: str) -> AssertionError:
        return AssertionError(f"{self.name}: {why}; its log ends:\n{self.tail()}")

    def close(self, timeout_s: float = 10) -> int:
        status = super().close(timeout_s)
        self._commands.close()
        self._control.close()
        return status


class _Listener:
    """A socket that QEMU connects to, and the bytes of it that weren't asked for yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connected = False
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        self._socket.bind(str(path))
        self._socket.listen(1)

    def _accept(self, timeout_s: float) -> None:
        if not self.connected:
            self._socket.settimeout(timeout_s)
            connection, _ = self._socket.accept()
            self._socket.close()
            self._socket = connection
            self.connected = True

    def send(self, data: bytes) -> None:
        self._accept(10)
        self._socket.settimeout(10)
        self._socket.sendall(data)

    def receive(
        self, end: re.Pattern[bytes], timeout_s: float, failure: Callable[[str], AssertionError]
    ) -> tuple[str, str]:
        """What came before the next `end`, and that one's group; else raise `failure(why)`."""
        deadline = time.monotonic() + timeout_s
        try:
            self._accept(timeout_s)
            while (match := end.search(self._received)) is None:
                self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
                data = self._socket.recv(65536)
                if not data:
                    raise failure(f"QEMU ended, after {self._received!r}")
                self._received += data
        except (TimeoutError, ConnectionError) as error:
            raise failure(f"no answer in {timeout_s} s ({error}): {self._received!r}") from error
        answer = self._received[: match.start()].decode(errors="replace")
        self._received = self._received[match.end() :]
        return answer, match[1].decode()

    def close(self) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)
