/* A model of a real shape with random NF4 weights, made directly in a backend's memory: no file of 40 GB is written or read, and what a
 * step costs does not depend on the weights.
 *
 *     lk_config config;
 *     LK_TRY(bench_config(&config, "8b", err));
 *     LK_TRY(bench_random_model(&model, be, &config, err)); ... lk_model_close(model);
 *
 * bench/shape.h makes folders instead, for peers that read them. */
#ifndef LK_BENCH_RANDOM_MODEL_H
#define LK_BENCH_RANDOM_MODEL_H

#include "model/model.h"

/* "tiny", "1b", "8b" (Llama-3.1-8B), "70b" (Llama-3.1-70B). */
lk_status bench_config(lk_config *config, const char *shape, lk_error *err);
/* Layers of one shape hold the same numbers; linear layers double-quantised NF4, embedding and head bf16. */
lk_status bench_random_model(lk_model **model, lk_backend *be, const lk_config *config, lk_error *err);
/* What it takes on this backend. */
size_t bench_random_model_bytes(const lk_backend *be, const lk_config *config);

/* Equal matrices of random weights with a standard deviation near 0.02 into w[copies]: type LK_NF4 (double-quantised) or LK_BF16. The
 * caller destroys them, after a failure those that are not NULL. */
lk_status bench_random_matrices(lk_matrix **w, int64_t copies, lk_backend *be, lk_dtype type, int64_t n, int64_t k, lk_error *err);

#endif
