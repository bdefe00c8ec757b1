/* Everything a serving batch tells the device: ids, positions, wanted rows, where new keys and values go, sequences with their pages and
 * splits, tokens by adapter. Laid out once in lk_batch_begin, in one piece of pinned host memory, and sent by one asynchronous copy to
 * fixed device memory; the operations of the step read it there and copy nothing.
 *
 *     LK_TRY(lk_cuda_array(be, &device_ids, ids, n));       -- the batch's own array: nothing is sent; another one: staged
 *
 * Tables are as long as their class says (lk_cuda_bounds), with empty entries at the end: a grid is a bound, and blocks of empty entries
 * leave at once. Two batches of the same bounds have every table at the same address, so a recording of one step (step.c) repeats another
 * of the same bounds by sending its tables.
 *
 * Bytes of a step of decoding 32 tokens at 2k context, pages of 16: 0.5 KB of ids, positions, rows and slots, 0.5 of tiles, 1 of sequences,
 * 2 of splits, 16.4 of pages; and, only where the adapters are others than before, 48 bytes an adapter and layer (adapters.h).
 *
 * Three of the host's pieces take turns, so that two steps may wait on the device while a third is laid out. */
#ifndef LK_KERNELS_CUDA_TABLES_H
#define LK_KERNELS_CUDA_TABLES_H

#include "kernels/cuda/adapters.h"
#include "kernels/cuda/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LK_CUDA_TURNS = 3 };

/* In a table: 8 words. count 0: none. */
typedef struct lk_cuda_kv_sequence {
    int32_t begin, count, length;
    int32_t first_page;            /* in `pages` */
    int32_t first_split, n_splits; /* in `splits`; n_splits 0: a sequence of many rows */
    int32_t unused[2];
} lk_cuda_kv_sequence;

/* sequence -1: none. */
typedef struct lk_cuda_kv_split {
    int32_t sequence, split;
} lk_cuda_kv_split;

/* What kernels of attention get, by value; device memory. Counts are those of the tables, empty entries among them. */
typedef struct lk_cuda_kv_tables {
    int64_t first, next; /* sequences [first, next) of the batch */
    const lk_cuda_kv_sequence *sequences;
    const int32_t *pages;
    const lk_cuda_kv_split *splits; /* of sequences of few rows (kv.h) */
    const int32_t *many;            /* sequences of many rows; -1: none */
    int32_t n_sequences, n_splits, n_many;
    int32_t few_rows, many_rows; /* at least the most rows of one sequence of each kind */
} lk_cuda_kv_tables;

/* The class of a batch: what shapes its launches and its tables. No padding: compared as bytes. */
typedef struct lk_cuda_bounds {
    uint64_t ranks; /* of each site, in one number (adapters.h) */
    int64_t rows, wanted;
    int32_t n_sites, tiles;
    int32_t sequences, splits, many, few_rows, many_rows;
    int32_t arrays; /* which of the batch's arrays are there */
} lk_cuda_bounds;

typedef struct lk_cuda_tables {
    unsigned char *device;
    size_t room, entries_room; /* bytes of it; of the adapters' entries, which lie behind as much in each of the host's pieces */
    struct {
        unsigned char *host;
        lk_rt_event sent;
        bool used;
    } turns[LK_CUDA_TURNS];
    int turn;
    int64_t group; /* query heads on a key/value head, as far as is known */
    /* the batch at hand */
    const lk_batch *batch;  /* NULL: none; only told apart, it may be gone when operations come that are not handed it */
    const int32_t *host[3]; /* its ids, positions and rows */
    bool whole;             /* all of its sequences are in the tables */
    lk_cuda_bounds bounds;
    int32_t page_tokens;                   /* that slots and pages were made for; 0: neither is there */
    const int32_t *ids, *positions, *rows; /* device memory, as all that follows */
    const int32_t *slots;                  /* [rows] where a row's key and value go: page * page_tokens + place; -1: nowhere */
    const lk_cuda_tokens *tiles;           /* [bounds.tiles] */
    lk_cuda_kv_tables kv;
} lk_cuda_tables;

size_t lk_cuda_tables_bytes(const lk_limits *limits);
lk_status lk_cuda_tables_reserve(lk_backend *be, const lk_limits *limits); /* grows, never shrinks */
void lk_cuda_tables_unreserve(lk_backend *be);

/* n values of a host array on the device, good for the operations of this call: the batch's own, or a part of it, is there already. */
lk_status lk_cuda_array(lk_backend *be, const int32_t **device, const int32_t *host, int64_t n);

/* Makes the tables those of `batch` in this cache, sequences from `first` on; nothing is sent when they are. group 0: any. */
lk_status lk_cuda_tables_for(lk_backend *be, const lk_batch *batch, const lk_kv *kv, int64_t group, int64_t first);

#ifdef __cplusplus
}
#endif
#endif
