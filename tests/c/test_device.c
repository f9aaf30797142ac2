/* A device's steps on a ring: each ends where memory has vanished, says what, and is the last. */
#include "device.h"

#include "guest.h"
#include "vanish.h"

enum { SIZE = 8, FRAME = 60, RINGS = 3, BUFFERS = 2, PAGES = RINGS + BUFFERS, LOG_PAGES = 64 };

static struct guest guest;
static struct vanishing memory, log_memory;
static struct log record;
static struct hands hands;

static void start(bool logged)
{
    if (memory.host != NULL) {
        vanishing_give(&memory);
        vanishing_give(&log_memory);
    }
    vanishing_take(&memory, PAGES);
    vanishing_take(&log_memory, 1);
    guest = (struct guest){0};
    guest_ring(&guest, SIZE, 65530, true);
    guest.table.count = 1;
    guest.table.region[0] = (struct region){.size = PAGES * PAGE, .host = memory.host};
    struct ring *ring = &guest.ring;
    ring->desc = (struct vring_desc *)memory.host;
    ring->avail = (struct vring_avail *)(memory.host + PAGE);
    ring->used = (struct vring_used *)(memory.host + 2 * PAGE);
    ring->used->idx = ring->avail->idx = 65530;
    record = (struct log){.word = (uint64_t *)log_memory.host,
                          .page_count = LOG_PAGES,
                          .event_fd = -1};
    ring->marker.log = logged ? &record : NULL;
    ring->marks_used = logged;
    ring->used_log = 2 * PAGE;
    hands.ring = ring;
    burst_init(&hands.burst, NULL);
    CHECK(ring_start(ring));
}

static void offer(uint16_t write, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        guest_desc(&guest, i, RINGS * PAGE, NET_HEADER_SIZE + FRAME, write, 0);
        guest_offer(&guest, (uint16_t)i);
    }
    guest_publish(&guest);
}

static void test_packets_both_ways(void)
{
    uint8_t frame[FRAME];
    start(true);
    offer(0, 2);
    random_bytes(memory.host + RINGS * PAGE + NET_HEADER_SIZE, FRAME);
    CHECK(ring_ask(&guest.ring, true));
    CHECK(hands_receive(&hands) && hands.size == FRAME);
    CHECK(memcmp(hands.burst.copy, memory.host + RINGS * PAGE + NET_HEADER_SIZE, FRAME) == 0);
    *(memory.host + RINGS * PAGE) = 1; /* an offload that nobody negotiated */
    CHECK(hands_receive(&hands) && hands.size == 0);
    CHECK(!hands_receive(&hands) && ring_finish(&guest.ring));
    CHECK(!ring_ask(&guest.ring, true));
    SAME(-1, (uint16_t)(guest.ring.used->idx - 65530), 2);
    start(true);
    offer(VRING_DESC_WRITE, 1);
    random_bytes(frame, FRAME);
    SAME(-1, hands_send(&hands, frame, FRAME), DELIVERED);
    SAME(-1, hands_send(&hands, frame, FRAME), FULL);
    CHECK(ring_finish(&guest.ring));
    CHECK(memcmp(frame, memory.host + RINGS * PAGE + NET_HEADER_SIZE, FRAME) == 0);
    CHECK(log_has(&record, RINGS) && log_has(&record, 2) && !log_has(&record, 1));
    SAME(-1, guest.ring.fault, FAULT_NONE);
}

static void test_what_vanishes_is_named(void)
{
    static const struct {
        size_t page; /* PAGES: the log's */
        bool send, starts;
    } row[] = {
        {0, true, true},   {0, false, true}, {1, true, true},     {1, false, true},
        {2, false, false}, {3, true, true},  {PAGES, true, false},
    };
    uint8_t frame[FRAME] = {0};
    for (size_t i = 0; i < COUNT(row); i++) {
        struct ring *ring = &guest.ring;
        uint32_t wanted = row[i].page == PAGES ? FAULT_LOG : FAULT_MEMORY;
        start(true);
        offer(row[i].send ? VRING_DESC_WRITE : 0, 1);
        vanish(row[i].page == PAGES ? &log_memory : &memory, row[i].page % PAGES);
        if (row[i].send)
            CHECK(hands_send(&hands, frame, FRAME) != DELIVERED || !ring_finish(ring));
        else
            CHECK(!hands_receive(&hands));
        SAME(i, ring->fault, wanted);
        CHECK(ring_ask(ring, true) && ring_ask(ring, false)); /* there is something to look at */
        CHECK(!ring_finish(ring) && !hands_receive(&hands));
        SAME(-1, hands_send(&hands, frame, FRAME), NO_RECEIVER);
        SAME(i, ring_start(ring), row[i].starts);
        SAME(i, ring->fault, row[i].starts ? FAULT_NONE : wanted);
    }
}

int main(void)
{
    guard_install();
    test_packets_both_ways();
    test_what_vanishes_is_named();
    return 0;
}
