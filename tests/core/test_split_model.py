"""The C split ring does what the plain Python one does, whatever a guest does to either.

The guest's memory is a memfd, seen by the front-end in one map and by the back-end region by region
at other addresses, each region ending right before a page that nobody may touch. The model has its
own copy. After each step both memories, both logs and every answer are compared. Hypothesis draws
the steps and a seed for each, so that it has steps to leave out when one fails.
"""

import ctypes
import mmap
import os
import shlex
import subprocess
from contextlib import suppress
from pathlib import Path
from random import Random
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model import INDIRECT, NEXT, PAGE, WRITE, Broken, Chain, Fault, Memory, SplitRing

HERE = Path(__file__).parent
CC = shlex.split(os.environ.get("CC", "gcc"))
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-fno-strict-aliasing", "-shared", "-fPIC", "-Wall"]
UNDEFINED = ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
GOT, EMPTY, BROKEN = 1, 0, -1
BASE = 0x10000  # the first region's GPA
LOG_PAGES = 64
SEED = st.integers(0, 2**32)


class Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("gpa", "size", "uva", "host")]


@pytest.fixture(scope="module")
def verbs(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("verbs") / "verbs.so"
    source = HERE / "split_verbs.c"
    include = f"-I{HERE.parent.parent / 'csrc'}"
    subprocess.run([*CC, *FLAGS, *UNDEFINED, include, source, "-o", library], check=True)
    verbs = ctypes.CDLL(str(library))
    for name in ("map_guarded", "back_end_new", "span_gpa", "span_size", "beyond"):
        getattr(verbs, name).restype = ctypes.c_uint64
    for name in ("publish", "wants_call", "want_kicks"):
        getattr(verbs, name).restype = ctypes.c_bool
    return verbs


class SharedMemory:
    """Regions in a memfd. The front-end maps all of it; the back-end each region on its own."""

    def __init__(self, verbs: ctypes.CDLL, regions: dict[int, int]) -> None:
        self.verbs = verbs
        self.fd = os.memfd_create("guest")
        self.maps: list[tuple[int, int]] = []
        self.regions: list[tuple[int, int, int, int]] = []  # gpa, size, file offset, back-end
        end = 0
        for gpa, size in regions.items():
            pages = -(-size // PAGE) * PAGE
            os.ftruncate(self.fd, end + pages)
            at = verbs.map_guarded(self.fd, ctypes.c_uint64(end), ctypes.c_uint64(pages))
            self.maps.append((at, pages))
            self.regions.append((gpa, size, end + pages - size, at + pages - size))
            end += pages
        self.file = mmap.mmap(self.fd, end)

    def close(self) -> None:
        self.file.close()
        for at, size in self.maps:
            self.verbs.unmap_guarded(ctypes.c_void_p(at), ctypes.c_uint64(size))
        os.close(self.fd)

    def write(self, gpa: int, data: bytes) -> None:
        for start, size, offset, _ in self.regions:
            low, high = max(gpa, start), min(gpa + len(data), start + size)
            if low < high:
                self.file[offset + low - start : offset + high - start] = data[
                    low - gpa : high - gpa
                ]

    def host(self, gpa: int) -> ctypes.c_void_p:
        start, _, _, at = next(r for r in self.regions if r[0] <= gpa < r[0] + r[1])
        return ctypes.c_void_p(at + gpa - start)


class Twins:
    """One guest, two back-ends. The steps are methods that take dice."""

    def __init__(self, verbs: ctypes.CDLL, dice: Random) -> None:
        self.verbs = verbs
        self.size = size = dice.choice([1, 2, 4, 8])
        self.device_writes = dice.random() < 0.5
        regions, gpa = {}, BASE
        cuts = [
            (dice.randint(16, 5000), dice.choice([0, 0, 0, 1, PAGE]))
            for _ in range(dice.randint(1, 6))
        ]
        place = dice.randint(0, len(cuts))
        cuts.insert(place, (2 * PAGE, 0))  # where the ring itself lies
        for i, (length, gap) in enumerate(cuts):
            if i == place:
                self.desc = gpa
            regions[gpa] = length
            gpa += length + gap
        self.end = gpa
        self.avail = self.desc + 16 * size
        self.used = self.avail + 6 + 2 * size + (-(6 + 2 * size)) % 4
        self.shared = SharedMemory(verbs, regions)
        self.memory = Memory(regions)
        index = dice.choice([0, 0x7FFF, 65535 - dice.randrange(20), dice.randrange(65536)])
        used_log = dice.choice(
            [None, PAGE - dice.choice([2, 4, 8, dice.randrange(80)]), dice.randrange(4 * PAGE)]
        )
        self.write(self.avail + 2, pack("<H", index))
        self.write(self.used + 2, pack("<H", index))
        self.avail_index = index
        self.ring = SplitRing(
            self.memory,
            size,
            self.desc,
            self.avail,
            self.used,
            event_idx=dice.random() < 0.5,
            indirect=dice.random() < 0.8,
            used_log=used_log,
        )
        table = (Region * len(regions))(
            *(Region(gpa, size, 0, host) for gpa, size, _, host in self.shared.regions)
        )
        self.log = (ctypes.c_uint64 * (LOG_PAGES // 64))()
        self.c = ctypes.c_void_p(self.verbs.back_end_new(table, len(regions)))
        self.verbs.set_log(
            self.c, self.log, ctypes.c_uint64(LOG_PAGES), used_log is not None,
            ctypes.c_uint64(used_log or 0),
        )  # fmt: skip
        self.begin()

    def begin(self) -> None:
        areas = (self.shared.host(gpa) for gpa in (self.desc, self.avail, self.used))
        self.ring.start()
        self.verbs.start(self.c, self.size, *areas, self.ring.event_idx, self.ring.indirect)
        self.taken: list[Chain] = []
        self.broken = False

    def close(self) -> None:
        self.verbs.back_end_free(self.c)
        self.shared.close()

    # --- The guest

    def write(self, gpa: int, data: bytes) -> None:
        self.memory.write(gpa, data)
        self.shared.write(gpa, data)

    def write_desc(self, gpa: int, *desc: int) -> None:
        with suppress(Broken):  # the guest has no memory there either
            self.write(gpa, pack("<QIHH", *desc))

    def buffer(self, dice: Random) -> tuple[int, int]:
        """Mostly in memory, often over a cut, seldom anywhere."""
        start, data = dice.choice(list(self.memory.regions.items()))
        gpa = start + dice.choice([dice.randrange(len(data)), max(len(data) - 12, 0)])
        length = dice.choice([0, 1, 16, dice.randrange(40), len(data) - (gpa - start)])
        if dice.random() < 0.02:
            gpa = dice.choice([0, self.end, 2**64 - 1, 2**64 - 16, 2**63])
        if dice.random() < 0.02:
            length = dice.choice([2**32 - 1, 2**31, 2**16, 6000])
        return gpa, length

    def flags(self, dice: Random, more: bool) -> int:
        wrong = dice.choice([WRITE, NEXT, INDIRECT, 8]) if dice.random() < 0.05 else 0
        return wrong ^ (NEXT * more | WRITE * self.device_writes)

    def guest_offers_chains(self, dice: Random) -> None:
        """Direct descriptors, the last of them, maybe, an indirect table; mostly lawful."""
        for _ in range(dice.randint(1, 4)):
            heads = dice.sample(range(self.size), dice.randint(1, self.size))
            for i, index in enumerate(heads):
                after = heads[i + 1] if i + 1 < len(heads) else dice.choice([self.size, heads[0]])
                flags = self.flags(dice, i + 1 < len(heads))
                self.write_desc(self.desc + 16 * index, *self.buffer(dice), flags, after)
            if dice.random() < 0.5:
                self.guest_makes_a_table(dice, heads[-1])
            self.offer(heads[0])

    def guest_makes_a_table(self, dice: Random, index: int) -> None:
        gpa, _ = self.buffer(dice)
        count = dice.choice([0, 1, self.size, self.size + 1, dice.randint(1, self.size)])
        for entry in range(count):
            flags = self.flags(dice, entry + 1 < count)
            self.write_desc(gpa + 16 * entry, *self.buffer(dice), flags, entry + 1)
        length = 16 * count + (dice.choice([-8, 1, 8]) if dice.random() < 0.05 else 0)
        flags = INDIRECT | dice.choice([0, WRITE, NEXT if dice.random() < 0.1 else 0])
        self.write_desc(self.desc + 16 * index, gpa, max(length, 0), flags, index)

    def guest_scribbles(self, dice: Random) -> None:
        index, after = dice.randrange(self.size), dice.randint(0, self.size)
        self.write_desc(self.desc + 16 * index, *self.buffer(dice), dice.randrange(16), after)
        if dice.random() < 0.3:
            self.offer(dice.choice([self.size, 0xFFFF, index]))
        if dice.random() < 0.3:  # avail.idx: too far by one, or by much, or backwards
            ahead = dice.choice([self.size, self.size + 1, 0x8000, 0xFFFF])
            self.avail_index = self.ring.last_avail + ahead & 0xFFFF
            self.write(self.avail + 2, pack("<H", self.avail_index))

    def offer(self, head: int) -> None:
        if (self.avail_index - self.ring.last_avail) & 0xFFFF < self.size:
            self.write(self.avail + 4 + 2 * (self.avail_index % self.size), pack("<H", head))
            self.avail_index = self.avail_index + 1 & 0xFFFF
            self.write(self.avail + 2, pack("<H", self.avail_index))

    def guest_starts_anew(self) -> None:
        self.avail_index = self.ring.used_told
        self.write(self.avail + 2, pack("<H", self.avail_index))
        self.begin()

    def guest_sets_suppression(self, dice: Random) -> None:
        self.write(self.avail, pack("<H", dice.randrange(4)))
        if self.ring.event_idx:
            event = self.ring.used_told + dice.randint(-2, 5) & 0xFFFF
            self.write(self.avail + 4 + 2 * self.size, pack("<H", event))

    def front_end_collects_the_log(self, dice: Random) -> None:
        self.log[0] = 0
        self.ring.marked.clear()

    # --- The back-end: the six verbs on both

    def pop(self, dice: Random) -> None:
        if self.broken:
            self.guest_starts_anew()
        for _ in range(dice.randint(1, 2 * self.size)):
            got = self.verbs.pop(self.c, self.device_writes)
            chain, fault = self.pop_the_model()
            assert got == (BROKEN if fault else GOT if chain else EMPTY)
            assert self.verbs.fault(self.c) == fault
            self.broken = fault != Fault.NONE
            if chain is None:
                return
            self.same_chain(chain)
            self.taken.append(chain)
            self.use(chain, dice)

    def pop_the_model(self) -> tuple[Chain | None, Fault]:
        try:
            return self.ring.pop(self.device_writes), Fault.NONE
        except Broken as error:
            return None, error.fault

    def same_chain(self, chain: Chain) -> None:
        assert self.verbs.head(self.c) == chain.head
        assert self.verbs.chain_size(self.c) == chain.size
        count, gpa, size = self.verbs.span_count(self.c), self.verbs.span_gpa, self.verbs.span_size
        assert [(gpa(self.c, i), size(self.c, i)) for i in range(count)] == chain.spans

    def use(self, chain: Chain, dice: Random) -> None:
        """Read it, or fill it, maybe not to its end."""
        if self.device_writes:
            size = dice.choice([chain.size, dice.randint(0, chain.size)])
            data = bytes([dice.randint(1, 255)]) * size
            self.ring.fill(chain, data)
            self.verbs.fill(self.c, data, len(data))
        else:
            data = ctypes.create_string_buffer(max(chain.size, 1))
            self.verbs.gather(self.c, data, chain.size)
            wanted = b"".join(self.memory.read(*span) for span in chain.spans)
            assert data.raw[: chain.size] == wanted

    def rewind(self, dice: Random) -> None:
        count = dice.randint(0, len(self.taken))
        del self.taken[len(self.taken) - count :]
        self.ring.rewind(count)
        self.verbs.rewind_by(self.c, count)

    def give_back(self, dice: Random) -> None:
        count = dice.randint(0, len(self.taken))
        for chain in self.taken[:count]:
            length = dice.randrange(2**32)
            self.ring.push(chain.head, length)
            self.verbs.push(self.c, chain.head, length)
        del self.taken[:count]
        if dice.random() < 0.8:
            assert self.verbs.publish(self.c) == self.ring.publish()
        if dice.random() < 0.8:
            assert self.verbs.wants_call(self.c) == self.ring.wants_call()

    def want_kicks(self, dice: Random) -> None:
        wanted = dice.random() < 0.5
        assert self.verbs.want_kicks(self.c, wanted) == self.ring.want_kicks(wanted)

    def same_world(self) -> None:
        assert self.verbs.last_avail(self.c) == self.ring.last_avail
        for gpa, size, offset, _ in self.shared.regions:
            assert self.shared.file[offset : offset + size] == self.memory.regions[gpa]
        pages = {page for page in range(LOG_PAGES) if self.log[page // 64] >> page % 64 & 1}
        assert pages == self.ring.marked
        assert self.verbs.beyond(self.c) == 0


STEPS = {  # and how often, in proportion
    Twins.guest_offers_chains: 6,
    Twins.guest_scribbles: 1,
    Twins.guest_sets_suppression: 4,
    Twins.front_end_collects_the_log: 2,
    Twins.pop: 6,
    Twins.rewind: 1,
    Twins.give_back: 6,
    Twins.want_kicks: 2,
}
STEP = st.sampled_from([step for step, times in STEPS.items() for _ in range(times)])


PROGRAM = st.sampled_from([5, 80, 80, 80]).flatmap(
    lambda count: st.lists(st.tuples(STEP, SEED), min_size=count, max_size=count)
)


@settings(max_examples=150, deadline=None)
@given(seed=SEED, program=PROGRAM)
def test_the_c_ring_is_the_model(verbs, seed, program):
    twins = Twins(verbs, Random(seed))
    try:
        for step, step_seed in program:
            step(twins, Random(step_seed))
            twins.same_world()
    finally:
        twins.close()
