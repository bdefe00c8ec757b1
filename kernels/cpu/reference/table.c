#include "kernels/cpu/kv.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/reference/reference.h"

size_t lk_ref_scratch_bytes(const lk_backend *be, const lk_limits *limits)
{
    const size_t each[] = {lk_ref_linear_scratch(limits), lk_ref_lora_scratch(limits),   lk_ref_attention_scratch(limits),
                           lk_ref_loss_scratch(limits),   lk_ref_sample_scratch(limits), lk_cpu_gain_scratch(be, limits)};
    size_t most = 0;
    for (size_t i = 0; i < sizeof each / sizeof *each; i++)
        if (each[i] > most) most = each[i];
    return most;
}

const lk_ops lk_ref_ops = {
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
    .scratch_bytes = lk_ref_scratch_bytes,
    .reserve = lk_cpu_reserve,
    .matrix_create = lk_cpu_matrix_create,
    .matrix_destroy = lk_cpu_matrix_destroy,
    .matrix_bytes = lk_cpu_matrix_bytes,
    .matrix_data = lk_cpu_matrix_data,
    .matrix_lend = lk_cpu_matrix_lend,
    .matrix_set = lk_ref_matrix_set,
    .linear = lk_ref_linear,
    .linear_backward = lk_ref_linear_backward,
    .embed = lk_ref_embed,
    .lora_forward = lk_ref_lora_forward,
    .lora_backward = lk_ref_lora_backward,
    .drop = lk_ref_drop,
    .add_columns = lk_ref_add_columns,
    .weight_gradient = lk_ref_weight_gradient,
    .embed_backward = lk_ref_embed_backward,
    .rmsnorm = lk_ref_rmsnorm,
    .rmsnorm_backward = lk_ref_rmsnorm_backward,
    .rope_table = lk_ref_rope_table,
    .rope = lk_ref_rope,
    .glu = lk_ref_glu,
    .glu_backward = lk_ref_glu_backward,
    .add = lk_ref_add,
    .gain = lk_ref_gain,
    .gain_backward = lk_ref_gain_backward,
    .gain_norms = lk_cpu_gain_norms, /* these three are loops already */
    .embed_some = lk_cpu_embed_some,
    .clear = lk_cpu_clear,
    .scale = lk_ref_scale,
    .cap = lk_ref_cap,
    .gather_rows = lk_ref_gather_rows,
    .moe_route = lk_ref_moe_route,
    .moe_route_backward = lk_ref_moe_route_backward,
    .moe_combine = lk_ref_moe_combine,
    .moe_combine_backward = lk_ref_moe_combine_backward,
    .attention = lk_ref_attention,
    .attention_backward = lk_ref_attention_backward,
    .kv_page_bytes = lk_cpu_kv_page_bytes,
    .kv_create = lk_cpu_kv_create,
    .kv_destroy = lk_cpu_kv_destroy,
    .kv_write = lk_cpu_kv_write,
    .paged_attention = lk_ref_paged_attention,
    .linear_loss = lk_ref_linear_loss,
    .linear_loss_trained = lk_ref_linear_loss_trained,
    .sum_squares = lk_ref_sum_squares,
    .adamw = lk_ref_adamw,
    .adamw8 = lk_ref_adamw8,
    .sample = lk_ref_sample,
};
