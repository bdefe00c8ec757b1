/* Singular value decomposition of products of thin matrices. Internal to model/. */
#ifndef LK_MODEL_LOW_RANK_H
#define LK_MODEL_LOW_RANK_H

#include <stdint.h>

#include "base/status.h"

/* The best approximation of rank `rank` of b[N,R] a[R,K] as out_b[N,rank] out_a[rank,K]: rows of out_a orthonormal, columns of out_b the
 * singular values times the left vectors, by falling value. In double inside, one thread, a fixed order: the same bits everywhere. */
lk_status lk_low_rank(float *out_a, float *out_b, int32_t rank, const float *a, const float *b, int64_t n, int64_t k, int32_t r,
                      lk_error *err);

#endif
