/* kernels/cuda/sdpa.h by plain fp32 loops, one document, head and query after another, results rounded to bf16 once. Backward adds up dk
 * and dv in fp32 over the queries in ascending order; what the heads of a group contribute is kept in bf16 in the workspace and added by
 * the module's own kernel, as the real layer does when a group does not fit.
 *
 * LK_EMU_NO_SDPA in the environment makes lk_sdpa_supports say no, so that the module's own kernels do the work. The workspace holds those
 * contributions. */
#include "kernels/cuda/sdpa.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include <new>
#include <vector>

#include "kernels/cuda/head_sums.h"
#include "kernels/tensor.h"
#include "tests/cuda_emu/capture.h"
#include "tests/cuda_emu/control.h"

struct lk_sdpa {
    int unused;
};

lk_status lk_sdpa_create(lk_sdpa **sdpa, const lk_rt_device *device, lk_error *err)
{
    (void)device;
    *sdpa = new (std::nothrow) lk_sdpa();
    return *sdpa ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "no memory for the attention layer");
}

void lk_sdpa_destroy(lk_sdpa *sdpa) { delete sdpa; }

bool lk_sdpa_supports(lk_sdpa *sdpa, const lk_sdpa_shape *shape)
{
    (void)sdpa;
    return shape->head_dim % 8 == 0 && shape->head_dim <= 256 && !getenv("LK_EMU_NO_SDPA");
}

size_t lk_sdpa_workspace_bytes(lk_sdpa *sdpa, const lk_sdpa_shape *shape, int64_t tokens, bool training)
{
    (void)sdpa;
    return training ? (size_t)(2 * tokens * shape->heads * shape->head_dim) * sizeof(uint16_t) : 0; /* dk and dv of every head */
}

/* ---- checks */

static lk_status check_rows(const char *name, const lk_sdpa_rows *x, int64_t tokens, int64_t width, lk_error *err)
{
    if (x->stride < width || x->stride % 8)
        return lk_fail(err, LK_ERR_ARGUMENT, "attention: row stride %lld of %s wants to be a multiple of 8, %lld or more",
                       (long long)x->stride, name, (long long)width);
    if ((uintptr_t)x->data % 16) return lk_fail(err, LK_ERR_ARGUMENT, "attention: %s at %p wants 16-byte alignment", name, x->data);
    if (!lk_emu_is_device_range(x->data, (size_t)((tokens - 1) * x->stride + width) * 2))
        return lk_fail(err, LK_ERR_INTERNAL, "attention: %s at %p is not inside memory of the device", name, x->data);
    return LK_OK;
}

static lk_status check_call(lk_sdpa *sdpa, const lk_sdpa_shape *s, const lk_sdpa_docs *docs, const void *workspace, size_t bytes,
                            bool training, lk_error *err)
{
    if (!lk_sdpa_supports(sdpa, s))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "attention of head size %lld is not supported: lk_sdpa_supports says so",
                       (long long)s->head_dim);
    if (s->kv_heads < 1 || s->heads % s->kv_heads)
        return lk_fail(err, LK_ERR_ARGUMENT, "attention: %lld heads over %lld key/value heads", (long long)s->heads,
                       (long long)s->kv_heads);
    int64_t longest = 0;
    for (int64_t i = 0; i < docs->n; i++) {
        int64_t length = docs->starts[i + 1] - docs->starts[i];
        if (length < 0) return lk_fail(err, LK_ERR_ARGUMENT, "attention: document %lld ends before it begins", (long long)i);
        if (length > longest) longest = length;
    }
    if (docs->n && (docs->starts[0] < 0 || docs->starts[docs->n] > docs->tokens))
        return lk_fail(err, LK_ERR_ARGUMENT, "attention: documents end at row %d of %lld", docs->starts[docs->n], (long long)docs->tokens);
    if (docs->longest < longest)
        return lk_fail(err, LK_ERR_ARGUMENT, "attention: a document has %lld tokens, said to be at most %lld", (long long)longest,
                       (long long)docs->longest);
    size_t need = lk_sdpa_workspace_bytes(sdpa, s, docs->tokens, training);
    if (bytes < need || (need && !lk_emu_is_device_range(workspace, need)))
        return lk_fail(err, LK_ERR_ARGUMENT, "attention: a workspace of %zu bytes at %p, %zu of device memory are wanted", bytes, workspace,
                       need);
    return LK_OK;
}

/* ---- the arithmetic */

static std::vector<float> read_rows(const lk_sdpa_rows *x, int64_t tokens, int64_t width)
{
    std::vector<float> out((size_t)(tokens * width));
    for (int64_t t = 0; t < tokens; t++) lk_to_f32(&out[(size_t)(t * width)], (const uint16_t *)x->data + t * x->stride, LK_BF16, width);
    return out;
}

/* Rows [begin, end) only: what belongs to no document keeps its bits. */
static void write_rows(const lk_sdpa_rows *x, const std::vector<float> &values, int64_t begin, int64_t end, int64_t width)
{
    for (int64_t t = begin; t < end; t++) lk_from_f32((uint16_t *)x->data + t * x->stride, LK_BF16, &values[(size_t)(t * width)], width);
}

static float dot(const float *a, const float *b, int64_t n)
{
    float sum = 0.0f;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* Rows [begin, end) of what each query head contributes to dk or dv, as bf16 at `work`, added up into `x`. */
static lk_status write_groups(const lk_sdpa_rows *x, uint16_t *work, const std::vector<float> &each, const lk_sdpa_shape *s, int64_t begin,
                              int64_t end, lk_rt_stream stream, lk_error *err)
{
    int64_t D = s->head_dim, group = s->heads / s->kv_heads, rows = end - begin;
    for (int64_t kv = 0; kv < s->kv_heads; kv++) {
        uint16_t *parts = work + kv * rows * group * D;
        for (int64_t r = 0; r < rows; r++)
            lk_from_f32(parts + r * group * D, LK_BF16, &each[(size_t)(((begin + r) * s->heads + kv * group) * D)], group * D);
        LK_TRY(lk_cuda_head_sums((uint16_t *)x->data + begin * x->stride + kv * D, x->stride, parts, rows, group, D, stream, err));
    }
    return LK_OK;
}

/* The first row that the query at `row` sees. */
static int64_t first_seen(const lk_sdpa_shape *s, int64_t begin, int64_t row)
{
    int64_t first = s->window > 0 ? row - s->window + 1 : begin;
    return first > begin ? first : begin;
}

lk_status lk_sdpa_forward(lk_sdpa *sdpa, const lk_sdpa_shape *s, const lk_sdpa_docs *docs, const lk_sdpa_forward_args *args,
                          void *workspace, size_t workspace_bytes, lk_rt_stream stream, lk_error *err)
{
    if (stream) lk_emu_catch_up(stream, stream->queued); /* at once, whatever streams do */
    LK_TRY(check_call(sdpa, s, docs, workspace, workspace_bytes, false, err));
    int64_t T = docs->tokens, D = s->head_dim, H = s->heads, width = H * D, kv_width = s->kv_heads * D;
    if (T == 0 || docs->n == 0) return LK_OK;
    LK_TRY(check_rows("q", &args->q, T, width, err));
    LK_TRY(check_rows("k", &args->k, T, kv_width, err));
    LK_TRY(check_rows("v", &args->v, T, kv_width, err));
    LK_TRY(check_rows("o", &args->o, T, width, err));
    std::vector<float> q = read_rows(&args->q, T, width), k = read_rows(&args->k, T, kv_width), v = read_rows(&args->v, T, kv_width);
    std::vector<float> o((size_t)(T * width)), scores((size_t)docs->longest);
    for (int64_t doc = 0; doc < docs->n; doc++)
        for (int64_t row = docs->starts[doc]; row < docs->starts[doc + 1]; row++)
            for (int64_t h = 0; h < H; h++) {
                int64_t first = first_seen(s, docs->starts[doc], row), kv = h / (H / s->kv_heads) * D;
                float most = -FLT_MAX, sum = 0.0f, *out = &o[(size_t)(row * width + h * D)];
                for (int64_t j = first; j <= row; j++) {
                    float x = s->scale * dot(&q[(size_t)(row * width + h * D)], &k[(size_t)(j * kv_width + kv)], D);
                    scores[(size_t)(j - first)] = x;
                    most = fmaxf(most, x);
                }
                for (int64_t j = first; j <= row; j++) {
                    float p = expf(scores[(size_t)(j - first)] - most);
                    sum += p;
                    for (int64_t d = 0; d < D; d++) out[d] += p * v[(size_t)(j * kv_width + kv + d)];
                }
                for (int64_t d = 0; d < D; d++) out[d] /= sum;
                if (args->lse) args->lse[row * H + h] = most + logf(sum);
            }
    write_rows(&args->o, o, docs->starts[0], docs->starts[docs->n], width);
    return LK_OK;
}

/* With p = softmax: dv += p do, ds = p (do.v - do.o) scale, dq += ds k, dk += ds q (FlashAttention, Dao et al. 2022, algorithm 4). */
lk_status lk_sdpa_backward(lk_sdpa *sdpa, const lk_sdpa_shape *s, const lk_sdpa_docs *docs, const lk_sdpa_backward_args *args,
                           void *workspace, size_t workspace_bytes, lk_rt_stream stream, lk_error *err)
{
    if (stream) lk_emu_catch_up(stream, stream->queued);
    LK_TRY(check_call(sdpa, s, docs, workspace, workspace_bytes, true, err));
    int64_t T = docs->tokens, D = s->head_dim, H = s->heads, width = H * D, kv_width = s->kv_heads * D;
    if (T == 0 || docs->n == 0) return LK_OK;
    const struct {
        const char *name;
        const lk_sdpa_rows *rows;
        int64_t width;
    } all[] = {{"q", &args->q, width},       {"k", &args->k, kv_width}, {"v", &args->v, kv_width},   {"o", &args->o, width},
               {"dout", &args->dout, width}, {"dq", &args->dq, width},  {"dk", &args->dk, kv_width}, {"dv", &args->dv, kv_width}};
    for (const auto &one : all) LK_TRY(check_rows(one.name, one.rows, T, one.width, err));
    std::vector<float> q = read_rows(&args->q, T, width), k = read_rows(&args->k, T, kv_width), v = read_rows(&args->v, T, kv_width);
    std::vector<float> o = read_rows(&args->o, T, width), dout = read_rows(&args->dout, T, width);
    std::vector<float> dq(q.size()), dk(q.size()), dv(q.size()); /* dk and dv of each query head */
    for (int64_t doc = 0; doc < docs->n; doc++)
        for (int64_t row = docs->starts[doc]; row < docs->starts[doc + 1]; row++)
            for (int64_t h = 0; h < H; h++) {
                size_t at = (size_t)(row * width + h * D);
                int64_t first = first_seen(s, docs->starts[doc], row), kv = h / (H / s->kv_heads) * D;
                float through = dot(&dout[at], &o[at], D);
                for (int64_t j = first; j <= row; j++) {
                    size_t key = (size_t)(j * kv_width + kv), mine = (size_t)(j * width + h * D);
                    float p = expf(s->scale * dot(&q[at], &k[key], D) - args->lse[row * H + h]);
                    float ds = p * (dot(&dout[at], &v[key], D) - through) * s->scale;
                    for (size_t d = 0; d < (size_t)D; d++) {
                        dv[mine + d] += p * dout[at + d];
                        dq[at + d] += ds * k[key + d];
                        dk[mine + d] += ds * q[at + d];
                    }
                }
            }
    write_rows(&args->dq, dq, docs->starts[0], docs->starts[docs->n], width);
    uint16_t *work = (uint16_t *)workspace;
    LK_TRY(write_groups(&args->dk, work, dk, s, docs->starts[0], docs->starts[docs->n], stream, err));
    return write_groups(&args->dv, work + T * width, dv, s, docs->starts[0], docs->starts[docs->n], stream, err);
}
