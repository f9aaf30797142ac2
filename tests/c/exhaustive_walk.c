/* Every chain of up to three descriptors over a tiny guest memory, through split_pop: taken exactly
 * if it is lawful, with exactly its bytes, in a bounded number of steps, and with no descriptor
 * read that the rules don't lead to.
 *
 * Which cases there are is found by playing them: a field that is looked at takes each of its
 * values, one that isn't, any. What the rules don't look at is poisoned (ASan) while the ring's
 * verb runs. The oracle knows guest memory as single bytes and addresses of 128 bits.
 */
#include <sanitizer/asan_interface.h>

#include "sync.h"

static uint32_t loads; /* of whole descriptors */

static struct vring_desc counted_load(const struct vring_desc *at)
{
    loads++;
    return load_once_desc(at);
}

#define load_once_desc counted_load
#include "split.h"

#include "check.h"

typedef unsigned __int128 wide;

enum { SIZE_MAX_HERE = 3, ENTRY = sizeof(struct vring_desc) };

/* --- Guest memory: one region from 0; two that touch, cut where an entry of a table may lie
 * across; one that ends with the last byte that a region can have. */

static const struct {
    uint64_t gpa, size;
} REGION[] = {{0, 0x20}, {0x1000, 0x2f}, {0x102f, 0x29}, {UINT64_MAX - 0x28, 0x28}};

static const uint64_t ADDR[] = {
    0x1000,            /* room for a table of three, the last entry cut before its last byte */
    0x1018,            /* the second entry cut in two */
    0x1057,            /* the last byte */
    0x1058,            /* one past: a hole */
    0x1040,            /* room for one entry and a half */
    UINT64_MAX - 0x10, /* room for one; the third would be back at the beginning */
    UINT64_MAX,
};
static const uint32_t LEN[] = {0, 1, 16, 48, UINT32_MAX};

static struct region_table table;
static struct ring ring;
static enum direction direction;
static struct span spans[SPAN_COUNT_MAX];

static bool is_memory(wide byte)
{
    for (size_t i = 0; i < COUNT(REGION); i++)
        if (byte >= REGION[i].gpa && byte < (wide)REGION[i].gpa + REGION[i].size)
            return true;
    return false;
}

/* Each of them, or of none the place where they would be. */
static bool all_memory(uint64_t gpa, uint32_t size)
{
    for (uint64_t i = 0; i < (size ? size : 1); i++)
        if (!is_memory((wide)gpa + i))
            return false;
    return true;
}

static uint8_t *host_of(uint64_t gpa)
{
    for (size_t i = 0; i < COUNT(REGION); i++)
        if (gpa >= REGION[i].gpa && gpa - REGION[i].gpa < REGION[i].size)
            return table.region[i].host + (gpa - REGION[i].gpa);
    abort();
}

/* --- Choices: the first run takes the first of each; the next one the next of the last. */

enum { CHOICES_MAX = 64 };
static struct {
    uint32_t value, limit;
} choice[CHOICES_MAX];
static uint32_t made, known;
static uint64_t runs;

static uint32_t choose(uint32_t limit)
{
    CHECK(made < CHOICES_MAX);
    if (made == known) {
        choice[known].value = 0;
        choice[known++].limit = limit;
    }
    return choice[made++].value;
}

static bool next_run(void)
{
    runs++;
    made = 0;
    while (known > 0 && ++choice[known - 1].value == choice[known - 1].limit)
        known--;
    return known > 0;
}

/* --- The oracle, which makes the descriptors that it reads. */

struct verdict {
    enum fault fault;
    uint32_t count;                          /* of buffers */
    struct vring_desc buffer[SIZE_MAX_HERE]; /* addr and len */
    struct vring_desc made[2 * SIZE_MAX_HERE];
    uint8_t *place[2 * SIZE_MAX_HERE][2]; /* of the first byte, and of the first behind a cut */
    uint32_t before[2 * SIZE_MAX_HERE];   /* bytes before the cut; all, where there is none */
    uint32_t made_count;
};

static const struct vring_desc *find_made(const struct verdict *verdict, const uint8_t *place)
{
    for (uint32_t i = 0; i < verdict->made_count; i++)
        if (verdict->place[i][0] == place)
            return &verdict->made[i];
    return NULL;
}

/* What isn't looked at may be anything, so it is something else in each run. */
static struct vring_desc make_desc(bool in_table)
{
    uint64_t any = runs * UINT64_C(0x9e3779b97f4a7c15);
    struct vring_desc desc = {.addr = ADDR[(any >> 60) % COUNT(ADDR)],
                              .len = LEN[(any >> 52 & 15) % COUNT(LEN)],
                              .flags = (uint16_t)choose(8),
                              .next = any >> 40 & 3};
    bool indirect = desc.flags & VRING_DESC_INDIRECT;
    if (indirect ? !ring.indirect || in_table : (desc.flags & VRING_DESC_WRITE) != direction)
        return desc;
    desc.len = LEN[choose(COUNT(LEN))];
    desc.addr = ADDR[choose(COUNT(ADDR))];
    if (desc.flags & VRING_DESC_NEXT)
        desc.next = (uint16_t)choose(SIZE_MAX_HERE + 1);
    return desc;
}

/* `gpa` is where it lies if it is one of a table. */
static struct vring_desc read_desc(struct verdict *verdict, uint8_t *place, uint64_t gpa,
                                   bool in_table)
{
    const struct vring_desc *known_desc = find_made(verdict, place);
    if (known_desc != NULL)
        return *known_desc;
    uint32_t i = verdict->made_count++, before = ENTRY;
    if (in_table)
        for (before = 1; before < ENTRY && host_of(gpa + before) == place + before;)
            before++;
    verdict->place[i][0] = place;
    verdict->place[i][1] = before < ENTRY ? host_of(gpa + before) : NULL;
    verdict->before[i] = before;
    verdict->made[i] = make_desc(in_table);
    return verdict->made[i];
}

static enum fault judge(struct verdict *verdict, uint32_t index)
{
    uint64_t table_gpa = 0;
    uint32_t count = ring.size;
    for (bool in_table = false;;) {
        if (index >= count)
            return FAULT_HEAD;
        uint64_t gpa = table_gpa + (uint64_t)index * ENTRY;
        uint8_t *place = in_table ? host_of(gpa) : (uint8_t *)&ring.desc[index];
        struct vring_desc desc = read_desc(verdict, place, gpa, in_table);
        if (desc.flags & VRING_DESC_INDIRECT) {
            if (!ring.indirect || in_table || desc.flags & VRING_DESC_NEXT || desc.len == 0 ||
                desc.len % ENTRY != 0 || desc.len / ENTRY > ring.size)
                return FAULT_INDIRECT;
            if (!all_memory(desc.addr, desc.len))
                return FAULT_ADDRESS;
            in_table = true;
            table_gpa = desc.addr;
            count = desc.len / ENTRY;
            index = 0;
            continue;
        }
        if ((desc.flags & VRING_DESC_WRITE) != direction)
            return FAULT_DIRECTION;
        if (!all_memory(desc.addr, desc.len))
            return FAULT_ADDRESS;
        verdict->buffer[verdict->count++] = desc;
        if (!(desc.flags & VRING_DESC_NEXT))
            return FAULT_NONE;
        if (verdict->count == ring.size)
            return FAULT_LOOP;
        index = desc.next;
    }
}

/* --- The verb, held against it. */

static void put(const struct verdict *verdict)
{
    for (size_t i = 0; i < COUNT(REGION); i++)
        __asan_poison_memory_region(table.region[i].host, table.region[i].size);
    __asan_poison_memory_region(ring.desc, SIZE_MAX_HERE * ENTRY);
    for (uint32_t i = 0; i < verdict->made_count; i++) {
        const uint8_t *desc = (const uint8_t *)&verdict->made[i];
        uint32_t before = verdict->before[i];
        __asan_unpoison_memory_region(verdict->place[i][0], before);
        memcpy(verdict->place[i][0], desc, before);
        if (before == ENTRY)
            continue;
        __asan_unpoison_memory_region(verdict->place[i][1], ENTRY - before);
        memcpy(verdict->place[i][1], desc + before, ENTRY - before);
    }
}

static void same_bytes(const struct verdict *verdict, const struct chain *chain)
{
    const struct span *span = chain->span, *end = span + chain->count;
    uint64_t size = 0;
    for (uint32_t i = 0; i < verdict->count; i++) {
        uint64_t gpa = verdict->buffer[i].addr, left = verdict->buffer[i].len;
        size += left;
        do {
            CHECK(span < end && span->gpa == gpa && span->size <= left);
            CHECK(span->host == host_of(gpa));
            for (uint64_t byte = 0; byte < span->size; byte++)
                CHECK(span->host + byte == host_of(gpa + byte));
            gpa += span->size;
            left -= span->size;
            CHECK(span++->size > 0 || left == 0);
        } while (left > 0);
    }
    CHECK(span == end);
    CHECK(chain->size == size);
}

static void play(void)
{
    struct verdict verdict = {0};
    struct chain chain = {.span = spans};
    struct taken taken = {0};
    uint32_t head = choose(SIZE_MAX_HERE + 2);
    head = head <= SIZE_MAX_HERE ? head : UINT16_MAX;
    verdict.fault = judge(&verdict, head);
    put(&verdict);
    ring.avail->ring[0] = (uint16_t)head;
    ring.last_avail = 0;
    ring.avail_seen = 1;
    ring.fault = FAULT_NONE;
    loads = 0;
    int got = split_pop(&ring, &chain, &taken, direction);
    SAME(runs, ring.fault, verdict.fault);
    SAME(runs, got, verdict.fault ? POP_BROKEN : POP_GOT);
    SAME(runs, ring.last_avail, verdict.fault ? 0 : 1);
    CHECK(loads <= ring.size + 1);
    if (verdict.fault)
        return;
    SAME(runs, taken.head, head);
    SAME(runs, taken.size, chain.size);
    same_bytes(&verdict, &chain);
}

int main(void)
{
    table.count = COUNT(REGION);
    for (uint32_t i = 0; i < COUNT(REGION); i++)
        table.region[i] = (struct region){
            .gpa = REGION[i].gpa, .size = REGION[i].size, .host = guarded(REGION[i].size)};
    ring.regions = &table;
    ring.desc = (struct vring_desc *)guarded(SIZE_MAX_HERE * ENTRY);
    ring.avail = (struct vring_avail *)guarded(8);
    for (uint32_t rest = 0; rest < 4; rest++) {
        ring.indirect = rest & 1;
        direction = rest & 2 ? DEVICE_WRITES : DEVICE_READS;
        for (ring.size = 1; ring.size <= SIZE_MAX_HERE; ring.size++) {
            do
                play();
            while (next_run());
        }
    }
    printf("%" PRIu64 " chains\n", runs);
    CHECK(runs > 1000000);
    return 0;
}
