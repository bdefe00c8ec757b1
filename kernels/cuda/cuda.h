/* The CUDA backend from inside: what its operations share. One operation a file, NAME.cu, holding its kernels and its table entry
 * side by side; table.c lists them.
 *
 *     lk_status lk_cuda_add(lk_backend *be, const lk_tensor *y, const lk_tensor *x)
 *     {
 *         lk_cuda *cu = lk_cuda_of(be);
 *         LK_LAUNCH("add", add_kernel, dim3(blocks), dim3(256), 0, cu->stream, ...);
 *         return lk_rt_launched("add", &be->error);
 *     }
 *
 * Activations are BF16, sums are fp32. Everything is queued on one stream and operations return before it is done; a failure inside a
 * kernel shows at the next lk_sync or lk_download.
 *
 * Scratch: one block, which each operation has to itself until it returns (what it queues runs before what comes later). An operation that
 * wants some states how much in an entry of lk_cuda_scratch_needs (scratch.c) and takes it by lk_cuda_scratch.
 *
 * What a serving batch brings along is on the device since lk_batch_begin (tables.h); other host arrays of a call (labels, starts) come
 * there through lk_cuda_stage. */
#ifndef LK_KERNELS_CUDA_CUDA_H
#define LK_KERNELS_CUDA_CUDA_H

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels/backend.h"
#include "kernels/cuda/adapters.h"
#include "kernels/cuda/blas.h"
#include "kernels/cuda/collective.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/sdpa.h"
#include "kernels/cuda/step.h"
#include "kernels/cuda/tables.h"

typedef struct lk_cuda {
    lk_backend base; /* first: pointers convert */
    lk_rt_device device;
    lk_rt_stream stream;
    lk_blas *blas;
    lk_sdpa *sdpa; /* NULL: attention runs on the module's own kernels */
    /* several ranks: one of these two, or neither */
    lk_collective *collective;
    float *host_piece; /* [LK_CUDA_HOST_PIECE], pinned: sums go through the host */
    /* transfers beside the computing */
    lk_rt_stream beside;
    lk_rt_event reached;                    /* the queue, when a transfer or a branch began */
    lk_rt_event joined;                     /* the end of a branch (lora_serve.cu) */
    lk_rt_event arrived[LK_TRANSFER_SLOTS]; /* the end of each slot's transfer */
    bool under_way[LK_TRANSFER_SLOTS];
    /* memory */
    struct lk_cuda_block *blocks; /* what lk_cuda_alloc handed out and how much each is (memory.c) */
    size_t n_blocks, blocks_room;
    void *scratch;
    size_t scratch_bytes;
    size_t branch_bytes; /* the end of the scratch, for what runs beside a product */
    void *staging;       /* where host arrays arrive on the device, a ring */
    size_t staging_bytes, staging_at;
    /* serving */
    lk_cuda_adapters adapters; /* of the batch at hand */
    lk_cuda_tables tables;     /* the same */
    bool warp_groups;          /* products of many tokens take them (group_probe.h) */
    bool serving;              /* the batch at hand has sequences (lk_batch_begin): its products follow product.h */
    lk_cuda_steps steps;
    const lk_kv *kv; /* the cache that was made or used last, of n_kvs */
    int32_t n_kvs;
    lk_cuda_sampler sampler;
    int32_t *drawn;   /* [rows]: what the last sampling drew, which negative ids name (lk_drawn); NULL where none was reserved for */
    float *constants; /* device copy of the NF4 codebook[16], then the signed and unsigned dynamic maps, 256 each */
} lk_cuda;

enum { LK_CUDA_HOST_PIECE = 1 << 20 }; /* floats */
enum { LK_CUDA_CODEBOOK = 0, LK_CUDA_MAP_SIGNED = 16, LK_CUDA_MAP_UNSIGNED = 16 + 256, LK_CUDA_CONSTANTS = 16 + 512 };

static inline lk_cuda *lk_cuda_of(lk_backend *be) { return (lk_cuda *)be; }
/* Elements of a row of scratch or weights: rows of bf16 then start at 16 bytes. */
static inline int64_t lk_cuda_padded(int64_t n) { return (n + 7) / 8 * 8; }

lk_status lk_cuda_open(lk_backend **be, const lk_backend_options *options, lk_error *err);
extern const lk_ops lk_cuda_ops;

/* Rows of a bf16 tensor are whole groups of eight that begin at 16-byte boundaries: what vector loads ask. */
static inline bool lk_cuda_eights(const lk_tensor *t) { return (uintptr_t)t->data % 16 == 0 && t->stride % 8 == 0 && t->cols % 8 == 0; }

/* Bytes of scratch for these limits: the most that any operation asks. Given back by lk_cuda_unreserve. */
size_t lk_cuda_scratch_needs(const lk_cuda *cu, const lk_limits *limits);
/* Scratch and the ring alone. */
lk_status lk_cuda_reserve_scratch(lk_backend *be, const lk_limits *limits);
void lk_cuda_unreserve(lk_backend *be);
/* All of the reserved scratch, when it holds at least `bytes`: 256-byte aligned; split it by lk_cuda_carve. */
lk_status lk_cuda_scratch(lk_backend *be, const char *op, size_t bytes, void **out);
static inline size_t lk_cuda_carved(size_t bytes) { return (bytes + 255) / 256 * 256; }
static inline void *lk_cuda_carve(void **rest, size_t bytes)
{
    void *p = *rest;
    *rest = (char *)p + lk_cuda_carved(bytes);
    return p;
}

/* Copies a host array to the device in the order of the stream; the pointer is good for the operations of this call. The host
 * array may be reused on return. At most (tokens * 8 + 64 KiB) bytes at once, by the limits reserved. */
lk_status lk_cuda_stage(lk_backend *be, void **device, const void *host, size_t bytes);

/* Memory of the ring that lk_cuda_stage uses, for small things that an operation makes itself; good for the operations of this call. */
lk_status lk_cuda_ring(lk_backend *be, void **device, size_t bytes);

/* bias[n] as lk_gemm wants it beside an output of this type: itself for F32, rounded to bf16 in the ring for BF16 (rows.cu). NULL is NULL.
 */
lk_status lk_cuda_bias(lk_backend *be, const void **out, const float *bias, int64_t n, lk_dtype type);

/* ---- frozen matrices (matrix.c, dequantise.cu) */

/* Bytes of bf16 workspace that lk_cuda_matrix_rows needs for any matrix of `limits` (0 when none is quantised); operations that multiply
 * put it first in their scratch. */
size_t lk_cuda_weights_scratch(const lk_limits *limits);
/* Rows [begin, end) of w as row-major bf16 [end-begin, K], leading dimension *ld: dequantised into `workspace`, or where they lie when
 * w is dense. The workspace must hold (end-begin)*K values; begin is a multiple of 16. Queued on the stream. */
lk_status lk_cuda_matrix_rows(lk_backend *be, const lk_matrix *w, int64_t begin, int64_t end, void *workspace, const void **rows,
                              int64_t *ld);
/* Rows of w that fit a workspace of this many bytes: all of them, or a multiple of 128, at least 128. */
int64_t lk_cuda_matrix_fit(const lk_matrix *w, size_t workspace_bytes);

/* Queues a product. */
static inline lk_status lk_cuda_multiply(lk_backend *be, const lk_gemm *g)
{
    lk_cuda *cu = lk_cuda_of(be);
    return lk_blas_gemm(cu->blas, g, cu->stream, &be->error);
}

/* ---- table entries */

void lk_cuda_close(lk_backend *be);
lk_status lk_cuda_loader_open(lk_backend **loader, lk_backend *be, lk_error *err);
lk_status lk_cuda_loader_after(lk_backend *loader, lk_backend *be);
lk_status lk_cuda_use(lk_backend *be);
lk_status lk_cuda_alloc(lk_backend *be, size_t bytes, void **out);
void lk_cuda_free(lk_backend *be, void *p);
lk_status lk_cuda_upload(lk_backend *be, void *device, const void *host, size_t bytes);
lk_status lk_cuda_download(lk_backend *be, void *host, const void *device, size_t bytes);
lk_status lk_cuda_zero(lk_backend *be, void *device, size_t bytes);
lk_status lk_cuda_copy(lk_backend *be, void *device_to, const void *device_from, size_t bytes);
lk_status lk_cuda_sync(lk_backend *be);
size_t lk_cuda_device_memory(const lk_backend *be);
lk_status lk_cuda_host_alloc(lk_backend *be, size_t bytes, void **out);
void lk_cuda_host_free(lk_backend *be, void *p);
lk_status lk_cuda_transfer_begin(lk_backend *be, int slot, void *to, const void *from, size_t bytes);
lk_status lk_cuda_transfer_wait(lk_backend *be, int slot);
lk_status lk_cuda_all_reduce(lk_backend *be, float *x, int64_t n);
size_t lk_cuda_scratch_bytes(const lk_backend *be, const lk_limits *limits);
lk_status lk_cuda_reserve(lk_backend *be, const lk_limits *limits);

lk_status lk_cuda_matrix_create(lk_backend *be, lk_matrix **out, const lk_matrix_source *source);
void lk_cuda_matrix_destroy(lk_backend *be, lk_matrix *w);
size_t lk_cuda_matrix_bytes(const lk_backend *be, lk_dtype source_type, int64_t n, int64_t k, bool nested);
const void *lk_cuda_matrix_data(const lk_matrix *w);
void lk_cuda_matrix_lend(lk_backend *be, lk_matrix *w, void *data);
lk_status lk_cuda_batch_begin(lk_backend *be, const lk_batch *batch);
lk_status lk_cuda_linear(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const lk_matrix *w, const float *bias,
                         const lk_tensor *residual);
lk_status lk_cuda_linear_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dy, const lk_matrix *w, bool accumulate);
lk_status lk_cuda_embed(lk_backend *be, const lk_tensor *y, const lk_matrix *table, const int32_t *ids);
lk_status lk_cuda_embed_some(lk_backend *be, const lk_tensor *y, const lk_matrix *rows, const int32_t *some, const int32_t *ids);

lk_status lk_cuda_lora_forward(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *y, const lk_tensor *x,
                               const lk_tensor *h, const lk_dropout *dropout);
lk_status lk_cuda_lora_backward(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *dx, const lk_tensor *dy,
                                const lk_tensor *x, const lk_tensor *h, const lk_dropout *dropout);
size_t lk_cuda_lora_scratch(const lk_limits *limits);
/* lk_lora_forward of several sites with one x (y, h and site of the parts), for a serving batch: lora_serve.cu. */
lk_status lk_cuda_lora_serve(lk_backend *be, const lk_batch *batch, const lk_part *parts, int n, const lk_tensor *x);
/* lk_cuda_serve_linears and then that, the first half of it beside the products. */
lk_status lk_cuda_lora_serve_linears(lk_backend *be, const lk_batch *batch, const lk_part *parts, int n, const lk_tensor *x);
lk_status lk_cuda_linear_parts(lk_backend *be, const lk_batch *batch, const lk_part *parts, int n, const lk_tensor *x,
                               const lk_dropout *dropout);
size_t lk_cuda_lora_serve_scratch(const lk_limits *limits);

lk_status lk_cuda_linear_lora(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *y, const lk_tensor *x,
                              const lk_matrix *w, const float *bias, const lk_tensor *residual, const lk_tensor *h,
                              const lk_dropout *dropout);
lk_status lk_cuda_linear_lora_backward(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *dx, const lk_tensor *dy,
                                       const lk_matrix *w, const lk_tensor *x, const lk_tensor *h, bool accumulate,
                                       const lk_dropout *dropout);
int64_t lk_cuda_row_gap(const lk_backend *be, int64_t rank);
size_t lk_cuda_linear_lora_scratch(const lk_limits *limits);

lk_status lk_cuda_rmsnorm(lk_backend *be, const lk_tensor *y, float *rstd, const lk_tensor *x, const float *weight, float eps);
lk_status lk_cuda_rmsnorm_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dy, const lk_tensor *x, const float *weight,
                                   const float *rstd, bool accumulate);
lk_status lk_cuda_rope_table(lk_backend *be, const lk_tensor *cos_sin, const int32_t *positions, const float *inv_freq, float factor);
lk_status lk_cuda_rope(lk_backend *be, const lk_tensor *x, int64_t heads, const lk_tensor *cos_sin, bool backward);
lk_status lk_cuda_glu(lk_backend *be, const lk_tensor *y, const lk_tensor *gate, const lk_tensor *up, lk_activation act);
lk_status lk_cuda_glu_backward(lk_backend *be, const lk_tensor *dgate, const lk_tensor *dup, const lk_tensor *dy, const lk_tensor *gate,
                               const lk_tensor *up, lk_activation act);
lk_status lk_cuda_gain(lk_backend *be, const lk_tensor *y, const float *gain, const float *bias, const lk_tensor *residual);
lk_status lk_cuda_gain_backward(lk_backend *be, const lk_tensor *y, const lk_tensor *dy, const float *gain, float *dm,
                                const float *inverse_norm);
lk_status lk_cuda_gain_norms(lk_backend *be, float *gain, float *inverse_norm, const lk_matrix *w, const lk_lora *l, const float *m);
lk_status lk_cuda_lora_gain(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *y, const float *bias,
                            const lk_tensor *residual);
size_t lk_cuda_gain_scratch(const lk_limits *limits);
lk_status lk_cuda_clear(lk_backend *be, const lk_tensor *y);
lk_status lk_cuda_add(lk_backend *be, const lk_tensor *y, const lk_tensor *x);
lk_status lk_cuda_scale(lk_backend *be, const lk_tensor *y, const lk_tensor *x, float by);
lk_status lk_cuda_cap(lk_backend *be, const lk_tensor *y, float cap);
lk_status lk_cuda_gather_rows(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *rows);

lk_status lk_cuda_moe_route(lk_backend *be, int32_t *ids, const lk_tensor *weights, const lk_tensor *logits, bool normalise);
lk_status lk_cuda_moe_route_backward(lk_backend *be, const lk_tensor *dlogits, const lk_tensor *dweights, const int32_t *ids,
                                     const lk_tensor *logits, bool normalise);
lk_status lk_cuda_moe_combine(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *slots, const lk_tensor *weights,
                              const lk_tensor *residual);
lk_status lk_cuda_moe_combine_placed(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *slots, const lk_tensor *weights,
                                     const lk_tensor *residual);
size_t lk_cuda_experts_bytes(const lk_backend *be, int64_t experts);
lk_status lk_cuda_experts_fill(lk_backend *be, void *table, const lk_matrix *const *w, int64_t experts);
size_t lk_cuda_moe_placing_bytes(const lk_backend *be, int64_t slots, int64_t experts);
lk_status lk_cuda_moe_place(lk_backend *be, int32_t *places, const int32_t *ids, int64_t tokens, int64_t k, int64_t experts);
lk_status lk_cuda_experts_linear(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const lk_experts *w, int32_t *places,
                                 bool by_token);
lk_status lk_cuda_moe_combine_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dweights, const lk_tensor *dy,
                                       const lk_tensor *x, const int32_t *slots, const lk_tensor *weights);

lk_status lk_cuda_attention(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *o, float *lse,
                            const lk_tensor *q, const lk_tensor *k, const lk_tensor *v);
lk_status lk_cuda_attention_backward(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *dq,
                                     const lk_tensor *dk, const lk_tensor *dv, const lk_tensor *dout, const lk_tensor *o, const float *lse,
                                     const lk_tensor *q, const lk_tensor *k, const lk_tensor *v);
size_t lk_cuda_attention_scratch(const lk_cuda *cu, const lk_limits *limits);

size_t lk_cuda_kv_page_bytes(const lk_backend *be, const lk_kv_shape *shape);
lk_status lk_cuda_kv_create(lk_backend *be, lk_kv **kv, const lk_kv_shape *shape);
void lk_cuda_kv_destroy(lk_backend *be, lk_kv *kv);
lk_status lk_cuda_kv_write(lk_backend *be, const lk_batch *batch, lk_kv *kv, int32_t layer, const lk_tensor *k, const lk_tensor *v);
lk_status lk_cuda_rope_kv_write(lk_backend *be, const lk_batch *batch, lk_kv *kv, int32_t layer, int64_t heads, const lk_tensor *q,
                                const lk_tensor *k, const lk_tensor *v, const lk_tensor *cos_sin);
lk_status lk_cuda_paged_attention(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *o,
                                  const lk_tensor *q, const lk_kv *kv, int32_t layer);
size_t lk_cuda_paged_scratch(const lk_limits *limits);

lk_status lk_cuda_linear_loss(lk_backend *be, float *nll, uint8_t *hits, const lk_tensor *dx, const lk_tensor *x, const lk_matrix *head,
                              const int32_t *labels, float grad_scale, float cap);
size_t lk_cuda_loss_scratch(const lk_limits *limits);
lk_status lk_cuda_sum_squares(lk_backend *be, double *out, const float *x, int64_t n);
size_t lk_cuda_squares_scratch(void);
lk_status lk_cuda_adamw(lk_backend *be, float *p, const float *g, float *m, float *v, int64_t n, const lk_adamw_step *step);
lk_status lk_cuda_adamw8(lk_backend *be, float *p, const float *g, uint8_t *m8, uint8_t *v8, float *m_scale, float *v_scale, int64_t n,
                         const lk_adamw_step *step);

lk_status lk_cuda_sample_begin(lk_backend *be, const lk_tensor *logits, const lk_sample_request *requests);
lk_status lk_cuda_sample_end(lk_backend *be, lk_sample_result *results);
size_t lk_cuda_sample_scratch(const lk_limits *limits);

#ifdef __cplusplus
}
#endif
#endif
