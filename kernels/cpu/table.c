/* The table of the tiers portable and up. */
#include "kernels/cpu/kv.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/ops.h"

static size_t scratch_bytes(const lk_backend *be, const lk_limits *limits)
{
    const size_t each[] = {lk_cpu_linear_scratch(be, limits), lk_cpu_loss_scratch(be, limits),
                           lk_cpu_lora_scratch(be, limits),   lk_cpu_attention_scratch(be, limits),
                           lk_cpu_paged_scratch(be, limits),  lk_cpu_sample_scratch(be, limits),
                           lk_cpu_gain_scratch(be, limits),   lk_cpu_weight_gradient_scratch(be, limits)};
    size_t most = 0;
    for (size_t i = 0; i < sizeof each / sizeof *each; i++)
        if (each[i] > most) most = each[i];
    return most;
}

const lk_ops lk_cpu_ops = {
    .close = lk_cpu_close,
    .loader_open = lk_cpu_loader_open,
    .alloc = lk_cpu_alloc,
    .free = lk_cpu_free,
    .upload = lk_cpu_upload,
    .download = lk_cpu_download,
    .zero = lk_cpu_zero,
    .copy = lk_cpu_copy,
    .sync = lk_cpu_sync,
    .host_alloc = lk_cpu_host_alloc,
    .host_free = lk_cpu_host_free,
    .transfer_begin = lk_cpu_transfer_begin,
    .transfer_wait = lk_cpu_transfer_wait,
    .all_reduce = lk_cpu_all_reduce,
    .scratch_bytes = scratch_bytes,
    .reserve = lk_cpu_reserve,
    .matrix_create = lk_cpu_matrix_create,
    .matrix_destroy = lk_cpu_matrix_destroy,
    .matrix_bytes = lk_cpu_matrix_bytes,
    .matrix_data = lk_cpu_matrix_data,
    .matrix_lend = lk_cpu_matrix_lend,
    .matrix_set = lk_cpu_matrix_set,
    .linear = lk_cpu_linear,
    .linear_backward = lk_cpu_linear_backward,
    .embed = lk_cpu_embed,
    .lora_forward = lk_cpu_lora_forward,
    .lora_backward = lk_cpu_lora_backward,
    .drop = lk_cpu_drop,
    .add_columns = lk_cpu_add_columns,
    .weight_gradient = lk_cpu_weight_gradient,
    .embed_backward = lk_cpu_embed_backward,
    .rmsnorm = lk_cpu_rmsnorm,
    .rmsnorm_backward = lk_cpu_rmsnorm_backward,
    .rope_table = lk_cpu_rope_table,
    .rope = lk_cpu_rope,
    .glu = lk_cpu_glu,
    .glu_backward = lk_cpu_glu_backward,
    .add = lk_cpu_add,
    .gain = lk_cpu_gain,
    .gain_backward = lk_cpu_gain_backward,
    .gain_norms = lk_cpu_gain_norms,
    .embed_some = lk_cpu_embed_some,
    .clear = lk_cpu_clear,
    .scale = lk_cpu_scale,
    .cap = lk_cpu_cap,
    .gather_rows = lk_cpu_gather_rows,
    .moe_route = lk_cpu_moe_route,
    .moe_route_backward = lk_cpu_moe_route_backward,
    .moe_combine = lk_cpu_moe_combine,
    .moe_combine_backward = lk_cpu_moe_combine_backward,
    .attention = lk_cpu_attention,
    .attention_backward = lk_cpu_attention_backward,
    .kv_page_bytes = lk_cpu_kv_page_bytes,
    .kv_create = lk_cpu_kv_create,
    .kv_destroy = lk_cpu_kv_destroy,
    .kv_write = lk_cpu_kv_write,
    .paged_attention = lk_cpu_paged_attention,
    .linear_loss = lk_cpu_linear_loss,
    .linear_loss_trained = lk_cpu_linear_loss_trained,
    .sum_squares = lk_cpu_sum_squares,
    .adamw = lk_cpu_adamw,
    .adamw8 = lk_cpu_adamw8,
    .sample = lk_cpu_sample,
};
