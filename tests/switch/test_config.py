"""Port specs, options and the TOML file: what is read, and the sentence for each mistake."""

import re
from pathlib import Path

import pytest

from vhostfast.errors import EnvironmentLacks, UsageError
from vhostfast.switch.config import Config, PortSpec, configure, parse_port

PORT = "vm0=vhost-user:/run/vm0.sock"


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        (PORT, PortSpec("vm0", "/run/vm0.sock")),
        (PORT + ",client", PortSpec("vm0", "/run/vm0.sock", client=True)),
        (PORT + ",queues=1", PortSpec("vm0", "/run/vm0.sock", queue_pairs=1)),
        (PORT + ",queues=128,client", PortSpec("vm0", "/run/vm0.sock", True, 128)),
        (PORT + ",offloads=off", PortSpec("vm0", "/run/vm0.sock", offloads=False)),
        (PORT + ",offloads=off,offloads=on", PortSpec("vm0", "/run/vm0.sock")),
        ("a.b-c_9=vhost-user:rel=a:b.sock", PortSpec("a.b-c_9", "rel=a:b.sock")),
        ("n=vhost-user:/" + "x" * 106, PortSpec("n", "/" + "x" * 106)),
        ("n=vhost-user:/" + "é" * 53, PortSpec("n", "/" + "é" * 53)),
    ],
)
def test_port_spec(text: str, spec: PortSpec) -> None:
    assert parse_port(text) == spec


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not NAME=KIND:ARG"),
        ("vm0", "is not NAME=KIND:ARG"),
        ("vm0=/run/vm0.sock", "is not NAME=KIND:ARG"),
        ("=vhost-user:/x", "port name ''"),
        ("-a=vhost-user:/x", "port name '-a'"),
        ("a\nb=vhost-user:/x", "port name 'a\nb'"),
        ("n" * 33 + "=vhost-user:/x", "up to 32 letters"),
        ("t=tap:tap0", "kind 'tap' is not built yet"),
        ("t=packet:eth0", "kind 'packet' is not built yet"),
        ("t=xdp:eth0", "kind 'xdp' is not built yet"),
        ("t=pcap:file", "kind 'pcap' is not built yet"),
        ("t=null:", "kind 'null' is not built yet"),
        ("t=vhost:/x", "there is no kind 'vhost'"),
        ("vm0=vhost-user:", "path is missing"),
        ("vm0=vhost-user:,client", "path is missing"),
        ("vm0=vhost-user:/a\0b", "zero byte"),
        ("vm0=vhost-user:/" + "x" * 107, "has 108 bytes and a unix socket's ends at 107"),
        ("vm0=vhost-user:/" + "é" * 54, "has 109 bytes"),
        (PORT + ",", "no option ''"),
        (PORT + ",server", "no option 'server'"),
        (PORT + ",client=1", "no option 'client=1'"),
        (PORT + ",offloads", "say on or off"),
        (PORT + ",offloads=no", "say on or off"),
        (PORT + ",queues", "give 1 to 128 queue pairs"),
        (PORT + ",queues=0", "give 1 to 128 queue pairs"),
        (PORT + ",queues=129", "give 1 to 128 queue pairs"),
        (PORT + ",queues=-1", "give 1 to 128 queue pairs"),
        (PORT + ",queues=²", "give 1 to 128 queue pairs"),
    ],
)
def test_port_spec_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_port(text)
    assert says in str(caught.value)


def test_options_are_read_and_defaults_hold() -> None:
    config = configure({"port": [PORT]})
    assert config == Config((PortSpec("vm0", "/run/vm0.sock"),))
    assert (config.forward, config.mode, config.cpus) == ("learn", "adaptive", None)
    assert (config.socket_mode, config.socket_group, config.log_level) == (0o600, None, "info")

    config = configure(
        {
            "port": [PORT],
            "forward": "loopback",
            "mode": "poll",
            "cpus": "0,3",
            "socket-mode": "0660",
            "socket-group": "kvm",
            "log-level": "debug",
            "witness": True,
        }
    )
    assert (config.forward, config.mode, config.cpus) == ("loopback", "poll", (0, 3))
    assert (config.socket_mode, config.socket_group, config.log_level) == (0o660, "kvm", "debug")
    assert config.witness


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("forward", "hub", "--forward is 'hub': choose learn, patch, loopback or drop"),
        ("mode", "", "--mode is '': choose poll, interrupt or adaptive"),
        ("log-level", "loud", "--log-level is 'loud': choose debug, info, warning or error"),
        ("cpus", "", "--cpus is '': give CPU numbers, such as 0,1"),
        ("cpus", "0,", "give CPU numbers"),
        ("cpus", "0-3", "give CPU numbers"),
        ("cpus", "1,1", "a CPU is named twice"),
        ("cpus", [True], "give CPU numbers"),
        ("cpus", [-1], "give CPU numbers"),
        ("cpus", [], "give CPU numbers"),
        ("socket-mode", "0888", "give three octal digits"),
        ("socket-mode", "04755", "give three octal digits"),
        ("socket-mode", 600, "that is 0o1130; give three octal digits"),
        ("socket-group", "", "give a name"),
        ("allow-uid", [], "--allow-uid is []: give users, such as 64055,libvirt-qemu; in a file ["),
        ("allow-uid", [True], "give users"),
        ("allow-uid", 64055, "give users"),
        ("allow-uid", [""], "give a name"),
        ("allow-uid", ["root,"], "give a name"),
        ("witness", "yes", "--witness is 'yes': say true or false"),
        ("port", "text", "give a list of texts"),
        ("port", [1], "give a list of texts"),
        ("colour", "red", "--colour: there is no such key: use port, forward"),
    ],
)
def test_wrong_value_names_its_option(key: str, value: object, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        configure({"port": [PORT], key: value})
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("ports", "forward", "says"),
    [
        ([], "learn", "no port: give at least one --port"),
        ([PORT], "patch", "joins ports two by two and there are 1"),
        ([PORT, PORT], "learn", "port name 'vm0' is given twice"),
        ([PORT, "b=vhost-user:/run/vm0.sock"], "learn", "socket '/run/vm0.sock' is given twice"),
        ([f"p{i}=vhost-user:/{i}" for i in range(257)], "learn", "257 ports"),
    ],
)
def test_ports_that_do_not_go_together(ports: list[str], forward: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        configure({"port": ports, "forward": forward})
    assert says in str(caught.value)


def test_most_ports() -> None:
    names = [f"p{index}=vhost-user:/{index}" for index in range(256)]
    assert len(configure({"port": names, "forward": "patch"}).ports) == 256


def write(folder: Path, text: str) -> Path:
    path = folder / "{switch}.toml"
    path.write_text(text)
    return path


def test_file_has_the_same_keys_and_options_win(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        port = ["a=vhost-user:/a,queues=2", "b=vhost-user:/b,client"]
        forward = "patch"
        cpus = [0, 1]
        socket-mode = "0660"
        allow-uid = [64055, "kvm"]
        """,
    )
    config = configure({"socket-mode": "0600", "mode": "poll"}, file)
    assert config.ports == (PortSpec("a", "/a", queue_pairs=2), PortSpec("b", "/b", client=True))
    assert (config.forward, config.cpus, config.mode) == ("patch", (0, 1), "poll")
    assert config.socket_mode == 0o600
    assert config.allow_uid == ("64055", "kvm")
    assert configure({"port": [PORT], "forward": "drop"}, file).ports[0].name == "vm0"
    assert configure({"allow-uid": ["root,7", "kvm"]}, file).allow_uid == ("root", "7", "kvm")


@pytest.mark.parametrize("text", ["forward = hub", "witness = True", "port = a=vhost-user:/a"])
def test_quotes_are_no_hint_where_they_do_not_help(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="is not TOML") as caught:
        configure({}, write(tmp_path, text))
    assert "with quotes" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ports = []", "'ports' in {path}: there is no such key: use port,"),
        ('forward = "hub"', "'forward' in {path} is 'hub': choose learn"),
        ("forward =", "--config {path} is not TOML"),
        (
            "port = []\nsocket-mode = 0660 # group",
            "(at line 2, column 16): socket-mode = 0660 # group:"
            ' write socket-mode = "0660", with quotes',
        ),
        ("forward = hub", "column 11): forward = hub"),
        ("witness = True\n", "column 11): witness = True"),
        (
            "socket-mode = 0o660",
            "'socket-mode' in {path} is 432: that is 0o660; give three octal digits with quotes",
        ),
        ("socket-mode = 660", "is 660: that is 0o1224; give three octal digits with quotes"),
        ("[port]\na = 1", "'port' in {path} is {{'a': 1}}: give a list"),
        ("", "no port"),
    ],
)
def test_wrong_file_names_key_and_file(tmp_path: Path, text: str, says: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        configure({}, file)
    assert says.format(path=file) in str(caught.value)


@pytest.mark.parametrize("uncommented", [False, True])
def test_the_file_that_comes_with_the_unit(tmp_path: Path, uncommented: bool) -> None:
    text = (Path(__file__).parents[2] / "contrib" / "systemd" / "vhostfast.toml").read_text()
    path = tmp_path / "vhostfast.toml"
    if uncommented:
        text = re.sub(r"^# (?=[a-z-]+ = )", "", text, flags=re.MULTILINE)
    path.write_text(text)
    config = configure({}, path)
    assert [port.name for port in config.ports] == ["vm0", "vm1"]
    assert bool(config.allow_uid) == (config.socket_mode == 0o660) == uncommented


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentLacks, match="No such file or directory: name a TOML"):
        configure({}, tmp_path / "none.toml")
    with pytest.raises(EnvironmentLacks, match="Is a directory"):
        configure({}, tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"forward = '\xe9'")
    with pytest.raises(UsageError, match="is not TOML"):
        configure({}, tmp_path / "latin.toml")
