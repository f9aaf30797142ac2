"""The rules of the house, one table a rule. A budget is raised by a commit that says why."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import median

import pytest
from mutate_marks import all_mutants, blank_comments, functions

ROOT = Path(__file__).parent.parent
CODE = (".py", ".pyx", ".pxd", ".pyi", ".h", ".c")


def files(*patterns: str, suffixes: tuple[str, ...] = CODE) -> list[Path]:
    """Files below the project's root that match, paths relative to it; none of hidden folders."""
    found = {path.relative_to(ROOT) for pattern in patterns for path in ROOT.glob(pattern)}
    hidden = {path for path in found if any(part[0] == "." for part in path.parts[:-1])}
    return sorted(path for path in found - hidden if path.suffix in suffixes)


def text(path: Path) -> str:
    return (ROOT / path).read_text()


def lines(path: Path) -> list[str]:
    return text(path).splitlines()


def imports(path: Path) -> list[str]:
    """The modules that a Python or Cython file imports, wherever the statement stands."""
    pattern = r"^\s*(?:from\s+([\w.]+)\s+c?import\s+(\(?[\w, ]*)|c?import\s+([\w., ]+))"
    names = []
    for module, members, plain in re.findall(pattern, text(path), re.MULTILINE):
        if module == "vhostfast":
            names += [f"vhostfast.{name.strip()}" for name in members.strip("(").split(",")]
        else:
            names += [name.split(" as ")[0].strip() for name in (module or plain).split(",")]
    return names


# --- Layers: cli -> switch, bench, audit -> device -> backend, driver -> protocol | core -> csrc

LAYERS = {
    "errors": set(),
    "protocol": {"errors"},
    "core": {"errors"},
    "driver": {"errors", "protocol", "core"},
    "backend": {"errors", "protocol", "core"},
    "device": {"errors", "protocol", "core", "backend"},
    "switch": {"errors", "protocol", "core", "backend", "device"},
    "bench": {"errors", "protocol", "core", "backend", "device", "driver"},
    "audit": {"errors", "protocol", "core", "backend", "device", "driver"},
}
LAYERS["cli"] = set(LAYERS)
MODULES = files("vhostfast/**/*", suffixes=(".py", ".pyx", ".pxd"))


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_down(path):
    layer = path.parts[1].removesuffix(".py")
    below = LAYERS.get(layer, set(LAYERS)) | {layer}  # only the package's own __init__ has none
    imported = {name.split(".")[1] for name in imports(path) if name.startswith("vhostfast.")}
    assert imported <= below


def test_one_file_of_the_backend_knows_both_halves():
    def halves(path: Path) -> set[str]:
        return {name.split(".")[1] for name in imports(path) if name.startswith("vhostfast.")}

    both = {
        path.name for path in files("vhostfast/backend/*") if halves(path) >= {"protocol", "core"}
    }
    assert both <= {"reconcile.py"}


# What a pure module may know: values and types. No socket, mmap, clock, log, thread or os.
PURE = {
    "__future__", "bisect", "collections", "collections.abc", "contextlib", "dataclasses", "enum",
    "functools", "itertools", "operator", "struct", "types", "typing",
}  # fmt: skip


@pytest.mark.parametrize("path", files("vhostfast/protocol/*.py", "vhostfast/errors.py"), ids=str)
def test_protocol_is_pure(path):
    assert {name for name in imports(path) if not name.startswith("vhostfast.")} <= PURE


def test_import_is_light():
    heavy = {"asyncio", "typer", "click", "rich", "numpy", "multiprocessing"}
    command = "import sys, vhostfast; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, check=True, text=True
    )
    assert not heavy & set(run.stdout.split())


def test_few_public_names():
    command = "import vhostfast; print(*(n for n in vars(vhostfast) if not n.startswith('_')))"
    run = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, check=True, text=True
    )
    assert len(run.stdout.split()) <= 20


# --- Each file has its place


MIRRORED = [
    *(p for p in files("vhostfast/**/*", suffixes=(".py", ".pyx")) if p.stem[:2] != "__"),
    *files("csrc/*.h"),
]
# Where a file's tests stand if not in its mirror image.
MIRRORED_BY = {
    "vhostfast/errors.py": "tests/protocol/test_message.py",
    "csrc/spec.h": "tests/c/test_sync.c",  # static asserts: compiled by every test
    "csrc/ring.h": "tests/c/test_split.c",  # the contract, kept there
    "csrc/burst.h": "tests/c/test_forward.c",
    "csrc/direct.h": "tests/c/test_forward.c",
}
# Tested through others only, so far. Names leave this set; none comes in.
NOT_YET_MIRRORED = {
    "vhostfast/backend/worker.py", "vhostfast/bench/machine.py", "vhostfast/bench/pair.py",
    "vhostfast/cli/main.py", "vhostfast/device/net.py", "vhostfast/device/worker.py",
    "vhostfast/driver/sequence.py", "vhostfast/driver/traffic.py", "vhostfast/driver/vring.py",
}  # fmt: skip


def mirror(path: Path) -> Path:
    if str(path) in MIRRORED_BY:
        return Path(MIRRORED_BY[str(path)])
    if path.suffix == ".h":
        return Path(f"tests/c/test_{path.stem}.c")
    return Path("tests", *path.parts[1:-1], f"test_{path.stem}.py")


@pytest.mark.parametrize("path", MIRRORED, ids=str)
def test_source_has_a_mirrored_test(path):
    assert (ROOT / mirror(path)).exists() or str(path) in NOT_YET_MIRRORED, mirror(path)


@pytest.mark.parametrize("path", files("vhostfast/**/*.pyx"), ids=str)
def test_extension_has_a_stub(path):
    assert (ROOT / path).with_suffix(".pyi").exists()


def test_no_file_is_named_for_nothing():
    vague = {"utils", "util", "common", "helpers", "helper", "base", "misc"}
    assert not {path for path in files("**/*") if path.stem in vague and path.parts[0][0] != "."}


# --- Words that have one place, or none: pattern, where it is looked for, where it may stand, why

BANNED = [
    (r"__atomic_|__sync_|atomic_\w+\(|stdatomic", "csrc/**/*", "csrc/sync.h", "its one place"),
    (r"Python\.h", "csrc/**/*", "", "csrc is fuzzed and sanitized without Python"),
    (r"-march=|-mtune=|-mcpu=", "*", "", "one build runs anywhere"),
    (r"pytest\.(skip|xfail|importorskip)|mark\.(skip|xfail)", "tests/**/*", "", "fix or delete"),
    (r"unittest\.mock|MagicMock", "tests/**/*", "tests/test_house.py", "fakes and real peers"),
    (r"^\s*include\b", "vhostfast/**/*.pyx", "", "modules by owner and C headers"),
]


@pytest.mark.parametrize(("pattern", "where", "except_in", "why"), BANNED)
def test_banned_words(pattern, where, except_in, why):
    suffixes = (*CODE, ".toml", "")
    for path in files(where, suffixes=suffixes):
        if (ROOT / path).is_file() and str(path) != except_in:
            assert not re.search(pattern, text(path), re.MULTILINE), f"{path}: {why}"


# --- Who may store to guest memory, and that the log is told of it

# Functions of csrc that do, how often (as the patterns below see it), and who marks for them.
STORES = {
    "cursor_write": (1, "cursor_write"),
    "cursor_copy": (1, "cursor_copy"),
    "store_net_header": (3, "direct_mark_group"),
    "copy_direct": (2, "direct_mark_group"),  # and *bytes
    "store_addresses": (2, "direct_mark_group"),
    "split_push": (1, "split_publish"),
    "split_publish": (1, "split_publish"),
    "split_store_kicks": (2, "split_store_kicks"),
    "split_start": (1, "split_start"),
}
# Functions that store to memory of ours only.
OWN_MEMORY = {
    "accounts_forgive", "cursor_read", "direct_addresses", "direct_target", "fdb_age",
    "fdb_forget_port", "fdb_learn", "fdb_learn_anew", "find_ip", "log_has_news", "log_set_word",
    "log_tell", "nethdr_partial", "offload_check", "offload_segment", "peek_direct", "port_break",
    "region_at", "ring_lock", "ring_unlock", "segment_ip", "store_be16", "store_summed",
    "take_room", "worker_tell",
}  # fmt: skip
# Functions that hold guest addresses, and don't store there.
READERS = {
    "chain_append", "cursor_read", "split_used_event", "split_avail_event", "split_waiting",
    "split_table_entry", "split_walk", "split_pop", "split_wants_call", "split_want_kicks",
    "prefetch_used", "peek_single", "peek_pair", "peek_direct", "inject", "region_at",
    "region_covers", "region_table_holds", "log_holds", "worker_look_anew",
}  # fmt: skip
# Lines of the Cython core that touch guest memory or copy bytes: file, function, how many. What a
# device sends is stored by csrc; `write` marks nothing, and says so; the others find addresses,
# copy to memory of ours, or blank it.
CYTHON = {
    ("ring", "place"): 6, ("ring", "__cinit__"): 1, ("memory", "find"): 3, ("memory", "read"): 2,
    ("memory", "write"): 2, ("memory", "copy_body"): 1, ("memory", "mark"): 1,
    ("memory", "map_run"): 2, ("fabric", "allocate"): 1,
}  # fmt: skip
STORE = (
    r"\b(?:copy_(?:bytes|vector|small)|mem(?:cpy|set|move)|store_once_\w+|store_release_\w+"
    r"|exchange_\w+|or_u64|read|readv|recv|recvmsg|pread)\("
    r"|\*\s*\([^()]*\*\s*\)\s*(?:\w+|\([^()]*\))\s*=[^=]"  # *(type *)at =
    r"|(?:^|[;{})])\s*(?:\*\w+|\w+\[[^;=]*\])\s*[-+|&^]?=[^=]"  # *at =, at[i] =
    r"|\bhost\b(?:\s*\+|\[)[^;!<>=,]*=[^=]"
    r"|->(?:used|avail|desc)(?:->|\[)[^;!<>=,)]*=[^=]"
)
GUEST = r"\bhost\b|\bregion_at\(|->(?:used|avail|desc)\b|split_(?:avail|used)_event\("
WHAT_TO_DO = (
    "a store to guest memory that the migration log isn't told of is a page lost. Mark it behind"
    " the store (log_mark, split_mark_used), name the function here, and run `make mutate`"
)


def bodies() -> dict[str, str]:
    """The functions of csrc, but of the primitives, and what they consist of."""
    found = {}
    for path in files("csrc/*.h"):
        if path.name not in ("sync.h", "copy.h"):
            code = blank_comments(text(path))
            found |= {name: code[start:end] for name, start, end in functions(code)}
    return found


def test_only_known_functions_store_to_guest_memory():
    stores = {name: len(re.findall(STORE, body)) for name, body in bodies().items()}
    strangers = {name for name, n in stores.items() if n} - STORES.keys() - OWN_MEMORY
    assert not strangers, WHAT_TO_DO
    more = {name: n for name, (n, _) in STORES.items() if stores[name] != n}
    assert not more, f"one more, or one less, than is known: {WHAT_TO_DO}"
    assert {name for name in OWN_MEMORY if not stores.get(name)} == set()


def test_only_known_functions_hold_guest_addresses():
    holders = {name for name, body in bodies().items() if re.search(GUEST, body)}
    assert not holders - STORES.keys() - READERS, WHAT_TO_DO
    assert not READERS - holders


# --- Guest memory is loaded by accessors, each word once (tests/c/read_once.c proves the once)

# Functions that load through a pointer of their own making, how often, and what. All else is loaded
# by sync.h (words of rings) and copy.h (bytes of packets).
LOADS = {
    "copy_direct": 2,  # the net header, volatile
    "mac_load": 1,  # an address, volatile
    "direct_mark_gaps": 1, "load_be16": 1, "sum_bytes": 2,  # memory of ours
}  # fmt: skip
LOAD = r"\*\s*\((?:const )?(?:volatile )?\w+ \*\)\s*(?:\w+|\([^()]*\))(?!\w)(?!.* = )"
BARE = r"(?<![&\w>.])(?:\w+->)+(?:used|avail|desc)(?:->|\[)|(?<![&\w])table\["


def test_guest_words_are_loaded_by_accessors_only():
    why = "load it once, by an accessor of sync.h, check the local, use only that"
    assert not {name for name, body in bodies().items() if re.search(BARE, body)}, why
    loads = {name: len(re.findall(LOAD, body)) for name, body in bodies().items()}
    assert {name: n for name, n in loads.items() if n} == LOADS, why


def test_each_store_is_marked_where_the_table_says():
    marking = {mutant.function for mutant in all_mutants() if mutant.mutation == "removed"}
    assert {marked_in for _, marked_in in STORES.values()} <= marking


def test_only_known_lines_of_the_cython_core_touch_guest_memory():
    touch = re.compile(
        r"\b(?:mem(?:cpy|set|move)|cursor_write|cursor_copy|nethdr_write|split_push)\("
        r"|\bhost\b|\bc\.(?:used|avail|desc)\b"
    )
    found: Counter[tuple[str, str]] = Counter()
    for path in files("vhostfast/core/*.pyx"):
        function = ""
        for line in () if path.name in NOT_COUNTED else lines(path):
            if define := re.match(r"\s*(?:def|cdef [\w *]*?)\s*\*?(\w+)\(", line):
                function = define[1]
            elif function and touch.search(line):
                found[path.stem, function] += 1
    assert found == CYTHON, WHAT_TO_DO


def test_no_python_of_the_back_end_stores_to_guest_memory():
    for path in files(*(f"vhostfast/{room}/*.py" for room in ("backend", "device", "switch"))):
        assert ".view(" not in text(path), f"{path}: {WHAT_TO_DO}"


def test_the_mutation_proof_is_of_this_code():
    """docs/migration.md has a row for each mutant of the code as it is, and none survived."""
    section = text(Path("docs/migration.md")).partition("\n## Mutation proof\n")[2]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    cells = [re.split(r" (?<!\\)\| ", row.strip("| ")) for row in rows]
    proved = [(row[0].strip("`"), row[1]) for row in cells if len(row) == 3]
    mutants = [(m.place.replace("|", "\\|"), m.mutation.replace("|", "\\|")) for m in all_mutants()]
    assert proved == mutants, "run `make mutate` and put its table there"
    assert not [row for row in cells if "SURVIVED" in row[-1]]


# --- Budgets, in lines

BUDGETS = [
    ("csrc", 3360, files("csrc/*.h")),
    ("Cython", 1150, files("vhostfast/core/*", suffixes=(".pyx", ".pxd"))),
    ("Python", 2440, files("vhostfast/protocol/*.py", "vhostfast/backend/*.py")),
    ("setup.py", 40, files("setup.py")),
]
NOT_COUNTED = {
    "driver.pyx",
    "driver.pxd",
    "traffic.pyx",
    "limit.pyx",
}  # a front-end: with tests and bench
FILE_LINES, FUNCTION_LINES, LINE_COLUMNS, FUNCTION_MEDIAN = 600, 70, 100, 15

FUNCTION = {
    ".py": r"\s*(async )?def ",
    ".pyx": r"\s*(async )?(def|cdef|cpdef) .*\(",
    ".h": r"[a-zA-Z_][^;=]*\(",
    ".c": r"[a-zA-Z_][^;=]*\(",
}
SOURCES = files("csrc/**/*", "vhostfast/**/*", "tests/**/*", "bench/**/*", "examples/*", "*.py")


def function_lengths(path: Path) -> dict[str, int]:
    """Lines of each function, by its first line: it ends where the indentation falls back."""
    found: dict[str, int] = {}
    open_at: list[tuple[int, int, str]] = []  # indentation, line, first line
    for number, line in enumerate([*lines(path), "."]):
        stripped = line.lstrip()
        if not stripped or re.match(r"[)\]{}]", stripped):
            continue
        indentation = len(line) - len(stripped)
        while open_at and indentation <= open_at[-1][0]:
            _, start, name = open_at.pop()
            body = lines(path)[start:number]
            found[name] = max(i for i, text in enumerate(body, 1) if text.strip())
        if path.suffix in FUNCTION and re.match(FUNCTION[path.suffix], line):
            open_at.append((indentation, number, f"{path}:{number + 1}: {stripped}"))
    return found


@pytest.mark.parametrize(("name", "limit", "paths"), BUDGETS, ids=[row[0] for row in BUDGETS])
def test_budget(name, limit, paths):
    counted = {str(path): len(lines(path)) for path in paths if path.name not in NOT_COUNTED}
    assert sum(counted.values()) <= limit, counted


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_file_line_and_function_length(path):
    assert len(lines(path)) <= FILE_LINES
    assert not [row for row in enumerate(lines(path), 1) if len(row[1]) > LINE_COLUMNS]
    assert not {name: n for name, n in function_lengths(path).items() if n > FUNCTION_LINES}


def test_functions_are_short_as_a_rule():
    lengths = [n for path in SOURCES for n in function_lengths(path).values()]
    assert median(lengths) < FUNCTION_MEDIAN
