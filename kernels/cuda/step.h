/* Steps of decoding as CUDA graphs (lk_step_begin). A recording is found by the caller's key and the batch's bounds (tables.h): what these
 * two leave open, tables and memory say when it runs. So neither other adapters, nor longer sequences within their class, nor other pages,
 * nor fewer rows beside more padding ask for another. */
#ifndef LK_KERNELS_CUDA_STEP_H
#define LK_KERNELS_CUDA_STEP_H

#include "kernels/cuda/tables.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LK_CUDA_MOST_RECORDINGS = 64 };

typedef struct lk_cuda_recording {
    uint64_t key;
    lk_cuda_bounds bounds;
    lk_rt_graph graph;
    uint64_t used; /* when, in steps */
} lk_cuda_recording;

typedef struct lk_cuda_steps {
    bool off;
    bool recording; /* the stream captures a step */
    lk_cuda_recording now;
    lk_cuda_recording kept[LK_CUDA_MOST_RECORDINGS];
    int n;
    uint64_t steps;
} lk_cuda_steps;

lk_status lk_cuda_step_begin(lk_backend *be, uint64_t key, bool *queued);
lk_status lk_cuda_step_end(lk_backend *be);
/* Before memory that recordings name goes: scratch, tables, a cache. */
void lk_cuda_step_forget(lk_backend *be);

#ifdef __cplusplus
}
#endif
#endif
