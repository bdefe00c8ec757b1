/* The cases of attention within documents, for every backend: one query, primes, one past a tile, several documents with empty ones,
 * groups of query heads on one key head, windows, padded and odd head sizes, rows with gaps between them. */
#ifndef LK_TESTS_KERNELS_ATTENTION_CASES_H
#define LK_TESTS_KERNELS_ATTENTION_CASES_H

#include "tests/kernels/ops_check.h"

typedef struct attention_case {
    int32_t starts[8]; /* of documents, ended by the number of rows */
    int64_t docs, heads, kv_heads, head_dim, window, gap;
    float spread; /* of q: large values make a sharp softmax */
    float cap;    /* of the scores, 0: none */
} attention_case;

static const attention_case attention_cases[] = {
    {{0, 0}, 1, 2, 1, 8, 0, 0, 1.0f},
    {{0, 1}, 1, 1, 1, 1, 0, 0, 1.0f},
    {{0, 1, 3, 8}, 3, 2, 2, 6, 0, 1, 1.0f},
    {{0, 5, 5, 18}, 3, 4, 2, 16, 0, 0, 1.0f},
    {{0, 13}, 1, 6, 2, 32, 4, 0, 3.0f},
    {{0, 17, 50}, 2, 4, 1, 64, 0, 0, 1.0f},
    {{0, 65}, 1, 2, 2, 33, 0, 3, 1.0f},
    {{0, 31, 97}, 2, 3, 1, 48, 20, 0, 4.0f},
    {{0, 129}, 1, 4, 4, 64, 1, 0, 1.0f},
    {{0, 130, 131, 197}, 3, 4, 2, 128, 0, 0, 1.0f},
    {{0, 257}, 1, 2, 1, 80, 100, 0, 2.0f},
    {{0, 3, 75, 140}, 3, 2, 1, 256, 0, 0, 1.0f},
    {{0, 100}, 1, 1, 1, 192, 33, 8, 2.0f},
    {{0, 1, 2, 2, 200}, 4, 3, 1, 24, 130, 8, 1.0f},
    {{0, 64, 192}, 2, 8, 2, 96, 0, 0, 1.0f},
    {{0, 3, 12}, 2, 2, 1, 16, 0, 0, 4.0f, 2.0f},
    {{0, 70, 140}, 2, 4, 2, 40, 33, 8, 8.0f, 5.0f},
};
enum { N_ATTENTION_CASES = sizeof attention_cases / sizeof *attention_cases };

static inline int64_t n_rows(const attention_case *c) { return c->starts[c->docs]; }

static inline void inputs(const attention_case *c, float *in[4])
{
    int64_t wide = c->heads * c->head_dim, narrow = c->kv_heads * c->head_dim;
    in[0] = random_floats(1, n_rows(c) * wide, c->spread);
    in[1] = random_floats(2, n_rows(c) * narrow, 1.0f);
    in[2] = random_floats(3, n_rows(c) * narrow, 1.0f);
    in[3] = random_floats(4, n_rows(c) * wide, 1.0f); /* dout */
}

#endif
