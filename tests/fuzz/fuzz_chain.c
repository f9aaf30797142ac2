/* Chains made of any addresses and lengths, and the cursors over them, byte by byte. */
#include "machine.h"

enum { BYTES_MAX = 0x3000 };

static struct span sent_span[SPAN_COUNT_MAX], room_span[SPAN_COUNT_MAX];
static uint8_t bytes[BYTES_MAX];

/* Any range, cut where regions meet; or none of it. */
static void chain_take(struct input *in, struct chain *chain, struct machine *it)
{
    uint32_t last_region = 0;
    chain_clear(chain);
    for (uint32_t i = take_below(in, 12); i > 0; i--) {
        uint64_t gpa = take_below(in, 4) ? take_below(in, LOW_SIZE + NEXT_SIZE) : take_edge(in);
        uint32_t size = take_below(in, 4) ? take_below(in, 300) : (uint32_t)take_edge(in);
        uint32_t count = chain->count;
        uint64_t before = chain->size, whole = 0;
        enum fault fault = chain_append(chain, &it->table, &last_region, gpa, size);
        if (fault != FAULT_NONE) {
            chain->count = count;
            chain->size = before;
            continue;
        }
        SAME(i, chain->size, before + size);
        for (uint32_t k = count; k < chain->count; k++) {
            const struct span *span = &chain->span[k];
            uint64_t reach;
            CHECK(span->host == guest_at(it, gpa + whole, &reach) && span->size <= reach);
            SAME(k, span->gpa, gpa + whole);
            whole += span->size;
        }
        SAME(i, whole, size);
    }
}

/* The byte of a chain so far from its start. */
static uint8_t *chain_at(const struct chain *chain, uint64_t at)
{
    const struct span *span = chain->span;
    while (at >= span->size)
        at -= span++->size;
    return span->host + at;
}

static void check_bytes(const struct chain *chain, uint32_t size, const uint8_t *wanted)
{
    for (uint32_t i = 0; i < size; i++)
        SAME(i, *chain_at(chain, i), wanted[i]);
}

/* Whether a chain names a byte twice: then what it holds in the end is not to be foretold. */
static bool overlaps(const struct chain *chain)
{
    for (uint32_t i = 0; i < chain->count; i++)
        for (uint32_t k = 0; k < i; k++)
            if (chain->span[i].host < chain->span[k].host + chain->span[k].size &&
                chain->span[k].host < chain->span[i].host + chain->span[i].size)
                return true;
    return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t width[] = {16, 32, 64};
    struct input in = {data, data + size};
    struct chain sent = {.span = sent_span}, room = {.span = room_span};
    machines_start(&in);
    chain_take(&in, &sent, &machine[0]);
    chain_take(&in, &room, &machine[1]);
    uint64_t limit = sent.size < room.size ? sent.size : room.size;
    uint32_t count = limit < BYTES_MAX ? (uint32_t)limit : BYTES_MAX;
    uint32_t own = take_below(&in, count + 1);
    struct cursor from = chain_start(&sent), to = chain_start(&room);
    struct marker marker = machine[1].rx.marker;
    for (uint32_t i = 0; i < sent.count; i++) { /* the last store of what lies under two stays */
        for (uint64_t k = 0; k < sent.span[i].size && k < BYTES_MAX; k++) {
            uint8_t value = (uint8_t)(7 * i + k + 1);
            guest_stores(sent.span[i].host + k, &value, 1);
        }
    }
    cursor_read(&from, bytes, own);
    check_bytes(&sent, own, bytes);
    cursor_write(&to, &marker, bytes, own);
    switch (width[take_below(&in, cpu_has(64) ? 3 : 1)]) {
    case 64:
        cursor_copy(&to, &marker, &from, count - own, 64);
        break;
    case 32:
        cursor_copy(&to, &marker, &from, count - own, 32);
        break;
    default:
        cursor_copy(&to, &marker, &from, count - own, 16);
    }
    log_flush(&marker, false);
    for (uint32_t i = 0; i < count; i++)
        bytes[i] = *chain_at(&sent, i);
    if (!overlaps(&room))
        check_bytes(&room, count, bytes);
    check_stores(&machine[0], NULL, true);
    check_stores(&machine[1], NULL, true);
    return 0;
}
