/* One attention call as a graph of cuDNN's elementary operations, made into an execution plan.
 *
 *     lk_sdpa_spec spec = {.backward = false, .stats = true, .docs = 4, .longest = 2048, .heads = 32, .kv_heads = 8, .head_dim = 128, ...};
 *     LK_TRY(lk_sdpa_plan_create(&plan, dnn, &spec, err));           -- host only: needs no GPU
 *     LK_TRY(lk_sdpa_plan_run(plan, dnn, &pointers, workspace, err));
 *
 * cuDNN's engines recognise the shape of a graph: which operations stand in which order, which tensors are real. The shapes here are the
 * ones that NVIDIA's own front end builds (github.com/NVIDIA/cudnn-frontend, node/scaled_dot_product_flash_attention.h); a graph that says
 * the same in other operations has no engine. tests/cuda_native/test_sdpa_plans.c makes them for a described H200. */
#ifndef LK_KERNELS_CUDA_NATIVE_SDPA_GRAPH_H
#define LK_KERNELS_CUDA_NATIVE_SDPA_GRAPH_H

#include "kernels/cuda/native/cudnn_library.h"

/* The tensors of a call that live in memory. Those before LK_SDPA_LENGTHS are packed rows and have a ragged offset. */
enum {
    LK_SDPA_Q,
    LK_SDPA_K,
    LK_SDPA_V,
    LK_SDPA_O,
    LK_SDPA_STATS, /* log sum exp, [T,H] F32 */
    LK_SDPA_DOUT,
    LK_SDPA_DQ,
    LK_SDPA_DK,
    LK_SDPA_DV,
    LK_SDPA_SUM,                       /* sum of dout * o along a head, [T,H] F32, written and read by the backward */
    LK_SDPA_LENGTHS,                   /* from here on I32 [docs], the rows of each document */
    LK_SDPA_QUERIES = LK_SDPA_LENGTHS, /* as queries */
    LK_SDPA_KEYS,                      /* and as keys */
    LK_SDPA_TENSORS
};

/* What a plan is made for; everything cuDNN bakes into it. Compared as bytes: zero it first. */
typedef struct lk_sdpa_spec {
    int64_t docs, longest; /* documents of a call, and the rows of its longest one, at most */
    int64_t heads, kv_heads, head_dim;
    int64_t window;                  /* 0: none */
    int64_t stride[LK_SDPA_LENGTHS]; /* elements from one row to the next, by tensor; 0 where the direction has no such tensor */
    int64_t backward, stats;         /* flags */
} lk_sdpa_spec;

/* Device memory of a call. offsets[t][i] = starts[i] * stride[t], I32 [docs+1]. */
typedef struct lk_sdpa_pointers {
    void *tensor[LK_SDPA_LENGTHS];
    void *offsets[LK_SDPA_LENGTHS];
    void *lengths; /* I32 [docs] */
    float scale;
} lk_sdpa_pointers;

typedef struct lk_sdpa_plan lk_sdpa_plan;

/* LK_ERR_UNSUPPORTED with cuDNN's reason when no engine takes the graph. A backward plan is of the repeatable kind. */
lk_status lk_sdpa_plan_create(lk_sdpa_plan **plan, const lk_cudnn *dnn, const lk_sdpa_spec *spec, lk_error *err);
void lk_sdpa_plan_destroy(lk_sdpa_plan *plan, const lk_cudnn *dnn); /* NULL is fine */
size_t lk_sdpa_plan_workspace(const lk_sdpa_plan *plan);
int64_t lk_sdpa_plan_engine(const lk_sdpa_plan *plan); /* cuDNN's number of the engine, for reports */
/* The handle's stream must be the one of the call (cudnnSetStream). For a described device everything but the running. */
lk_status lk_sdpa_plan_run(const lk_sdpa_plan *plan, const lk_cudnn *dnn, const lk_sdpa_pointers *pointers, void *workspace, lk_error *err);

#endif
