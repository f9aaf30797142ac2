/* What the workers share: ports, their receive rings, counters, and the forwarding policy.
 *
 * Everything here but counters and faults is laid out by the control plane while the workers pause.
 */
#ifndef VHOSTFAST_PORT_H
#define VHOSTFAST_PORT_H

#include "fdb.h"
#include "ring.h"

enum policy { POLICY_LEARN, POLICY_PATCH, POLICY_LOOPBACK, POLICY_DROP };

/* Named from the port's side: rx was received from the guest, tx sent to it. */
enum counter {
    RX_PACKETS,
    RX_BYTES,
    RX_DROPPED_MALFORMED,   /* no lawful frame, or a header that is not negotiated or not true */
    RX_DROPPED_NO_RECEIVER, /* nobody is there to take it */
    RX_FILTERED,            /* learn: for an address on the port that it came from */
    TX_PACKETS,
    TX_BYTES,
    TX_DROPPED_FULL,    /* learn, loopback: the guest had no buffers */
    TX_DROPPED_TOO_BIG, /* no buffer of the guest can hold it */
    TX_DROPPED_COSTLY,  /* learn: its buffers have so many pieces that it takes others' time */
    COUNTER_COUNT,
};

struct counters {
    uint64_t value[COUNTER_COUNT] __attribute__((aligned(2 * CACHE_LINE)));
};

struct port {
    uint32_t index;
    uint32_t receiver_count;
    struct ring *receiver[PAIR_COUNT_MAX]; /* receive rings that run, in order */
    struct port *peer;                     /* patch: where everything goes */
    const struct region_table *regions;    /* guest memory of its rings; NULL: none runs */
    struct log *log;                       /* of its rings, if there is one */
    uint32_t fault; /* enum fault; written by a worker, which then tells event_fd */
    int event_fd;
};

struct fabric {
    enum policy policy;
    uint32_t port_count;
    struct port *port[PORT_COUNT_MAX];     /* those that are there */
    struct port *by_index[PORT_COUNT_MAX]; /* NULL where none is */
    bool tells_logs;                       /* a port's log has an eventfd */
    struct fdb fdb;
};

/* A transmit ring that a worker polls. */
struct source {
    const uint16_t *avail_idx; /* of the ring, here so that a look at one that is idle is short, */
    uint16_t taken;            /* its last_avail when its turn had ended, */
    uint16_t awake;            /* and looks in vain that are left until it is asleep: worker.h */
    struct ring *ring;
    struct port *port;
    uint32_t queue;         /* its pair; frames stay on it where the receiver has it too */
    struct ring *waits_for; /* patch: the receive ring that was full */
    uint16_t full_at;       /* its avail.idx then */
    uint16_t flooded_frame; /* learn: the chain that goes to all, by the ring's last_avail, */
    uint32_t flooded;       /* and which of the fabric's ports is served now */
};

/* Another worker may break it at any moment. */
ALWAYS_INLINE enum fault port_fault(const struct port *port)
{
    return (enum fault)load_once_u32(&port->fault);
}

/* Queue i of the sender meets queue i of the receiver, or shares one of those that it has. */
ALWAYS_INLINE struct ring *port_receiver(const struct port *port, uint32_t queue)
{
    if (port == NULL || port->receiver_count == 0 || port_fault(port) != FAULT_NONE)
        return NULL;
    if (queue >= port->receiver_count)
        queue %= port->receiver_count;
    return port->receiver[queue];
}

#endif
