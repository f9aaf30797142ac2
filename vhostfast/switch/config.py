"""What a switch is asked to be: port specs and options, from the command line or a TOML file.

Both sources hold the same keys with the same spelling of values, so there is one parser a key.
Nothing here touches the machine; what only the machine can answer is asked by daemon.py.
"""

import contextlib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vhostfast.errors import EnvironmentLacks, UsageError

FORWARD = ("learn", "patch", "loopback", "drop")
MODE = ("poll", "interrupt", "adaptive")
LOG_LEVEL = ("debug", "info", "warning", "error")
LATER = ("tap", "packet", "xdp", "pcap", "null")
PORTS_MAX = 256  # what one fabric holds
QUEUE_PAIRS_MAX = 128
PATH_MAX = 107  # sockaddr_un's 108 bytes, less the closing zero
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")


@dataclass(frozen=True, slots=True)
class PortSpec:
    """One vhost-user port: a socket to listen on, or with `client` one to connect to.

    `queue_pairs` is the most that the front-end is offered; `offloads` whether checksums and
    segmentation are.
    """

    name: str
    path: str
    client: bool = False
    queue_pairs: int = QUEUE_PAIRS_MAX
    offloads: bool = True


@dataclass(frozen=True, slots=True)
class Config:
    """A whole switch, valid: an instance that exists has passed every check of its values."""

    ports: tuple[PortSpec, ...]
    forward: str = "learn"
    mode: str = "adaptive"
    cpus: tuple[int, ...] | None = None
    socket_mode: int = 0o600
    socket_group: str | None = None
    allow_uid: tuple[str, ...] | None = None
    log_level: str = "info"
    witness: bool = False

    def __post_init__(self) -> None:
        count = len(self.ports)
        if count == 0:
            raise UsageError("no port: give at least one --port NAME=vhost-user:/path.sock")
        if count > PORTS_MAX:
            raise UsageError(f"{count} ports: one switch holds {PORTS_MAX} at most")
        if self.forward == "patch" and count % 2:
            raise UsageError(
                f"--forward patch joins ports two by two and there are {count}:"
                " add or remove a --port"
            )
        _unique("port name", [port.name for port in self.ports])
        _unique("socket", [port.path for port in self.ports])


def _unique(what: str, values: list[str]) -> None:
    twice = {value for value in values if values.count(value) > 1}
    if twice:
        raise UsageError(f"{what} '{min(twice)}' is given twice: each port needs its own")


def parse_port(text: str) -> PortSpec:
    """Read NAME=KIND:ARG[,key=value…]. Raises UsageError with a sentence that names the fault."""
    name, equals, rest = text.partition("=")
    kind, colon, argument = rest.partition(":")
    if not equals or not colon:
        raise UsageError(f"port '{text}' is not NAME=KIND:ARG, as in vm0=vhost-user:/run/vm0.sock")
    if not NAME.fullmatch(name):
        raise UsageError(
            f"port name '{name}': use up to 32 letters, digits, '.', '_' and '-',"
            " a letter or digit first"
        )
    if kind in LATER:
        raise UsageError(f"port '{name}': kind '{kind}' is not built yet: use vhost-user")
    if kind != "vhost-user":
        raise UsageError(f"port '{name}': there is no kind '{kind}': use vhost-user")
    path, *options = argument.split(",")
    check_path(name, path)
    return PortSpec(name, path, **_port_options(name, options))


def check_path(name: str, path: str) -> None:
    """Refuse a path that no unix socket can have. Raises UsageError."""
    if not path:
        raise UsageError(f"port '{name}': the socket's path is missing after 'vhost-user:'")
    if "\0" in path:
        raise UsageError(f"port '{name}': the socket's path holds a zero byte")
    size = len(path.encode(errors="surrogateescape"))
    if size > PATH_MAX:
        raise UsageError(
            f"port '{name}': the socket's path has {size} bytes and a unix socket's ends at"
            f" {PATH_MAX}: choose a shorter one than {path}"
        )


def _port_options(name: str, options: list[str]) -> dict[str, Any]:
    """The fields that `client`, `queues=N` and `offloads=off` set; of two equal ones the last."""
    fields: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        if option == "client":
            fields["client"] = True
        elif key == "queues":
            if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= QUEUE_PAIRS_MAX:
                raise UsageError(
                    f"port '{name}': queues={value}: give 1 to {QUEUE_PAIRS_MAX} queue pairs"
                )
            fields["queue_pairs"] = int(value)
        elif key == "offloads":
            if value not in ("on", "off"):
                raise UsageError(f"port '{name}': offloads={value}: say on or off")
            fields["offloads"] = value == "on"
        else:
            raise UsageError(
                f"port '{name}': there is no option '{option}': vhost-user has client, queues=N"
                " and offloads=off"
            )
    return fields


class _Fault(ValueError):
    """What is wrong with a value; `settings` adds the key's name as its user spelled it."""


def _choice(*values: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in values:
            raise _Fault(f"choose {', '.join(values[:-1])} or {values[-1]}")
        return str(value)

    return parse


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _Fault("give a name")
    return value


def _users(value: object) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not words or not all(_is_user(word) for word in words):
        raise _Fault('give users, such as 64055,libvirt-qemu; in a file [64055, "libvirt-qemu"]')
    return tuple(_text(name) for word in words for name in str(word).split(","))


def _is_user(word: object) -> bool:
    return isinstance(word, str | int) and not isinstance(word, bool)


def _octal(value: object) -> int:
    if type(value) is int:  # in a file 0o660 and 432 are the same
        raise _Fault(f'that is 0o{value:o}; give three octal digits with quotes, such as "0660"')
    if not isinstance(value, str) or not re.fullmatch(r"(0o?)?[0-7]{1,3}", value):
        raise _Fault('give three octal digits, such as 0660; in a file "0660", with quotes')
    return int(value, 8)


def _cpus(value: object) -> tuple[int, ...]:
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list) or not words or not all(_is_cpu(word) for word in words):
        raise _Fault("give CPU numbers, such as 0,1")
    cpus = tuple(int(word) for word in words)
    if len(set(cpus)) < len(cpus):
        raise _Fault("a CPU is named twice: each worker needs its own")
    return cpus


def _is_cpu(word: object) -> bool:
    if isinstance(word, str):
        return word.isascii() and word.isdigit()
    return isinstance(word, int) and not isinstance(word, bool) and word >= 0


def _ports(value: object) -> tuple[PortSpec, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise _Fault('give a list of texts, such as ["vm0=vhost-user:/run/vm0.sock"]')
    return tuple(parse_port(text) for text in value)


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Fault("say true or false")
    return value


# The only list of options: key as users spell it -> field of Config, parser.
OPTIONS: Mapping[str, tuple[str, Callable[[object], object]]] = {
    "port": ("ports", _ports),
    "forward": ("forward", _choice(*FORWARD)),
    "mode": ("mode", _choice(*MODE)),
    "cpus": ("cpus", _cpus),
    "socket-mode": ("socket_mode", _octal),
    "socket-group": ("socket_group", _text),
    "allow-uid": ("allow_uid", _users),
    "witness": ("witness", _switch),
    "log-level": ("log_level", _choice(*LOG_LEVEL)),
}


def settings(values: Mapping[str, object], spelling: str = "--{}") -> dict[str, Any]:
    """Check each value by its key and give the fields of Config that they set.

    `spelling` is how a message names a key. Raises UsageError.
    """
    fields: dict[str, Any] = {}
    for key, value in values.items():
        named = spelling.format(key)
        if key not in OPTIONS:
            raise UsageError(f"{named}: there is no such key: use {', '.join(OPTIONS)}")
        field, parse = OPTIONS[key]
        try:
            fields[field] = parse(value)
        except _Fault as fault:
            raise UsageError(f"{named} is {value!r}: {fault}") from None
    return fields


def _toml_hint(text: str, error: str) -> str:
    """The line that `error` of tomllib is about; and how it goes, if it lacks only quotes."""
    at = re.search(r"at line (\d+)", error)
    if at is None:
        return ""
    line = text.split("\n")[int(at[1]) - 1].strip()
    hint = f": {line}"
    if bare := re.fullmatch(r"([a-z-]+)\s*=\s*([^\s\"'#]+)\s*(#.*)?", line):
        key, value = bare[1], bare[2]
        with contextlib.suppress(UsageError):
            settings({key: value})
            hint += f': write {key} = "{value}", with quotes'
    return hint


def load(path: Path) -> dict[str, Any]:
    """Read a TOML file of the same keys. Raises UsageError, or EnvironmentLacks for no file."""
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except OSError as error:
        raise EnvironmentLacks(
            f"--config {path}: {error.strerror}: name a TOML file that can be read; its keys are"
            " the options of vhostfast switch"
        ) from None
    except ValueError as error:  # not UTF-8, or not TOML
        hint = _toml_hint(text, str(error))
        raise UsageError(f"--config {path} is not TOML: {error}{hint}") from None
    return settings(values, "'{}' in " + str(path).replace("{", "{{").replace("}", "}}"))


def configure(values: Mapping[str, object], file: Path | None = None) -> Config:
    """Make a Config of options and, below them, a file: what an option says, holds.

    Raises UsageError or EnvironmentLacks.
    """
    fields = load(file) if file is not None else {}
    return Config(**{"ports": (), **fields, **settings(values)})
