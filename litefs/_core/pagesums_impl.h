/* The header of the sums file (ARCHITECTURE.md) and its sequence lock. */
#ifndef LITEFS_PAGESUMS_IMPL_H
#define LITEFS_PAGESUMS_IMPL_H

#include <stddef.h>
#include <sched.h>
#include <stdint.h>
#include <time.h>
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the sums file is little-endian and mapped as it is"
#endif

typedef struct {
    char magic[8];
    uint32_t page_size, page_count;
    uint64_t seq, txid, checksum;
    int64_t timestamp;
    uint64_t durable_txid, synced_txid;
    uint32_t clean, unused;
    int64_t file_size, file_mtime, file_ctime;
    uint32_t wal_salt1, wal_salt2, wal_frames, unused2;
    uint32_t damaged, unused3;
    uint64_t hash;
} sums_header;
_Static_assert(offsetof(sums_header, seq) == 16 && offsetof(sums_header, durable_txid) == 48
               && offsetof(sums_header, file_size) == 72 && offsetof(sums_header, wal_salt1) == 96
               && offsetof(sums_header, damaged) == 112
               && offsetof(sums_header, hash) == 120, "layout of the sums file");

/* The fields proper are relaxed atomics, so that a racing reader sees old or new words, never torn ones. */
#define sums_get(field) __atomic_load_n(&(field), __ATOMIC_RELAXED)
#define sums_set(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELAXED)

/* One odd value higher; also over an odd one that a killed writer left. */
static inline void sums_enter(sums_header *h)
{
    sums_set(h->seq, (sums_get(h->seq) + 1) | 1);
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

static inline void sums_leave(sums_header *h)
{
    __atomic_store_n(&h->seq, sums_get(h->seq) + 1, __ATOMIC_RELEASE);
}

static inline uint64_t sums_read_begin(sums_header *h)
{
    return __atomic_load_n(&h->seq, __ATOMIC_ACQUIRE);
}

static inline int sums_read_valid(sums_header *h, uint64_t seq)
{
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return !(seq & 1) && sums_get(h->seq) == seq;
}

static inline uint64_t sums_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

#endif
