"""Orders of the migration log, right and wrong, each searched whole; and csrc takes ours."""

import re
from itertools import product
from pathlib import Path

import pytest
from order import KICKS, ROUNDS, STEPS, End, Memory, Model

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs/migration.md").read_text()

PUBLISHES = "fence, test, bit, used.idx, fence, gather used, test, bit"
OURS = "answer, pop, bytes, gather, element, " + PUBLISHES
OURS_DIRECT = "answer, pop, bytes, element, gather, " + PUBLISHES
TWO_PACKETS = OURS.replace("bytes, gather", "bytes, gather, bytes, gather")
# The simplest that is right; what is wrong with it is found out with each of its pieces displaced.
UNTESTED = "answer, pop, bytes, gather, element, fence, bit, used.idx, gather used, fence, bit"
TWO_UNTESTED = UNTESTED.replace("bytes, gather", "bytes, gather, bytes, gather")
RIGHT = {
    "ours": OURS,
    "ours, direct path": OURS_DIRECT,
    "ours, two packets": TWO_PACKETS,
    # What log_gather does when there is no more room.
    "unbatched": TWO_PACKETS.replace("gather,", "gather, fence, test, bit,", 2),
    "untested": UNTESTED,
    "a fence for stores, as no bit is tested": UNTESTED.replace("fence", "release"),
}

HAPPENS = {
    End.ANSWERED: ["answers SET_LOG_BASE", "from the old log", "answers GET_VRING_BASE"],
    End.KILLED: ["answers SET_LOG_BASE", "from the old log", "is killed"],
}

# Where a wrong order is found out: under which ends and memories.
EVERYWHERE = "any end, any memory"
AFTER_ANSWER, AFTER_KILL = "answered, any memory", "killed, any memory"
WEAK, AFTER_ANSWER_WEAK = "any end, weak", "answered, weak"
WRONG = {
    "bit before bytes": (
        "answer, pop, gather, fence, bit, bytes, element, used.idx, gather used, fence, bit",
        EVERYWHERE,
        "the bit is taken and the page copied before the bytes are there",
    ),
    "no fence between bytes and bit": (
        UNTESTED.replace("element, fence, bit", "element, bit"),
        WEAK,
        "the same, where an atomic or may overtake stores",
    ),
    "used.idx before bit": (
        "answer, pop, bytes, gather, element, used.idx, gather used, fence, bit",
        AFTER_KILL,
        "killed between the two: the guest has the buffer, nobody will ever mark it",
    ),
    "tested before set, no fence": (
        UNTESTED.replace("fence, bit", "test, bit"),
        EVERYWHERE,
        "an old bit is found set while the bytes wait; it is taken, the old page copied",
    ),
    "tested before set, behind a fence for stores": (
        UNTESTED.replace("fence", "release").replace("bit", "test, bit"),
        EVERYWHERE,
        "the same: such a fence lets the load pass the stores before it",
    ),
    "tested before the fence": (
        UNTESTED.replace("fence, bit", "test, fence, bit"),
        EVERYWHERE,
        "the same: the fence is too late",
    ),
    "used ring tested with no fence behind used.idx": (
        OURS.replace("used.idx, fence", "used.idx"),
        AFTER_ANSWER,
        "the same, for the page of used.idx",
    ),
    "an or that isn't atomic": (
        UNTESTED.replace("bit", "load, store"),
        EVERYWHERE,
        "another ring's bit, set between load and store, is gone",
    ),
    "used ring never marked": (
        UNTESTED.removesuffix(", gather used, fence, bit"),
        AFTER_ANSWER,
        "the copy's used.idx stays behind what the guest has seen",
    ),
    "used ring marked before used.idx only": (
        "answer, pop, bytes, gather, element, gather used, fence, bit, used.idx",
        AFTER_ANSWER,
        "the same, if the bit is taken at once",
    ),
    "no fence between used.idx and its bit": (
        UNTESTED.removesuffix("fence, bit") + "bit",
        AFTER_ANSWER_WEAK,
        "the same, where an atomic or may overtake stores",
    ),
    "a page marked once a burst": (
        TWO_UNTESTED.replace("gather, bytes, gather", "gather, fence, bit, bytes"),
        EVERYWHERE,
        "its bit is taken between the first packet on it and the second",
    ),
    "bits kept for the next burst": (
        "answer, pop, fence, bit, bytes, gather, element, used.idx, gather used",
        EVERYWHERE,
        "there may be no next burst",
    ),
    "bits dropped where a burst is cut": (
        UNTESTED.replace("element, fence", "element, forget, fence"),
        EVERYWHERE,
        "what was pushed is published all the same",
    ),
    "answered before the used ring's bit": (
        UNTESTED.replace("gather used", "answer, gather used"),
        AFTER_ANSWER,
        "the last look comes before the bit",
    ),
    "old log marked after SET_LOG_BASE's reply": (
        "hold log, " + UNTESTED,
        EVERYWHERE,
        "nobody looks there any more",
    ),
    "used.idx before bytes": (
        "answer, pop, element, used.idx, bytes, gather, gather used, fence, bit",
        EVERYWHERE,
        "the guest reads bytes that aren't there, migration or not",
    ),
}  # fmt: skip


def steps(order: str) -> tuple[str, ...]:
    return tuple(order.split(", "))


def places(where: str) -> set[tuple[End, Memory]]:
    """The ends and memories that a cell of the table names."""
    return {
        (end, memory)
        for end, memory in product(End, Memory)
        if where.startswith(("any end", end.value)) and where.endswith(("any memory", memory.value))
    }


@pytest.mark.slow
@pytest.mark.parametrize("memory", Memory)
@pytest.mark.parametrize("end", End)
@pytest.mark.parametrize("name", RIGHT)
def test_right_order_has_no_fault(name, end, memory):
    model = Model(steps(RIGHT[name]), memory, end)
    found = model.search()
    assert not found.fault, "\n".join([*found.trace, found.fault])
    told = " ".join(found.told)  # nothing of it was out of reach
    assert all(step in told for step in {*model.order, *KICKS, *HAPPENS[end]})
    assert f"sees used.idx {ROUNDS * model.packets}" in told


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_wrong_order_is_found_out(name):
    order, where, _ = WRONG[name]
    at_fault = {
        (end, memory)
        for end, memory in product(End, Memory)
        if Model(steps(order), memory, end).search().fault
    }
    assert at_fault == places(where)


def test_after_a_kill_the_used_ring_is_the_front_ends_to_send():
    """used.idx and its mark are two stores; whoever dies between them leaves the page unmarked."""
    for memory in Memory:
        found = Model(steps(OURS), memory, End.KILLED, sends_used=False).search()
        assert found.fault == "element: 0 in the copy, 1 in memory"
        assert "ring: ... used.idx becomes visible" in found.trace


def test_a_front_end_that_always_sends_used_rings_hides_that_they_are_not_marked():
    order, where, _ = WRONG["used ring never marked"]
    assert (End.ANSWERED, Memory.TSO) in places(where)
    assert not Model(steps(order), Memory.TSO, End.ANSWERED, sends_used=True).search().fault


def test_unknown_step_is_refused():
    with pytest.raises(ValueError, match="no such steps: \\['flush'\\]"):
        Model(("answer", "flush"), Memory.TSO, End.ANSWERED)


# --- The document shows what the model says


def test_document_has_the_table_of_wrong_orders():
    rows = [f"| {name} | {where} | {why} |" for name, (_, where, why) in WRONG.items()]
    shown = [line for line in DOCUMENT.splitlines() if line.startswith("| ")]
    assert [row for row in shown if row.split(" | ")[0][2:] in WRONG] == rows


def test_document_shows_a_trace():
    order, _, _ = WRONG["used.idx before bit"]
    found = Model(steps(order), Memory.TSO, End.KILLED).search()
    assert "".join(f"    {line}\n" for line in [*found.trace, found.fault]) in DOCUMENT


# --- csrc names the same steps, where it takes them


def functions() -> dict[str, list[str]]:
    """The lines of each function in csrc, by its name."""
    found = {}
    definition = re.compile(r"^(\w[^;{}]*\))\n\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
    for path in sorted((ROOT / "csrc").glob("*.h")):
        for head, body in definition.findall(path.read_text()):
            found[re.search(r"(\w+)\((?!\()", head)[1]] = body.splitlines()
    return found


FUNCTIONS = functions()
TAG = re.compile(r"step: ([a-z. ]+?) \*/")


def tagged(lines: list[str]) -> list[tuple[str, str]]:
    """(name or "", line of code); a comment on a line of its own names the next one."""
    named, name = [], ""
    for line in lines:
        name = name or "".join(TAG.findall(line))
        if code := re.sub(r"/\*.*?\*/", "", line).strip():
            named.append((name, code))
            name = ""
    return named


def taken_by(function: str) -> list[str]:
    """The steps that a function takes, those of what it calls with them, in the text's order."""
    taken = []
    for name, code in tagged(FUNCTIONS[function]):
        called = [word for word in re.findall(r"(\w+)\(", code) if word in FUNCTIONS]
        taken += [name] if name else [step for word in called for step in taken_by(word)]
    return taken


def once(taken: list[str]) -> str:
    """What branches or repeats say twice in a row, said once."""
    text = ", ".join(taken)
    while (shorter := re.sub(r"\b(\w[\w ,.]*?), \1(?=,|$)", r"\1", text)) != text:
        text = shorter
    return text


@pytest.mark.parametrize(
    ("path", "ours"), [("copy_direct ring_complete", OURS_DIRECT), ("deliver", OURS)]
)
def test_csrc_takes_our_steps(path, ours):
    taken = [step for function in ["worker_rest", *path.split()] for step in taken_by(function)]
    assert once(taken) == ours


@pytest.mark.parametrize("function", ["split_store_kicks", "split_start"])
def test_csrc_asks_for_kicks_in_the_other_rings_steps(function):
    assert steps(once(taken_by("worker_rest") + taken_by(function))) == KICKS


def test_csrc_takes_each_step_by_its_call():
    named = [pair for lines in FUNCTIONS.values() for pair in tagged(lines) if pair[0]]
    assert {name for name, _ in named} == {name for name, call in STEPS.items() if call}
    assert not [(name, code) for name, code in named if STEPS[name] not in code]


def test_csrc_names_each_place_that_marks():
    """Nothing else sets a bit, or keeps one."""
    for call in (STEPS["bit"], STEPS["gather"]):
        unnamed = [
            function
            for function, lines in FUNCTIONS.items()
            for name, code in tagged(lines)
            if f"{call}(" in code and not name
        ]
        assert not unnamed


def test_only_a_publish_stands_in_for_a_fence():
    """Who flushes marks without a fence of their own has it from a publish just before."""
    code = "".join(path.read_text() for path in sorted((ROOT / "csrc").glob("*.h")))
    flush = r"\b(?:log_flush|split_publish|ring_complete)\([^;{]*?, (\w+)\)"
    told, made = set(re.findall(flush, code)), re.findall(r"\bfenced = ([^;]*);", code)
    assert told == {"false", "fenced"}
    assert made
    for publish in made:
        assert re.fullmatch(r"\S+ != NULL && split_publish\(\S+, false\)", publish)
