#!/usr/bin/env python3
"""Mutation proof of the migration log: what marks is removed or displaced, one piece at a time, and
each time a test has to fail.

    scripts/mutate_marks.py            all of it: a table in Markdown; 1 if a mutant survived
    scripts/mutate_marks.py --list     only the places, without building anything
    scripts/mutate_marks.py --json     the table as JSON, a row a line

The places are found in csrc/*.h, vhostfast/core/*.pyx and vhostfast/backend/*.py by the names of
the house (log_..., ..._mark_..., a `marker` that is passed on, marks_used, set_log), so a new call
is mutated without a change here. A mutant is built in a copy of the tree, with the compiler that CC
names: C against tests/c, then, with the extensions, against the tests that know of marks, then
against all. Run it by the interpreter of `make build`.
"""

import argparse
import importlib.util
import json
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CC = [*shlex.split(os.environ.get("CC", "gcc")), "-w"]
CPU_SECONDS = 20  # a C test takes two
EXTENSIONS = "ring fabric memory"  # those that mark
C_TESTS = ("direct", "marks", "log", "split", "sync", "chain", "nethdr", "forward", "mend", "bell")
MARK_TESTS = ("tests/core/test_marks.py", "tests/core/test_ring.py", "tests/core/test_memory.py",
              "tests/backend/test_log.py", "tests/backend/test_watch.py", "tests/test_order.py",
              "tests/core/test_witnessed_marks.py", "tests/backend/test_vanish.py")  # fmt: skip
ALL_TESTS = ("tests", "-m", "not peers", "--ignore=tests/test_lint.py",
             "--ignore=tests/test_house.py", "--ignore=tests/c")  # fmt: skip

# What no test can tell from the code as it is, for it marks the same in the same order, and why.
# (function, what is mutated, mutation) -> why. One that isn't made any more is an error.
SAME: dict[tuple[str, str, str], str] = {
    ("direct_mark_each", "log_mark(&ring->marker, frame_gpa, sent_size[i] - skip)",
     "before the bytes"):
        "the other order of two marks: the bytes of both were stored before",
    ("direct_mark_gaps", "const uint32_t at = i + 4 < GROUP_SIZE ? i : GROUP_SIZE - 5",
     "at one more"): "the last is held against what is no buffer: each range is marked by itself",
    ("direct_mark_gaps", "if (paired)", "always"):
        "the same where there is no frame's address; else each range is marked by itself",
    ("split_mark_elements", "const uint64_t end = SPLIT_USED_RING + ring->size * element",
     "end one more"): "a ring that ends with its page marks each part",
    ("split_mark_elements", "if (likely(ring->used_log % page + end <= page))", "never"):
        "each part is marked",
    ("log_flush", "if (!fenced)", "always"): "a fence more",
    ("direct_mark_group",
     "if (likely(count == GROUP_SIZE && direct_mark_gaps(room, sent_size, skip, header_size, "
     "paired) < UINT64_C(1) << LOG_PAGE_SHIFT))", "never"):
        "each range is marked by itself",
    ("log_set_word", "if (bits != 0)", "always"): "or'ing nothing: it spares an atomic",
    ("log_has_news", "if (log->event_fd >= 0)", "always"): "log_tell looks at event_fd itself",
    ("log_mark", "if (unlikely(gpa - marker->end >= UINT64_C(1) << LOG_PAGE_SHIFT))", "always"):
        "each range is marked by itself",
    ("log_gather", "if (marker->word[i].index == index)", "never"):
        "the word is gathered twice, and or'ed twice",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    path: str
    function: str
    what: str  # the statement or condition, in one line
    mutation: str
    source: str  # the whole file, mutated

    @property
    def place(self) -> str:
        return f"{self.path} {self.function}: {self.what}"

    @property
    def same(self) -> str | None:
        """Why no test can tell it from the code as it is."""
        return SAME.get((self.function, self.what, self.mutation))


class DoesNotBuild(Exception):
    """A mutant proves nothing unless it compiles."""


# --- C: statements and conditions ---------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A statement without its semicolon, or the head of an `if`, `for` or `while`."""

    start: int
    end: int
    head: bool
    joined: bool = False  # nothing but a semicolon stands between it and the statement before


def blank_comments(text: str) -> str:
    """The same text, of the same length, with spaces where comments and directives are."""
    return re.sub(
        r"/\*[\s\S]*?\*/|^#.*", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.MULTILINE
    )


def closing(text: str, opening: int) -> int:
    """Where the bracket that opens at `opening` is closed."""
    depth = 0
    for at in range(opening, len(text)):
        depth += (text[at] in "([{") - (text[at] in ")]}")
        if depth == 0:
            return at
    raise ValueError(f"a bracket is never closed: {text[opening : opening + 60]!r}")


def functions(text: str) -> Iterator[tuple[str, int, int]]:
    """(name, start, end) of each function's body, given text without comments."""
    pattern = r"^\w[^;{}=]*?\b(\w+)\([^(){};=]*\)\s*\{"
    for found in re.finditer(pattern, text, re.MULTILINE):
        yield found[1], found.end(), closing(text, found.end() - 1)


def pieces(text: str, start: int, end: int) -> Iterator[Piece]:
    at, joined, guarded = start, False, False
    while at < end:
        if text[at] in "{};" or text[at].isspace():
            joined = joined and text[at] not in "{}"
            guarded = guarded and text[at] != "{"
            at += 1
            continue
        if head := re.compile(r"(if|for|while|switch)\s*\(").match(text, at):
            stop = closing(text, head.end() - 1) + 1
            yield Piece(at, stop, True)
            at, joined, guarded = stop, False, True
            continue
        if word := re.compile(r"(else|do)\b").match(text, at):
            at, joined, guarded = word.end(), False, True
            continue
        stop = at
        while text[stop] not in ";{":
            stop = closing(text, stop) + 1 if text[stop] in "([" else stop + 1
        if text[stop] == "{":  # an initialiser or a compound literal
            stop = text.index(";", closing(text, stop))
        yield Piece(at, stop, False, joined)
        at, joined, guarded = stop, not guarded, False


def arguments(text: str, opening: int) -> list[tuple[int, int]]:
    """The spans of a call's arguments; `opening` is its bracket."""
    spans, start, at, end = [], opening + 1, opening + 1, closing(text, opening)
    while at < end:
        if text[at] in "([{":
            at = closing(text, at)
        elif text[at] == ",":
            spans.append((start, at))
            start = at + 1
        at += 1
    return [(s + len(text[s:e]) - len(text[s:e].lstrip()), e) for s, e in [*spans, (start, end)]]


VERB = re.compile(
    r"\b(log_(?!tell)\w+|\w+_mark_\w+|or_u64)\s*\("
)  # calls whose only purpose is to mark
FENCED = re.compile(r"\b(?:split_publish|ring_complete)\(.*, (false|fenced)\)")
ASKS = re.compile(r"\b(marks_used|marker(\.|->)\w+|page_count)\b")


def is_verb(function: str) -> bool:
    return bool(VERB.match(f"{function}("))


class CFile:
    """The mutants of one header."""

    def __init__(self, path: str, source: str) -> None:
        self.path, self.source = path, source
        self.text = blank_comments(source)

    def mutants(self) -> Iterator[Mutant]:
        for name, start, end in functions(self.text):
            body = list(pieces(self.text, start, end))
            for number, piece in enumerate(body):
                before = body[number - 1] if number and piece.joined else None
                after = body[number + 1] if number + 1 < len(body) else None
                for mutation, edits in self._edits(name, piece, before, after):
                    what = " ".join(self.text[piece.start : piece.end].split())
                    yield Mutant(self.path, name, what, mutation, self._edited(edits))

    def _edited(self, edits: list[tuple[int, int, str]]) -> str:
        source = self.source
        for start, end, new in sorted(edits, reverse=True):
            source = source[:start] + new + source[end:]
        return source

    def _edits(
        self, function: str, piece: Piece, before: Piece | None, after: Piece | None
    ) -> Iterator[tuple[str, list[tuple[int, int, str]]]]:
        text, verb = self.text[piece.start : piece.end], is_verb(function)
        if piece.head:
            yield from self._head(piece, text, verb)
        elif call := VERB.match(text):
            yield "removed", [(piece.start, piece.end, "(void)0")]
            yield from self._displaced(function, piece, call[1])
            if call[1] == "log_mark" and before:
                yield "before the bytes", self._swap(before, piece)
            if call[1] == "log_flush" and before:
                yield "before the statement before it", self._swap(before, piece)
            if call[1] == "log_flush" and after and after.joined and not after.head:
                yield "after the statement behind it", self._swap(piece, after)
        elif fenced := FENCED.search(text):
            at = piece.start + fenced.start(1)
            yield "said to be fenced", [(at, piece.start + fenced.end(1), "true")]
        elif "__atomic_fetch_or" in text:
            for mutation, new in (("removed", "(void)0"), ("not atomic", "*at |= bits"),
                                  ("= for |=", "*at = bits")):  # fmt: skip
                yield mutation, [(piece.start, piece.end, new)]
        elif "marker" in text and "(" in text and not re.match(r"\w+(\.|->|\[| \w)", text):
            yield from self._displaced(function, piece, "")
        elif text.startswith("store_release_u16(&ring->used->idx"):
            end = piece.start + len("store_release_u16")
            yield "without release", [(piece.start, end, "store_once_u16")]
        elif verb:
            yield from self._statement(piece, text)

    def _head(
        self, piece: Piece, text: str, verb: bool
    ) -> Iterator[tuple[str, list[tuple[int, int, str]]]]:
        if not (verb or ASKS.search(text)):
            return
        inside = piece.start + text.index("(") + 1
        if text.startswith("if"):
            yield "never", [(inside, piece.end - 1, "0")]
            yield "always", [(inside, piece.end - 1, "1")]
        elif text.startswith("while"):
            for old, new in (("<=", "<"), (" < ", " <= ")):
                if old in text:
                    at = piece.start + text.index(old)
                    yield f"{new.strip()} for {old.strip()}", [(at, at + len(old), new)]
        elif " < " in text:
            at = piece.start + text.index(" < ")
            step = re.search(r"\+= (\d+)", text)
            yield "without the last", [(at, at, f" + {step[1] if step else 1}")]

    def _displaced(
        self, function: str, piece: Piece, verb: str
    ) -> Iterator[tuple[str, list[tuple[int, int, str]]]]:
        """Each argument one more and one less, or another marker."""
        spans = arguments(self.text, self.text.index("(", piece.start))
        for number, (start, end) in enumerate(spans):
            old = self.text[start:end]
            if re.fullmatch(r"&?[\w.>-]*\bmarker", old):
                if not verb:
                    none = "&(struct marker){0}"
                    yield "through a marker without a log", [(start, end, none)]
                if old == "&to->marker":
                    yield "in the sender's log", [(start, end, "&from->marker")]
            elif verb and (number > 0 or verb == "or_u64"):
                told = " ".join(old.split())
                for sign, word in (("+", "more"), ("-", "less")):
                    yield f"({told}) one {word}", [(start, end, f"({old}) {sign} 1")]

    def _statement(
        self, piece: Piece, text: str
    ) -> Iterator[tuple[str, list[tuple[int, int, str]]]]:
        """What a marking verb does of its own: variables and words."""
        if "|=" in text:
            at = piece.start + text.index("|=")
            yield "= for |=", [(at, at + 2, "=")]
        if re.match(r"(const )?u?int\w+ \w+ =", text):
            for found in re.finditer(r"(\w+) = ", text):
                start = piece.start + found.end()
                end = next((e for s, e in arguments(f"({text})", 0) if s <= found.end() < e), None)
                stop = piece.start + (end - 1 if end else len(text))
                for sign, word in (("+", "more"), ("-", "less")):
                    new = f"({self.text[start:stop]}) {sign} 1"
                    yield f"{found[1]} one {word}", [(start, stop, new)]
        elif re.match(r"[\w>.\-\[\]]+( [|+]?= |\+\+)", text) or text.startswith("fence_full"):
            yield "removed", [(piece.start, piece.end, "(void)0")]

    def _swap(self, first: Piece, second: Piece) -> list[tuple[int, int, str]]:
        texts = [self.source[p.start : p.end] for p in (second, first)]
        return [(p.start, p.end, t) for p, t in zip((first, second), texts, strict=True)]


# --- Cython and Python: a line each ---------------------------------------------------------------

NO_LOG = 'cdef extern from *:\n    """static struct marker no_log;"""\n    marker no_log\n\n\n'
LINES = [  # what a line has, mutation, what it becomes
    (r"^(\s*)[\w.]+\.set_log\(.*\)$", "removed", r"\1pass"),
    (r"\bset_log\(log, used_log\)", "without the used ring's address", "set_log(log, None)"),
    (r"\bset_log\(log, used_log\)", "without the log", "set_log(None, used_log)"),
    (r"^(\s*)log_(?:mark|flush)\(.*\)$", "removed", r"\1pass"),
    (r"\blog_mark\((.*), (.*)\)", "a byte less", r"log_mark(\1, \2 - 1)"),
    (r"\blog_mark\((.*), (.*), (.*)\)", "a byte further", r"log_mark(\1, \2 + 1, \3)"),
    (r"\bmarker\.log = .*", "never", "marker.log = NULL"),
    (r"\bmarks_used = .*", "never", "marks_used = False"),
    (r"\bmarks_used = .*", "always", "marks_used = log is not None"),
    (r"\.used_log = (.*)", "a page further", r".used_log = 4096 + (\1)"),
    (r"&self\.c\.marker\b", "through a marker without a log", "&no_log"),
    (r"\blog=log\b", "without the log", "log=None"),
    (r"\bused_log=used_log\b", "without the used ring's address", "used_log=None"),
    (r"^(\s*)marked = .*", "never", r"\1marked = False"),
    (r"^(\s*)marked = .*", "always", r"\1marked = log is not None"),
    (r"^(\s*)used_log = (.*) if (.*)", "a page further", r"\1used_log = 4096 + \2 if \3"),
    (r"\bc\.word = (.*)", "a word further", r"c.word = \1 + 1"),
    (r"\bc\.page_count = (.*)", "a page less", r"c.page_count = \1 - 1"),
    (r"\bc\.page_count = (.*)", "a page more", r"c.page_count = \1 + 1"),
]  # fmt: skip


def line_mutants(path: str, source: str) -> Iterator[Mutant]:
    lines = source.splitlines(keepends=True)
    function = ""
    for number, line in enumerate(lines):
        if define := re.match(r"\s*(?:async def|def|cdef \w+|cpdef \w+)\s+(\w+)\(", line):
            function = define[1]
            continue
        for pattern, mutation, new in LINES:
            mutated, found = re.subn(pattern, new, line)
            if not found or mutated == line:
                continue
            text = "".join([*lines[:number], mutated, *lines[number + 1 :]])
            if "no_log" in new:
                text = re.sub(r"^FAULTS = ", NO_LOG + "FAULTS = ", text, flags=re.MULTILINE)
            yield Mutant(path, function, line.strip(), mutation, text)


def all_mutants() -> list[Mutant]:
    found: list[Mutant] = []
    for path in sorted(ROOT.glob("csrc/*.h")):
        name = str(path.relative_to(ROOT))
        found += CFile(name, path.read_text()).mutants()
    for path in [*sorted(ROOT.glob("vhostfast/core/*.pyx")), *ROOT.glob("vhostfast/backend/*.py")]:
        found += line_mutants(str(path.relative_to(ROOT)), path.read_text())
    return found


# --- Building and running -------------------------------------------------------------------------


class Scratch:
    """A copy of the tree in which one mutant at a time lives."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        listed = ["git", "ls-files", "-z", "-co", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        built = [str(path.relative_to(ROOT)) for path in ROOT.glob("vhostfast/core/*.so")]
        (folder / "build/cython/vhostfast/core").mkdir(parents=True)
        for name in [*names.split("\0")[:-1], *built]:
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        spec = importlib.util.spec_from_file_location(
            "test_headers", folder / "tests/c/test_headers.py"
        )
        assert spec is not None
        assert spec.loader is not None
        headers = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(headers)
        self.c_flags: list[str] = headers.FLAGS
        for name in EXTENSIONS.split():
            self._build(name)
        self.built = {path: path.read_bytes() for path in folder.glob("vhostfast/core/*.so")}
        self.unfit: list[str] = []  # tests that fail without a mutant: they prove nothing
        self.environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}

    def verdict(self, mutant: Mutant | None) -> str | None:
        """The test that catches the mutant; None: all tests pass."""
        if mutant is None:
            return self._c_tests() or self._extension_tests(MARK_TESTS)
        while True:
            with self._mutated(mutant):
                caught = self._judged(mutant)
            if caught is None or caught.startswith("tests/c/") or self._passes(caught):
                return caught
            self.unfit.append(f"--deselect={caught}")  # it fails on this machine anyway

    @contextmanager
    def _mutated(self, mutant: Mutant) -> Iterator[None]:
        original = (self.root / mutant.path).read_text()
        (self.root / mutant.path).write_text(mutant.source)
        try:
            yield
        finally:
            (self.root / mutant.path).write_text(original)
            for path, content in self.built.items():
                path.write_bytes(content)

    def _judged(self, mutant: Mutant) -> str | None:
        in_c = mutant.path.startswith("csrc")
        if in_c and (caught := self._c_tests()):
            return caught
        if mutant.same:
            return None
        names = EXTENSIONS if in_c else Path(mutant.path).stem * mutant.path.endswith(".pyx")
        for name in names.split():
            self._build(name)
        return self._extension_tests(MARK_TESTS) or self._extension_tests(ALL_TESTS)

    def _c_tests(self) -> str | None:
        """Without sanitizers first: four times as quick, and most is caught."""
        plain = [flag for flag in self.c_flags if "sanitize" not in flag]
        for flags, names in ((plain, C_TESTS[:4]), (self.c_flags, C_TESTS)):
            for name in names:
                source, program = f"tests/c/test_{name}.c", self.root / "c_test"
                self._make([*CC, *flags, source, "-o", str(program)])
                limited = ["sh", "-c", f"ulimit -t {CPU_SECONDS}; exec {program}"]
                run = subprocess.run(limited, cwd=self.root, capture_output=True, text=True)
                if run.returncode:
                    return f"{source}: {_complaint(run)}"
        return None

    def _extension_tests(self, tests: tuple[str, ...]) -> str | None:
        run = self._pytest(*tests, *self.unfit)
        if run.returncode == 0:
            return None
        if failed := re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", run.stdout, re.MULTILINE):
            caught = failed[1]
        elif died := re.search(r"/(tests/\S+\.py)\", line \d+ in (test_\w+)", run.stderr):
            caught = f"{died[1]}::{died[2]}"
        else:
            raise DoesNotBuild(run.stdout + run.stderr)
        return None if self._passes(caught) else caught  # bad luck proves nothing

    def _passes(self, test: str) -> bool:
        return self._pytest(test).returncode == 0

    def _pytest(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
        return subprocess.run([*command, *arguments], cwd=self.root, env=self.environment,
                              capture_output=True, text=True)  # fmt: skip

    def _build(self, name: str) -> None:
        c_file = f"build/cython/vhostfast/core/{name}.c"
        options = ["-3", "-X", "auto_pickle=False", "-X", "autotestdict=False", "-o", c_file]
        self._make([sys.executable, "-m", "cython", *options, f"vhostfast/core/{name}.pyx"])
        suffix, include = sysconfig.get_config_var("EXT_SUFFIX"), sysconfig.get_path("include")
        flags = ["-std=gnu11", "-O0", "-fno-strict-aliasing", "-shared", "-fPIC", "-Icsrc"]
        self._make([*CC, *flags, f"-I{include}", c_file, "-o", f"vhostfast/core/{name}{suffix}"])

    def _make(self, command: list[str]) -> None:
        run = subprocess.run(command, cwd=self.root, capture_output=True, text=True)
        if run.returncode:
            raise DoesNotBuild(f"{shlex.join(command)}\n{run.stderr}")


def _complaint(run: subprocess.CompletedProcess[str]) -> str:
    """What a C test says first."""
    if check := re.search(r"\.c:\d+: (?:row \d+: )?(.*) is \d+ \(", run.stderr):
        return check[1]
    if found := re.search(r"(?:runtime error|AddressSanitizer): ?([a-zA-Z -]+)", run.stderr):
        return found[1].strip()
    signals = {signal.SIGXCPU: "does not end", signal.SIGKILL: "does not end"}
    return signals.get(-run.returncode, f"ends by signal {-run.returncode}")


@dataclass(frozen=True)
class Row:
    place: str
    mutation: str
    caught_by: str | None  # the test; None: survived
    same: str | None = None  # why no test can tell it from the original


def judge(mutants: list[Mutant], jobs: int) -> Iterator[Row]:
    """The rows, in order. Raises DoesNotBuild, also where a test fails without a mutant."""
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder, ThreadPoolExecutor(jobs) as pool:
        idle: queue.SimpleQueue[Scratch] = queue.SimpleQueue()
        for number in range(jobs):
            idle.put(Scratch(Path(folder, str(number))))

        def one(mutant: Mutant | None) -> str | None:
            scratch = idle.get()
            try:
                return scratch.verdict(mutant)
            finally:
                idle.put(scratch)

        if (caught := one(None)) is not None:
            raise DoesNotBuild(f"without a mutant, {caught} fails")
        verdicts = [pool.submit(one, m) for m in mutants]
        for mutant, verdict in zip(mutants, verdicts, strict=True):
            try:
                yield Row(mutant.place, mutant.mutation, verdict.result(), mutant.same)
            except DoesNotBuild as error:
                pool.shutdown(wait=False, cancel_futures=True)
                raise DoesNotBuild(f"{mutant.place}, {mutant.mutation}: {error}") from error


def markdown(row: Row) -> str:
    verdict = row.caught_by or (f"*the same*: {row.same}" if row.same else "**SURVIVED**")
    cells = [f"`{row.place}`", row.mutation, f"`{verdict}`" if row.caught_by else verdict]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def prove(mutants: list[Mutant], jobs: int, as_json: bool) -> int:
    """Print the table; the exit code."""
    survived = 0
    if not as_json:
        print("| what marks | mutation | caught by |\n|---|---|---|")
    for row in judge(mutants, jobs):
        survived += row.caught_by is None and row.same is None
        wrong = row.caught_by is not None and row.same is not None
        survived += wrong  # it is said to be the same, and isn't
        print(json.dumps(vars(row)) if as_json else markdown(row), flush=True)
    print(f"{len(mutants)} mutants, {survived} survived", file=sys.stderr)
    return 1 if survived else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--list", action="store_true", help="only the places and mutations")
    parser.add_argument("--json", action="store_true", help="a row a line, as JSON")
    parser.add_argument("--only", default="", metavar="TEXT", help="places that have TEXT in them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    mutants = all_mutants()
    unknown = SAME.keys() - {(m.function, m.what, m.mutation) for m in mutants}
    if unknown:
        print(f"SAME names what is not there: {unknown}", file=sys.stderr)
        return 1
    mutants = [m for m in mutants if options.only in m.place]
    if options.list:
        print(*(f"{m.place}\t{m.mutation}" for m in mutants), sep="\n")
        return 0
    try:
        return prove(mutants, options.jobs, options.json)
    except DoesNotBuild as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
