/* The steps of the data path, one by one: see steps.h. */
#include "steps.h"

#include "guests.h"

/* The compiler can't know what memory holds after this, so no turn of a loop is left out. */
#define EACH_TIME() __asm__ volatile("" ::: "memory")

/* timed_NAME(level, count) from NAME(count, width), as burst_at has it from forward_burst. */
#if defined(__x86_64__)
#define AT_EACH_LEVEL(name)                                                                        \
    static uint64_t name##_baseline(uint32_t count) { return name(count, 16); }                    \
    __attribute__((target("avx2"))) static uint64_t name##_avx2(uint32_t count)                    \
    {                                                                                              \
        return name(count, 32);                                                                    \
    }                                                                                              \
    __attribute__((target("avx512f,avx512bw,avx512vl"))) static uint64_t name##_avx512(            \
        uint32_t count)                                                                            \
    {                                                                                              \
        return name(count, 64);                                                                    \
    }                                                                                              \
    uint64_t timed_##name(uint32_t level, uint32_t count)                                          \
    {                                                                                              \
        return level == LEVEL_AVX512 ? name##_avx512(count)                                        \
               : level == LEVEL_AVX2 ? name##_avx2(count)                                          \
                                     : name##_baseline(count);                                     \
    }
#else
#define AT_EACH_LEVEL(name)                                                                        \
    uint64_t timed_##name(uint32_t level, uint32_t count)                                          \
    {                                                                                              \
        (void)level;                                                                               \
        return name(count, 16);                                                                    \
    }
#endif

enum {
    TURN = 50,             /* steps between two looks at the index, as in a burst */
    PLACE_COUNT = 1 << 14, /* more than a branch predictor learns by heart */
    COPY_MAX = 64 << 10,   /* bytes */
    CHAIN_SPANS_MAX = 8,
    MARK_PAGES_MAX = 1 << 16, /* 256 MiB */
    ADDRESS_MAX = 1 << 17,
    REGION_SIZE = 1 << 20,
};

/* xorshift64*: the same numbers in each run. */
static uint64_t random_state;

static uint32_t random_below(uint32_t limit)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * UINT64_C(0x2545f4914f6cdd1d)) >> 32) % limit;
}

static void random_start(void) { random_state = UINT64_C(0x9e3779b97f4a7c15); }

static void random_bytes(uint8_t *at, uint32_t size)
{
    random_start();
    for (uint32_t i = 0; i < size; i++)
        at[i] = (uint8_t)random_below(256);
}

bool has_level(uint32_t level) { return burst_at((enum level)level) != NULL; }

uint64_t timed_null(uint32_t count)
{
    uint64_t done = 0;
    for (uint32_t i = 0; i < count; i++) {
        done++;
        EACH_TIME();
    }
    return done;
}

/* --- A ring's verbs, on a transmit ring that is full --- */

void prepare_ring(uint32_t layout, bool logged)
{
    const struct shape shape = {"a ring",        64, POLICY_PATCH, 2, (enum pool_layout)layout,
                                .logged = logged};
    guests_reset(&shape);
    memset(guests[0].log_word, 0, sizeof guests[0].log_word); /* the start's marks */
    sender_lean(&guests[0].sender, true);
}

uint64_t timed_pop(uint32_t count)
{
    struct ring *ring = &guests[0].sends.ring;
    struct taken taken;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (i % TURN == 0)
            split_rewind(ring, i == 0 ? 0 : TURN);
        chain_clear(&burst.sent);
        if (split_pop(ring, &burst.sent, &taken, DEVICE_READS) != POP_GOT)
            break;
        bytes += taken.size;
    }
    split_rewind(ring, (count - 1) % TURN + 1);
    return bytes;
}

uint64_t timed_push(uint32_t count)
{
    struct ring *ring = &guests[0].sends.ring;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        split_push(ring, i % RING_SIZE, i);
        EACH_TIME();
    }
    for (uint32_t i = 0; i < RING_SIZE; i++)
        sum += ring->used->ring[i].id + (uint64_t)ring->used->ring[i].len;
    return sum;
}

uint64_t timed_publish(uint32_t count)
{
    struct ring *ring = &guests[0].sends.ring;
    uint16_t before = ring->used->idx;
    for (uint32_t i = 0; i < count; i++) {
        split_push(ring, i % RING_SIZE, 0);
        split_publish(ring, false);
    }
    return (uint16_t)(ring->used->idx - before);
}

static uint64_t bits_in(const uint64_t *word, uint32_t count)
{
    uint64_t bits = 0;
    for (uint32_t i = 0; i < count; i++)
        bits += (uint64_t)__builtin_popcountll(word[i]);
    return bits;
}

uint64_t logged_pages(void) { return bits_in(guests[0].log_word, MEMORY_SIZE / PAGE / 64); }

/* --- Copies --- */

static struct {
    uint8_t from[COPY_MAX + CACHE_LINE], to[COPY_MAX + CACHE_LINE];
    uint32_t size;
} copying __attribute__((aligned(PAGE)));

void prepare_copy(uint32_t size)
{
    copying.size = size;
    random_bytes(copying.from, sizeof copying.from);
    memset(copying.to, 0, sizeof copying.to);
}

ALWAYS_INLINE uint64_t copy(uint32_t count, const uint32_t width)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < count; i++) {
        copy_bytes(copying.to, copying.from, copying.size, width);
        bytes += copying.size;
        EACH_TIME();
    }
    return bytes;
}

AT_EACH_LEVEL(copy)

/* All of it, and nothing behind it. */
uint64_t copied(void)
{
    static const uint8_t none[CACHE_LINE];
    return memcmp(copying.to, copying.from, copying.size) == 0 &&
           memcmp(copying.to + copying.size, none, CACHE_LINE) == 0;
}

static struct {
    struct chain from, to;
    struct span from_span[CHAIN_SPANS_MAX], to_span[CHAIN_SPANS_MAX];
    struct marker marker;
} chains;

static void cut(struct chain *chain, uint8_t *host, uint32_t span_count, uint32_t size)
{
    for (uint32_t i = 0; i < span_count; i++) {
        uint32_t begin = size * i / span_count, end = size * (i + 1) / span_count;
        chain->span[i] = (struct span){.host = host + begin, .gpa = begin, .size = end - begin};
    }
    chain->count = span_count;
    chain->size = size;
}

void prepare_chains(uint32_t from_spans, uint32_t to_spans, uint32_t size)
{
    prepare_copy(size);
    chains.from.span = chains.from_span;
    chains.to.span = chains.to_span;
    cut(&chains.from, copying.from, from_spans, size);
    cut(&chains.to, copying.to, to_spans, size);
}

ALWAYS_INLINE uint64_t chain(uint32_t count, const uint32_t width)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct cursor from = chain_start(&chains.from), to = chain_start(&chains.to);
        cursor_copy(&to, &chains.marker, &from, (uint32_t)chains.from.size, width);
        bytes += chains.from.size;
        EACH_TIME();
    }
    return bytes;
}

AT_EACH_LEVEL(chain)

/* --- Addresses to memory, and memory to the log --- */

static struct {
    struct region_table table;
    uint64_t gpa[PLACE_COUNT], host[PLACE_COUNT];
    uint32_t at; /* the next: a call goes on where the last one ended */
} translation;

/* Region i is at 2 i, the second half of each is a hole. Nothing is there: nobody looks. */
void prepare_regions(uint32_t count, bool scattered)
{
    random_start();
    translation.table.count = count;
    translation.at = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t gpa = 2 * (uint64_t)i * REGION_SIZE, host = (count - i) * (uint64_t)REGION_SIZE;
        translation.table.region[i] =
            (struct region){.gpa = gpa, .size = REGION_SIZE, .host = (uint8_t *)host};
    }
    region_table_index(&translation.table);
    for (uint32_t i = 0; i < PLACE_COUNT; i++) {
        const struct region *region =
            &translation.table.region[scattered ? random_below(count) : count / 2];
        uint32_t offset = random_below(REGION_SIZE);
        translation.gpa[i] = region->gpa + offset;
        translation.host[i] = (uintptr_t)region->host + offset;
    }
}

uint64_t timed_translate(uint32_t count)
{
    uint32_t last = 0;
    uint64_t right = 0, reach;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t place = translation.at++ % PLACE_COUNT;
        uint8_t *host = region_at(&translation.table, &last, translation.gpa[place], &reach);
        right += (uintptr_t)host == translation.host[place];
    }
    return right;
}

static struct {
    uint64_t word[MARK_PAGES_MAX / 64];
    struct log log;
    struct marker marker;
    uint64_t gpa[PLACE_COUNT];
} marking;

void prepare_marks(uint32_t page_count)
{
    random_start();
    memset(marking.word, 0, sizeof marking.word);
    marking.log = (struct log){.word = marking.word, .page_count = MARK_PAGES_MAX, .event_fd = -1};
    marking.marker = (struct marker){.log = &marking.log};
    for (uint32_t i = 0; i < PLACE_COUNT; i++) /* odd, so that no page comes twice */
        marking.gpa[i] = (uint64_t)(i * 40503U % page_count) * PAGE + random_below(PAGE - 64);
}

uint64_t timed_mark(uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        log_mark(&marking.marker, marking.gpa[i % PLACE_COUNT], 64);
        if (i % TURN == TURN - 1)
            log_flush(&marking.marker, false);
    }
    log_flush(&marking.marker, false);
    return count;
}

uint64_t marked_pages(void) { return bits_in(marking.word, MARK_PAGES_MAX / 64); }

/* --- Addresses to ports --- */

static struct {
    uint64_t mac[ADDRESS_MAX];
    uint32_t port[ADDRESS_MAX];
    uint32_t count;
    uint32_t at; /* the next, likewise */
} addresses;

uint64_t fdb_room(void) { return FDB_BUCKET_COUNT * FDB_BUCKET_SIZE; }

static void draw(uint32_t index)
{
    uint64_t high = random_below(1 << 24), low = random_below(1 << 16);
    addresses.mac[index] = 0x02 | low << 8 | high << 24;
    addresses.port[index] = random_below(PORT_COUNT_MAX);
    fdb_learn(&fabric.fdb, addresses.mac[index], addresses.port[index]);
}

ALWAYS_INLINE bool known(uint32_t index)
{
    return fdb_find(&fabric.fdb, addresses.mac[index]) == (int)addresses.port[index];
}

/* Random addresses, drawn anew where a full bucket has forgotten one, until it knows them all. The
 * caller asks for less than fdb_room. */
void prepare_addresses(uint32_t count)
{
    random_start();
    memset(&fabric, 0, sizeof fabric);
    addresses.count = count < ADDRESS_MAX ? count : ADDRESS_MAX;
    addresses.at = 0;
    for (uint32_t i = 0; i < addresses.count; i++)
        draw(i);
    for (uint32_t drawn = 1; drawn > 0;) {
        drawn = 0;
        for (uint32_t i = 0; i < addresses.count; i++) {
            if (!known(i)) {
                draw(i);
                drawn++;
            }
        }
    }
}

ALWAYS_INLINE uint32_t next_address(void)
{
    uint32_t at = addresses.at;
    addresses.at = at + 1 < addresses.count ? at + 1 : 0;
    return at;
}

uint64_t timed_find(uint32_t count)
{
    uint64_t right = 0;
    for (uint32_t i = 0; i < count; i++)
        right += known(next_address());
    return right;
}

uint64_t timed_learn(uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = next_address();
        fdb_learn(&fabric.fdb, addresses.mac[at], addresses.port[at]);
        EACH_TIME();
    }
    return count;
}

uint64_t known_addresses(void)
{
    uint64_t right = 0;
    for (uint32_t i = 0; i < addresses.count; i++)
        right += known(i);
    return right;
}

/* --- Whole bursts --- */

static burst_function forward;

const char *shape_name(uint32_t index) { return index < SHAPE_COUNT ? SHAPES[index].name : NULL; }

uint64_t shape_copies(uint32_t index)
{
    return SHAPES[index].full ? 0 : SHAPES[index].guest_count - 1;
}

bool shape_waits(uint32_t index)
{
    return SHAPES[index].full && SHAPES[index].policy == POLICY_PATCH;
}

void prepare_burst(uint32_t index, uint32_t level)
{
    forward = burst_at((enum level)level);
    guests_reset(&SHAPES[index]);
}

/* A function of its own in the machine code too, for callgrind to know it by its name. */
__attribute__((noipa)) static uint32_t timed_burst(void)
{
    uint32_t moved = forward(&burst, &source);
    EACH_TIME();
    return moved;
}

static uint64_t arrived(void)
{
    uint64_t packets = 0;
    for (uint32_t i = 1; i < guest_count; i++) {
        receiver_lean(&guests[i].receiver);
        packets += guests[i].receiver.packets;
    }
    return packets;
}

uint64_t run_burst(uint32_t count)
{
    uint64_t before = arrived(), after = before;
    for (uint32_t done = 0; done < count; done += OFFER) {
        sender_lean(&guests[0].sender, true);
        timed_burst();
        after = arrived();
    }
    return after - before;
}

uint64_t run_turns(uint32_t count)
{
    uint64_t moved = 0;
    for (uint32_t i = 0; i < count; i++)
        moved += timed_burst();
    return moved;
}

uint64_t wrong_frames(void)
{
    uint64_t wrong = 0;
    for (uint32_t i = 1; i < guest_count; i++) {
        struct receiver *receiver = &guests[i].receiver;
        lean_check_all(receiver);
        wrong += receiver->corrupt + (receiver->packets > 0 && receiver->verified == 0);
    }
    return wrong;
}
