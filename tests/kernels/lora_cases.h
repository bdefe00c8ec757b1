/* Cases of LoRA over segments, for every backend: mixed ranks, segments without adapter, an adapter that skips the site, one segment split
 * in two, frozen ones; dropout; BF16 factors. */
#ifndef LK_TESTS_KERNELS_LORA_CASES_H
#define LK_TESTS_KERNELS_LORA_CASES_H

#include "kernels/ops.h"

enum { N_ADAPTERS = 5, N_SITES = 2, SITE = 1, N_SEGMENTS = 7 };

typedef struct lora_case {
    int64_t rows, n, k, gap;
    int32_t ranks[N_ADAPTERS];
    float dropout;
    lk_dtype type;
} lora_case;

static const lora_case lora_cases[] = {
    {1, 1, 1, 0, {1, 1, 0, 1, 1}, 0.0f, LK_F32},        {9, 17, 5, 1, {1, 3, 0, 8, 2}, 0.0f, LK_F32},
    {23, 64, 48, 0, {16, 8, 0, 4, 1}, 0.0f, LK_F32},    {37, 33, 130, 2, {16, 64, 0, 5, 2}, 0.25f, LK_F32},
    {70, 96, 64, 0, {33, 17, 0, 256, 8}, 0.1f, LK_F32}, {23, 65, 97, 0, {16, 7, 0, 32, 1}, 0.0f, LK_BF16},
};
enum { N_LORA_CASES = sizeof lora_cases / sizeof *lora_cases };

/* Base, 0, 1, 2 (rank 0 here), 1 again, 3 (without gradients), 4: lengths grow unevenly; the last takes the rest. */
static inline void lora_segments(lk_segment segments[N_SEGMENTS], int64_t rows)
{
    static const int32_t order[N_SEGMENTS] = {-1, 0, 1, 2, 1, 3, 4};
    int64_t row = 0;
    for (int s = 0; s < N_SEGMENTS; s++) {
        int64_t end = s == N_SEGMENTS - 1 ? rows : row + rows * (s % 3 + 1) / 14;
        segments[s] = (lk_segment){row, end, order[s]};
        row = end;
    }
}

#endif
