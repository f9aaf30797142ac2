/* What puts a burst right that broke off because memory vanished (guard.h).
 *
 * Whose memory it was decides whose port closes; every other ring is put back to the last packet
 * that was both taken and pushed, and goes on. Nothing is lost or sent twice, for what a burst has
 * done is seen by nobody before it is published:
 *
 *   where it broke off                      the sender's ring       a receiver's ring
 *   looking ahead, walking, copying         not taken               not taken
 *   amid a direct group                     the group is not taken  the same
 *   pushing                                 only the ring's own memory is touched: its port closes
 *   after a receiver's push                 not taken               has it: `flooded` skips it
 *   publishing                              as published            the others are published next
 */
#ifndef VHOSTFAST_MEND_H
#define VHOSTFAST_MEND_H

#include "forward.h"
#include "guard.h"

/* What the port lost at an address of ours; FAULT_NONE: it is not the port's. */
static inline enum fault port_lost(const struct port *port, const uint8_t *address)
{
    if (log_holds(port->log, address))
        return FAULT_LOG;
    bool its = port->regions != NULL && region_table_holds(port->regions, address);
    return its ? FAULT_MEMORY : FAULT_NONE;
}

static inline struct port *fabric_owner(const struct fabric *fabric, const uint8_t *address)
{
    for (uint32_t i = 0; i < fabric->port_count; i++)
        if (port_lost(fabric->port[i], address) != FAULT_NONE)
            return fabric->port[i];
    return NULL;
}

static bool fabric_holds(const void *fabric, const uint8_t *address)
{
    return fabric_owner(fabric, address) != NULL;
}

/* Memory of one of the ports has vanished. `sent` is the transmit ring at hand, or NULL. */
static inline void burst_mend(struct burst *burst, struct ring *sent, const uint8_t *vanished)
{
    struct port *port = fabric_owner(burst->fabric, vanished);
    port_break(port, port_lost(port, vanished));
    if (burst->sending != NULL && ring_lost(burst->sending, vanished) != FAULT_NONE)
        burst->sending = NULL;
    if (sent != NULL)
        ring_settle(sent);
    struct ring *held = burst->held;
    if (held != NULL) {
        ring_settle(held);
        if (held->used_next != held->used_published && ring_lost(held, vanished) == FAULT_NONE)
            ring_touch(burst, held); /* it has packets: it was another's memory */
        ring_unlock(burst, held);
    }
}

struct injection {
    struct burst *burst;
    struct port *from;
    struct packet frame;
    uint32_t next; /* of the fabric's ports: those before have it */
};

static void inject_on(void *argument)
{
    struct injection *it = argument;
    const struct fabric *fabric = it->burst->fabric;
    for (; it->next < fabric->port_count; it->next++) {
        struct port *to = fabric->port[it->next];
        bool patched = fabric->policy == POLICY_LEARN || to == it->from->peer;
        if (to != it->from && patched && to->receiver_count > 0)
            count_loss(it->burst, it->from, to,
                       deliver(it->burst, to, 0, &it->frame, 16));
    }
    publish_touched(it->burst);
}

/* A frame of our own, as if `from` had sent it: to its peer, or to all other ports. */
static inline void inject(struct burst *burst, struct port *from, const uint8_t *frame,
                          uint32_t size)
{
    struct span span = {.host = (uint8_t *)frame, .size = size};
    struct injection it = {.burst = burst, .from = from};
    it.frame = (struct packet){.behind.span = &span, .size = size, .wire_size = size};
    struct guard guard = {.holds = fabric_holds, .owner = burst->fabric};
    accounts_forgive(&burst->accounts); /* the control plane has no slices */
    while (!guard_run(&guard, inject_on, &it))
        burst_mend(burst, NULL, guard.vanished);
}

#endif
