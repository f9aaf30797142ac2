"""Reaching a back-end: each way in which that fails is a sentence."""

import os
import socket
from pathlib import Path

import pytest

from vhostfast.driver.wire import connect
from vhostfast.errors import EnvironmentLacks, UsageError


@pytest.mark.parametrize("path", ["", Path(), "x" * 108, "/" + "é" * 54])
def test_paths_that_no_socket_can_have(path):
    with pytest.raises(UsageError, match="give a path of 1 to 107 bytes"):
        connect(path, 0)


def test_nobody_is_there(tmp_path):
    with pytest.raises(EnvironmentLacks, match=f"nobody serves {tmp_path}/a: start the back-end"):
        connect(tmp_path / "a", 0)


def test_a_socket_that_is_dead(tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "a"))
    with pytest.raises(EnvironmentLacks, match="nobody serves"):
        connect(tmp_path / "a", 0)


def test_what_is_no_socket(tmp_path):
    (tmp_path / "a").write_text("")
    for path in (tmp_path, tmp_path / "a"):
        with pytest.raises(EnvironmentLacks, match=f"{path} is not a socket"):
            connect(path, 5)


def test_a_socket_of_another_kind(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "a"))
        with pytest.raises(EnvironmentLacks, match=r"cannot connect to .*: Protocol wrong type"):
            connect(tmp_path / "a", 5)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(EnvironmentLacks, match=f"cannot connect to {tmp_path}/a/b: Not a dir"):
        connect(tmp_path / "a" / "b", 5)


def test_a_back_end_that_comes_up_in_time(tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "a"))
        server.listen()
        connect(tmp_path / "a", 0).close()
    os.unlink(tmp_path / "a")
