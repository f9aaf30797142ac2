/* Memory order: the only file that names one.
 *
 * Guest memory is shared with another CPU that may write to it at any moment. Each word of it is
 * loaded through this file, once, into a local. Pairs are named by a letter at both ends; the other
 * end of A to D is in the guest's driver (virtio 2.7.13, 2.7.14; ours is driver/vring.h):
 *   A  driver's release of avail.idx   -> our acquire: its descriptors are complete
 *   B  our release of used.idx         -> driver's acquire: the bytes are complete
 *   C  used.idx, full fence, our look at used_event     | used_event, full fence, driver's look at
 *      used.idx: a call is not lost
 *   D  avail_event, full fence, our look at avail.idx   | avail.idx, full fence, driver's look at
 *      avail_event: a kick is not lost
 *   E  bytes, full fence, log bit   -> front-end's exchange of the word, then its copy of the page
 */
#ifndef VHOSTFAST_SYNC_H
#define VHOSTFAST_SYNC_H

#include "spec.h"

typedef uint64_t u64_any __attribute__((aligned(1), may_alias));
typedef uint32_t u32_any __attribute__((aligned(1), may_alias));

ALWAYS_INLINE uint8_t load_once_u8(const uint8_t *at)
{
    return __atomic_load_n(at, __ATOMIC_RELAXED);
}
ALWAYS_INLINE uint16_t load_once_u16(const uint16_t *at)
{
    return __atomic_load_n(at, __ATOMIC_RELAXED);
}
ALWAYS_INLINE uint32_t load_once_u32(const uint32_t *at)
{
    return __atomic_load_n(at, __ATOMIC_RELAXED);
}
ALWAYS_INLINE uint64_t load_once_u64(const uint64_t *at)
{
    return __atomic_load_n(at, __ATOMIC_RELAXED);
}
ALWAYS_INLINE uint16_t load_acquire_u16(const uint16_t *at)
{
    return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}
ALWAYS_INLINE uint32_t load_acquire_u32(const uint32_t *at)
{
    return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

ALWAYS_INLINE void store_once_u8(uint8_t *at, uint8_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELAXED);
}
ALWAYS_INLINE void store_once_u16(uint16_t *at, uint16_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELAXED);
}
ALWAYS_INLINE void store_once_u32(uint32_t *at, uint32_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELAXED);
}
ALWAYS_INLINE void store_once_u64(uint64_t *at, uint64_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELAXED);
}
ALWAYS_INLINE void store_release_u16(uint16_t *at, uint16_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELEASE);
}
ALWAYS_INLINE void store_release_u32(uint32_t *at, uint32_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELEASE);
}

ALWAYS_INLINE uint32_t exchange_acquire_u32(uint32_t *at, uint32_t value)
{
    return __atomic_exchange_n(at, value, __ATOMIC_ACQUIRE);
}
ALWAYS_INLINE uint64_t exchange_acquire_u64(uint64_t *at, uint64_t value)
{
    return __atomic_exchange_n(at, value, __ATOMIC_ACQUIRE);
}

ALWAYS_INLINE void or_u64(uint64_t *at, uint64_t bits)
{
    __atomic_fetch_or(at, bits, __ATOMIC_RELAXED);
}
ALWAYS_INLINE void fence_full(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
/* Order for a signal handler of this thread: no instruction. */
ALWAYS_INLINE void fence_signal(void) { __atomic_signal_fence(__ATOMIC_SEQ_CST); }

/* A descriptor, each half loaded once. An indirect table may stand at any address. */
ALWAYS_INLINE struct vring_desc load_once_desc(const struct vring_desc *at)
{
    const volatile u64_any *half = (const volatile u64_any *)at;
    uint64_t low = half[0], high = half[1];
    struct vring_desc desc = {
        .addr = low,
        .len = (uint32_t)high,
        .flags = (uint16_t)(high >> 32),
        .next = (uint16_t)(high >> 48),
    };
    return desc;
}

ALWAYS_INLINE void store_once_used(struct vring_used_element *at, uint32_t id, uint32_t len)
{
    *(volatile u64_any *)at = id | (uint64_t)len << 32;
}

ALWAYS_INLINE void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* A clock that costs nothing: TSC cycles, or the generic timer's ticks. Ordered with nothing. */
ALWAYS_INLINE uint64_t cycle_count(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t ticks;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks;
#else
#error "a port to this architecture needs a cycle counter"
#endif
}

#endif
