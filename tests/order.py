"""The order of the migration log as a model, small enough to be searched whole.

Who takes part, and what they share:
  - a back-end's ring gives buffers back. They lie on page BUFFER, what it tells the driver on page
    USED. Its steps are an *order*: names of STEPS, one burst, begun again with each offer. csrc
    names the same steps where it takes them, and tests/test_order.py holds the two equal;
  - another ring, of this back-end or another, asks for kicks: a store to its own page, OTHER, whose
    bit is in the same word of the log. Its steps are always KICKS;
  - a driver acquires used.idx, reads what it was promised and offers the buffer again. What it
    writes itself is not modelled: another log has it, and a copy more never makes a copy wrong;
  - a front-end takes the log by exchange with zero and copies those pages at any time later. At any
    moment it may replace the log: it reads the old one a last time after the reply.

The end comes at any moment, in one of two ways. ANSWERED: GET_VRING_BASE is answered, then the
front-end takes the log once more and copies. KILLED: the back-end executes no further step, the
connection breaks, and the front-end does the same, but also sends the used ring, for nobody is left
who could mark it. The driver may have been stopped at any moment before, and may go on until then.

The invariant: at the end the copy equals memory on every page that was written to and is not in the
back-end's hands, and the driver is never told of bytes that are not there. After an answer nothing
is in its hands. A killed back-end may hold a buffer that used.idx does not count, filled or not:
its successor fills it again.

Memory is one for all, as on x86 and on aarch64 ("other multi-copy atomic"). A thread executes its
steps in order, and what it stores waits in its store buffer:
  - TSO (x86): the buffer is a queue; an atomic or waits until it is empty;
  - WEAK (aarch64): what waits, an atomic or too, becomes visible in any order but for stores to the
    same word, stores behind a fence, and a release, which waits for all that stood before it.
A full fence waits until the buffer is empty. Loads are not reordered: each that matters acquires,
or stands between a fence and the branch that it decides.

A page is copied at one instant: the invariant is about single words, so nothing is lost by it. Nor
by kills and answers at moments when no store waits: what waits becomes visible anyhow.
"""

from collections import deque
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

# What a step is, and the call or statement that csrc takes it by ("": it never does).
STEPS = {
    "answer": "worker->resting = true",  # at rest: requests that wait are answered
    "pop": "load_acquire_u16",  # an offer is taken
    "bytes": "copy_bytes",  # into the buffer
    "kicks": "store_once_u16",  # used.flags or avail_event; here the other ring's
    "gather": "log_mark",  # the buffer's bit is kept
    "gather used": "used_log",  # the used ring's bit is kept
    "element": "store_once_used",
    "fence": "fence_full",
    "test": "load_once_u64",  # only the kept bits that aren't set are kept on
    "bit": "or_u64",  # the kept bits go into the log
    "used.idx": "store_release_u16",
    # Only in orders that aren't ours:
    "release": "",  # a fence for stores alone
    "load": "",  # the first half of an or that isn't atomic
    "store": "",  # the second
    "hold log": "",  # remember the log's address, over an answer
    "forget": "",  # drop the kept bits
}

KICKS = ("answer", "kicks", "fence", "gather used", "test", "bit")
# Nobody else sees these, so they are taken together with the step after them.
PRIVATE = {"answer", "pop", "gather", "gather used", "fence", "hold log", "forget"}

BUFFER, USED, OTHER = PAGES = (1, 2, 4)  # as bits of the log's word
BYTES, ELEMENT, USED_IDX, KICK, LOG, NEW_LOG = range(6)  # the words of memory
PAGE_OF = (BUFFER, USED, USED, OTHER)
WORD_NAME = ("bytes", "element", "used.idx", "kicks", "log", "new log")
BARRIER = -1
ROUNDS = 2  # offers of the buffer


class Memory(Enum):
    TSO = "tso"
    WEAK = "weak"


class End(Enum):
    ANSWERED = "answered"
    KILLED = "killed"


class Waiting(NamedTuple):
    """What a thread has executed and nobody else sees yet."""

    word: int  # or BARRIER
    value: int
    atomic_or: bool = False
    release: bool = False


class Thread(NamedTuple):
    step: int = 0
    buffer: tuple[Waiting, ...] = ()
    kept: int = 0  # bits gathered
    popped: int = 0  # packets' room, so far
    written: int = 0  # packets, so far
    loaded: int = 0
    held: int | None = None  # the log that it remembers


RUNS, ENDED, LAST_LOOK, DONE = range(4)  # phases


class State(NamedTuple):
    memory: tuple[int, ...] = (0, 0, 0, 0, 0, 0)
    copy: tuple[int, ...] = (0, 0, 0, 0)
    offered: int = 0  # packets that the driver has room for, so far
    seen: int = 0  # used.idx as the driver saw it last
    log: int = LOG  # where the back-end marks
    read: int = LOG  # where the front-end looks
    taken: int = 0  # pages to be copied
    phase: int = RUNS
    ring: Thread = Thread()
    other: Thread = Thread()
    fault: str = ""


class Found(NamedTuple):
    states: int
    told: set[str]  # all that happened, in some state
    trace: list[str]  # the shortest way to a fault, if there is one
    fault: str


class Model:
    """One order under one memory and one end."""

    def __init__(
        self, order: tuple[str, ...], memory: Memory, end: End, *, sends_used: bool | None = None
    ) -> None:
        """`sends_used`: the front-end copies the used ring at the end, marked or not. If None, it
        does after a kill only."""
        if unknown := set(order) - STEPS.keys():
            raise ValueError(f"no such steps: {sorted(unknown)}; there are {list(STEPS)}")
        self.order = order
        self.memory = memory
        self.end = end
        self.sends_used = end is End.KILLED if sends_used is None else sends_used
        self.packets = order.count("bytes")

    def search(self) -> Found:
        """Every state that can be reached, the nearest first; ends at the first fault."""
        start = State(offered=self.packets)
        came_from: dict[State, tuple[State, str] | None] = {start: None}
        queue = deque([start])
        happened: set[str] = set()
        while queue:
            state = queue.popleft()
            fault = state.fault or self.judge(state)
            if fault:
                return Found(len(came_from), happened, self._trace(came_from, state), fault)
            for told, after in self.successors(state):
                happened.add(told)
                if after not in came_from:
                    came_from[after] = (state, told)
                    queue.append(after)
        return Found(len(came_from), happened, [], "")

    def judge(self, state: State) -> str:
        """The invariant's first half; its second is the driver's to see."""
        if state.phase != DONE:
            return ""
        in_hand = set()
        if self.end is End.KILLED and state.offered > state.memory[USED_IDX]:
            in_hand |= {BYTES, ELEMENT}
        if self.end is End.KILLED and state.other.step < len(KICKS):
            in_hand.add(KICK)
        for word, (there, here) in enumerate(zip(state.copy, state.memory, strict=False)):
            if there != here and word not in in_hand:
                return f"{WORD_NAME[word]}: {there} in the copy, {here} in memory"
        return ""

    def successors(self, state: State) -> Iterator[tuple[str, State]]:
        if self.end is not End.KILLED or state.phase == RUNS:
            yield from self._execute(state, "ring", self.order, "")
            if state.other.step < len(KICKS):
                yield from self._execute(state, "other", KICKS, "")
        yield from self._become_visible(state, "ring")
        yield from self._become_visible(state, "other")
        if state.phase in (RUNS, ENDED):
            yield from self._drive(state)
        yield from self._migrate(state)
        yield from self._end(state)

    # --- A thread of the back-end

    def _execute(
        self, state: State, who: str, order: tuple[str, ...], told: str
    ) -> Iterator[tuple[str, State]]:
        thread: Thread = getattr(state, who)
        step = order[thread.step]
        stays_out = step in ("pop", "kicks") and state.phase != RUNS
        nothing_to_pop = step == "pop" and state.offered == thread.popped
        after = self._step(state, thread, step, OTHER if who == "other" else USED)
        if stays_out or nothing_to_pop or after is None:
            return
        thread, memory = after
        at = thread.step + 1
        if who == "ring":
            at %= len(order)
        state = state._replace(memory=memory, **{who: thread._replace(step=at)})
        told += f", {step}" if told else f"{who}: {step}"
        if step in PRIVATE and order[at] != "answer":
            yield from self._execute(state, who, order, told)
        else:
            yield told, state

    def _step(
        self, state: State, thread: Thread, step: str, used: int
    ) -> tuple[Thread, tuple[int, ...]] | None:
        """The thread and memory after it; None where it has to wait."""
        memory, buffer, kept = state.memory, thread.buffer, thread.kept
        log = thread.held or state.log

        def store(word: int, value: int, **how: bool) -> Thread:
            return thread._replace(buffer=(*buffer, Waiting(word, value, **how)))

        match step:
            case "pop":
                thread = thread._replace(popped=state.offered)
            case "bytes":
                thread = store(BYTES, thread.written + 1)._replace(written=thread.written + 1)
            case "kicks":
                thread = store(KICK, 1)
            case "element":
                thread = store(ELEMENT, thread.popped)
            case "used.idx":
                thread = store(USED_IDX, thread.popped, release=True)
            case "gather":
                thread = thread._replace(kept=kept | BUFFER)
            case "gather used":
                thread = thread._replace(kept=kept | used)
            case "forget":
                thread = thread._replace(kept=0)
            case "hold log":
                thread = thread._replace(held=state.log)
            case "fence" if buffer:
                return None
            case "release" if self.memory is Memory.WEAK:
                thread = store(BARRIER, 0)
            case "bit" if kept and self.memory is Memory.WEAK:
                thread = store(log, kept, atomic_or=True)._replace(kept=0)
            case "bit" if kept:
                if buffer:
                    return None
                thread = thread._replace(kept=0)
                memory = _put(memory, log, memory[log] | kept)
            case "store" if kept:
                thread = store(log, thread.loaded | kept)._replace(kept=0, loaded=0)
            case "test" | "load" if kept:
                own = [waiting for waiting in buffer if waiting.word == log]
                if any(waiting.atomic_or for waiting in own):
                    return None
                value = own[-1].value if own else memory[log]
                if step == "test":
                    thread = thread._replace(kept=kept & ~value)
                else:
                    thread = thread._replace(loaded=value)
        return thread, memory

    def _become_visible(self, state: State, who: str) -> Iterator[tuple[str, State]]:
        thread: Thread = getattr(state, who)
        for place, waiting in enumerate(thread.buffer):
            before = thread.buffer[:place]
            held_up = (
                self.memory is Memory.TSO
                or waiting.release
                or waiting.word == BARRIER
                or any(earlier.word in (waiting.word, BARRIER) for earlier in before)
            )
            if before and held_up:
                continue
            rest = before + thread.buffer[place + 1 :]
            memory, word, value = state.memory, waiting.word, waiting.value
            if word != BARRIER:
                memory = _put(memory, word, memory[word] | value if waiting.atomic_or else value)
            name = "its fence" if word == BARRIER else WORD_NAME[word]
            after = state._replace(memory=memory, **{who: thread._replace(buffer=rest)})
            yield f"{who}: ... {name} becomes visible", after

    def _rests(self, state: State) -> bool:
        """Both threads are where they answer, and all that they stored is visible: the answer
        releases it."""
        ring, other = state.ring, state.other
        at_rest = self.order[ring.step] == "answer" and other.step in (0, len(KICKS))
        return at_rest and not (ring.buffer or other.buffer)

    # --- The driver

    def _drive(self, state: State) -> Iterator[tuple[str, State]]:
        bytes_, element, used_idx = state.memory[:3]
        if used_idx != state.seen:
            fault = ""
            if not bytes_ == element == used_idx:
                fault = f"the driver was told of {used_idx}: bytes {bytes_}, element {element}"
            yield f"driver: sees used.idx {used_idx}", state._replace(seen=used_idx, fault=fault)
        elif state.seen == state.offered < ROUNDS * self.packets:
            offered = state.offered + self.packets
            yield "driver: offers the buffer again", state._replace(offered=offered)

    # --- The front-end

    def _migrate(self, state: State) -> Iterator[tuple[str, State]]:
        if state.taken:
            copy = tuple(
                here if page & state.taken else there
                for page, here, there in zip(PAGE_OF, state.memory, state.copy, strict=False)
            )
            phase = DONE if state.phase == LAST_LOOK else state.phase
            told = f"front-end: copies {_names(state.taken)}"
            yield told, state._replace(copy=copy, taken=0, phase=phase)
            return
        if state.phase == LAST_LOOK:
            yield "front-end: has nothing to copy", state._replace(phase=DONE)
        if state.phase not in (RUNS, ENDED):
            return
        pages = state.memory[state.read]
        looked = state._replace(
            memory=_put(state.memory, state.read, 0), taken=pages, read=state.log
        )
        if state.read != state.log:
            yield f"front-end: takes {_names(pages)} from the old log, for the last time", looked
        elif state.phase == RUNS:
            yield f"front-end: takes {_names(pages)} from the log", looked
        else:
            pages |= USED if self.sends_used else 0
            told = f"front-end: the guest stands; takes {_names(pages)}, for the last time"
            yield told, looked._replace(taken=pages, phase=LAST_LOOK)

    def _end(self, state: State) -> Iterator[tuple[str, State]]:
        if state.phase != RUNS:
            return
        if self._rests(state) and state.log == LOG:
            yield "back-end: answers SET_LOG_BASE", state._replace(log=NEW_LOG)
        if self.end is End.KILLED:
            if not (state.ring.buffer or state.other.buffer):
                other = Thread(len(KICKS) if state.other.step == len(KICKS) else 0)
                yield (
                    "back-end: is killed",
                    state._replace(phase=ENDED, ring=Thread(), other=other),
                )
        elif self._rests(state):
            yield "back-end: answers GET_VRING_BASE", state._replace(phase=ENDED)

    def _trace(self, came_from: dict[State, tuple[State, str] | None], state: State) -> list[str]:
        trace = []
        while (step := came_from[state]) is not None:
            state, told = step
            trace.append(told)
        return trace[::-1]


def _put(memory: tuple[int, ...], word: int, value: int) -> tuple[int, ...]:
    return (*memory[:word], value, *memory[word + 1 :])


def _names(pages: int) -> str:
    named = zip(PAGES, ("BUFFER", "USED", "OTHER"), strict=True)
    return ", ".join(name for page, name in named if pages & page) or "nothing"
