/* Sampling on the device, as its two files know each other: sample.c packs what requests ask and keeps the ring of samplings under way,
 * sample.cu has the kernels.
 *
 * A sampling sends one block of words, runs a few launches and sends its results back; nothing waits until lk_sample_end. The words and the
 * results have pinned memory for each of the two samplings that may be under way; on the device one block serves both, in stream order. */
#ifndef LK_KERNELS_CUDA_SAMPLE_H
#define LK_KERNELS_CUDA_SAMPLE_H

#include "kernels/cuda/runtime.h"
#include "kernels/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LK_CUDA_SAMPLE_ROWS = 256 }; /* that the kernels take at a time: a larger sampling goes in groups */

/* What kernels know of a request. Its lists lie at `words`: the ids of bias, seen and banned behind one another, then the biases, then the
 * counts of seen. Where they change logits, the raw ones are kept from `saved` on, in the order of the ids and then the pending token's. */
typedef struct lk_cuda_sample_row {
    uint64_t counter;
    lk_philox_key key;
    float temperature, top_p, min_p;
    float repetition, presence, frequency;
    int32_t top_k; /* 0: off */
    int32_t n_logprobs, pending;
    int32_t n_bias, n_seen, n_banned;
    int32_t words, saved;
    int32_t changed; /* some logit is not the raw one: there are lists, or a pending token that is penalised */
    int32_t unused;
} lk_cuda_sample_row;

/* Rows of logits [first, first + n) and, in `words`, their requests and which of them need what. */
typedef struct lk_cuda_sample_group {
    const lk_tensor *logits;
    int32_t first, n;
    int32_t n_changed, n_reporting, n_sampled, n_cut; /* lists of these lie behind the requests, in this order */
    const int32_t *before;                            /* drawn by the sampling before, which `pending` names */
} lk_cuda_sample_group;

typedef struct lk_cuda_sampler {
    int32_t *words[2]; /* pinned */
    lk_sample_result *answers[2];
    lk_rt_event answered[2];
    int64_t rows[2], begun, ended; /* sampling number i has slot i % 2 */
    /* device memory, one block */
    void *memory;
    int32_t *sent;  /* the words, as they arrive */
    float *saved;   /* raw logits under changed ones */
    int32_t *kept;  /* what was drawn before, while groups of this sampling overwrite it */
    int32_t *drawn; /* [rows]: of the last sampling, 0 for a row that failed; never moves while limits stay */
    lk_sample_result *results;
    int64_t rows_room, words_room;
} lk_cuda_sampler;

size_t lk_cuda_sampler_bytes(const lk_limits *limits);
lk_status lk_cuda_sampler_reserve(lk_backend *be, const lk_limits *limits); /* grows, never shrinks */
void lk_cuda_sampler_unreserve(lk_backend *be);

/* Queues a group whose words are on their way (sample.cu). */
lk_status lk_cuda_sample_queue(lk_backend *be, const lk_cuda_sample_group *group);

#ifdef __cplusplus
}
#endif
#endif
