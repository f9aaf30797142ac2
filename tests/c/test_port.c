/* Which receive ring a frame of the sender's queue i is for. */
#include "port.h"

#include "check.h"

int main(void)
{
    static struct ring ring[3];
    static struct port port = {.receiver = {&ring[0], &ring[1], &ring[2]}};
    CHECK(port_receiver(NULL, 0) == NULL);
    CHECK(port_receiver(&port, 0) == NULL); /* none runs */
    for (uint32_t count = 1; count <= COUNT(ring); count++) {
        port.receiver_count = count;
        for (uint32_t queue = 0; queue < PAIR_COUNT_MAX; queue++)
            SAME(queue, port_receiver(&port, queue) - ring, queue % count);
    }
    port.fault = FAULT_LOOP; /* it takes no more part */
    CHECK(port_receiver(&port, 0) == NULL);
    SAME(-1, sizeof(struct counters) % (2 * CACHE_LINE), 0); /* no line shared with a neighbour */
    return 0;
}
