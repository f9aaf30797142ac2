"""What scripts/fuzz.py says of a target that finds something; its command finds it again."""

import shlex
import subprocess
from pathlib import Path

import fuzz
import pytest

pytestmark = pytest.mark.peers  # clang

TARGET = """
#include "check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    %s
    return 0;
}
"""


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("SAME(3, size && data, 0);", "fuzz_broken.c:6: row 3: size && data is 1 (0x1), wanted 0"),
        ("if (size) data[size] == 7 ? abort() : (void)0;", "heap-buffer-overflow"),
        ("CHECK(size == 0 || (1 << (data[0] | 32)) != 0);", "runtime error: shift exponent"),
        ("while (size && data[0]) ;", "libFuzzer: timeout after"),
    ],
)
def test_a_find_is_told_last(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    body: str,
    says: str,
) -> None:
    for name in ("broken", "good"):
        text = TARGET % (body if name == "broken" else "CHECK(data || !size);")
        (tmp_path / f"fuzz_{name}.c").write_text(text)
    monkeypatch.setattr(fuzz, "SOURCES", tmp_path)
    monkeypatch.setattr(fuzz, "CORPORA", tmp_path)
    monkeypatch.setattr(fuzz, "BUILD", tmp_path)
    monkeypatch.setattr(fuzz, "TARGETS", ["broken", "good"])
    monkeypatch.setattr(fuzz, "LIMITS", ["-timeout=1"])
    plain = [flag for flag in fuzz.FLAGS if "trace-loads" not in flag]  # no memory that changes
    monkeypatch.setattr(fuzz, "FLAGS", plain)
    assert fuzz.main(["--seconds=4"]) == 1
    complaint, input, again = capfd.readouterr().out.splitlines()[-3:]
    assert complaint.startswith("fuzz: broken FOUND: ")
    assert says in complaint
    assert Path(input.removeprefix("  input: ")).parent == tmp_path
    command = shlex.split(again.removeprefix("  again: "))
    replay = subprocess.run(command, capture_output=True, text=True, check=False)
    assert replay.returncode != 0
    assert says in replay.stderr


def test_nothing_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "BUILD", tmp_path)
    assert fuzz.main(["log", "--seconds=1"]) == 0
    assert capfd.readouterr().out.endswith("fuzz: nothing found by 1 targets\n")
