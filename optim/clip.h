/* Clipping by the global norm, as torch.nn.utils.clip_grad_norm_.
 *
 *     double norm; float scale;
 *     LK_TRY(lk_clip_norm(be, grads, n, 1.0, &norm, &scale, err));
 *     -- scale goes into the optimiser's step: gradients are never rewritten for it
 *
 * norm = sqrt(sum g^2) before clipping, summed in double in row order. scale = min(1, max_norm / (norm + 1e-6)); 1 when max_norm is 0
 * (off). A norm that is not finite is no error here: the caller sees it in *norm and stops the run. */
#ifndef LK_OPTIM_CLIP_H
#define LK_OPTIM_CLIP_H

#include "kernels/ops.h"

/* grads[n] F32 in backend memory. */
lk_status lk_clip_norm(lk_backend *be, const float *grads, int64_t n, double max_norm, double *norm, float *scale, lk_error *err);

#endif
