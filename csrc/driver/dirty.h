/* What a hypervisor does with the migration log: a word that has marks is exchanged with zero, and
 * its pages are copied afterwards. Pairs with log_flush.
 */
#ifndef VHOSTFAST_DIRTY_H
#define VHOSTFAST_DIRTY_H

#include <stddef.h>

#include "sync.h"

static inline void dirty_take(uint64_t *word, uint64_t *taken, size_t count)
{
    for (size_t i = 0; i < count; i++)
        taken[i] = load_once_u64(&word[i]) ? exchange_acquire_u64(&word[i], 0) : 0; /* E */
}

#endif
