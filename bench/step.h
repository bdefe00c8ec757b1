/* A QLoRA training step on a random model, as train/ does one: accumulate over micro-batches of packed rows, clip, AdamW.
 *
 *     bench_step *s;
 *     LK_TRY(bench_step_create(&s, be, &(bench_step_options){.shape = "8b", .rows = 2, .length = 2048, .accumulate = 4, .kept_layers = 99},
 * err)); LK_TRY(bench_step_run(s, &loss, err)); ... bench_step_destroy(s);
 */
#ifndef LK_BENCH_STEP_H
#define LK_BENCH_STEP_H

#include "model/adapter.h"
#include "model/transformer.h"

typedef struct bench_step bench_step;

typedef struct bench_step_options {
    const char *shape; /* of bench/random_model.h */
    int64_t rows, length, accumulate;
    int32_t rank;        /* of the adapters, on every linear layer; 0: 16 */
    int64_t kept_layers; /* as lk_pass_options */
    bool offload;
} bench_step_options;

lk_status bench_step_create(bench_step **s, lk_backend *be, const bench_step_options *options, lk_error *err);
void bench_step_destroy(bench_step *s);                               /* NULL is fine */
lk_status bench_step_run(bench_step *s, double *loss, lk_error *err); /* returns when the device is done */

/* What it will take of the backend's memory, known before anything is created: lk_allocated_peak should say the same. */
lk_status bench_step_bytes(size_t *bytes, const lk_backend *be, const bench_step_options *options, lk_error *err);
/* Floating-point operations of the products of one step, without recomputing: forward and input gradients of the linear layers and the
 * head, attention. */
lk_status bench_step_flops(double *flops, const bench_step_options *options, lk_error *err);

#endif
