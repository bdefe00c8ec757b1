/* The operations this module has. An empty entry is one it does not have (kernels/backend.h): paged attention, the key/value cache and
 * sampling belong to serving on a GPU. */
#include "kernels/cuda/cuda.h"

const lk_ops lk_cuda_ops = {
    .close = lk_cuda_close,
    .alloc = lk_cuda_alloc,
    .free = lk_cuda_free,
    .upload = lk_cuda_upload,
    .download = lk_cuda_download,
    .zero = lk_cuda_zero,
    .copy = lk_cuda_copy,
    .sync = lk_cuda_sync,
    .host_alloc = lk_cuda_host_alloc,
    .host_free = lk_cuda_host_free,
    .transfer_begin = lk_cuda_transfer_begin,
    .transfer_wait = lk_cuda_transfer_wait,
    .scratch_bytes = lk_cuda_scratch_bytes,
    .reserve = lk_cuda_reserve,
    .matrix_create = lk_cuda_matrix_create,
    .matrix_destroy = lk_cuda_matrix_destroy,
    .matrix_bytes = lk_cuda_matrix_bytes,
    .linear = lk_cuda_linear,
    .linear_backward = lk_cuda_linear_backward,
    .lora_forward = lk_cuda_lora_forward,
    .lora_backward = lk_cuda_lora_backward,
    .linear_loss = lk_cuda_linear_loss,
    .sum_squares = lk_cuda_sum_squares,
    .adamw = lk_cuda_adamw,
    .adamw8 = lk_cuda_adamw8,
};
