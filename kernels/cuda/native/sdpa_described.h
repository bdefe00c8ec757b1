/* Attention plans for a GPU that is not here.
 *
 *     lk_sdpa *sdpa;
 *     LK_TRY(lk_sdpa_create_described(&sdpa, json, err));
 *     LK_TRY(lk_sdpa_backward(sdpa, ...));        -- splits, makes and checks every plan as on a GPU, runs nothing, touches no pointer
 *     lk_sdpa_report r = lk_sdpa_reported(sdpa);
 */
#ifndef LK_KERNELS_CUDA_NATIVE_SDPA_DESCRIBED_H
#define LK_KERNELS_CUDA_NATIVE_SDPA_DESCRIBED_H

#include "kernels/cuda/sdpa.h"

typedef struct lk_sdpa_report {
    int64_t plans_made, runs;                                 /* since creation */
    size_t largest_workspace;                                 /* of cuDNN's own, of any plan run */
    int64_t last_docs, last_longest, last_heads, last_engine; /* of the last plan run */
} lk_sdpa_report;

/* `device_json` in cuDNN's words (CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION); a compute capability of 9.0 is taken for granted. */
lk_status lk_sdpa_create_described(lk_sdpa **sdpa, const char *device_json, lk_error *err);
lk_sdpa_report lk_sdpa_reported(const lk_sdpa *sdpa);
/* The most that cuDNN wants for a backward over so many documents and heads at once, by arithmetic: exact but for 512 bytes a document and
 * 4 KiB. No plan is run that wants more than is there. */
size_t lk_sdpa_backward_bytes(int64_t docs, int64_t longest, int64_t heads, int64_t kv_heads, int64_t head_dim);

#endif
