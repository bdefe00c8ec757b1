/* The spine: every computation the trainer and the server need, as operations over tensors in a backend's own memory.
 *
 *     lk_backend *be;
 *     LK_TRY(lk_backend_open(&be, &(lk_backend_options){.device = "cpu", .threads = 2, .compute = LK_BF16}, err));
 *     lk_tensor x = ..., y = ...;
 *     LK_TRY(lk_linear(be, &y, &x, matrix, NULL));                     -- on failure lk_backend_error(be) says why
 *     lk_backend_close(be);
 *
 * model/ is written once against this header. A backend is a table of these functions (kernels/backend.h); kernels/cpu is
 * one, a CUDA module another. The functions here check shapes and types (LK_ERR_INTERNAL with a message: a mistake of the
 * caller) and hand on. An operation a backend lacks is LK_ERR_UNSUPPORTED, never a silent fallback.
 *
 * Conventions
 *   T tokens, C channels, K input width, N output width, H query heads, G key/value heads, D head size, V vocabulary, R rank.
 *   Tensors are [rows, cols] views. Activations have the type lk_backend_act(be) (F32 on the CPU, BF16 on CUDA); "act" below.
 *   An output overwrites unless the contract says "accumulates". Outputs must not alias inputs unless it says they may.
 *   `compute` F32 means products of fp32 values; BF16 means that both factors are rounded to bf16 (nearest even) and products
 *   are summed in fp32. In attention BF16 allows that rounding, it does not demand it.
 *
 * Results do not depend on company. Each row of an output is a function of that row's inputs only, with a summation order
 * fixed by the widths (K, D) and by absolute positions: never by the number of rows, of threads, of other sequences, or by how
 * a prompt was chunked. Sums over rows (lora_backward's da and db, sum_squares) run in row order. No floating-point atomics.
 *
 * Thread safety: one thread drives a backend at a time (lk_backend_use when it is another than before); the backend uses its own threads
 * inside. Matrices and tensors are plain memory and may be read by several backends of the same kind.
 *
 * Memory: an operation allocates nothing. Scratch it needs is reserved once by lk_reserve. */
#ifndef LK_KERNELS_OPS_H
#define LK_KERNELS_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/ranks.h"
#include "base/status.h"
#include "kernels/philox.h"
#include "kernels/tensor.h"

#ifdef __cplusplus
extern "C" { /* the kernels of the CUDA module are C++ files */
#endif

typedef struct lk_backend lk_backend;
typedef struct lk_matrix lk_matrix;
typedef struct lk_kv lk_kv;

/* ---------------------------------------------------------------------------------------------- backend and memory */

typedef struct lk_backend_options {
    const char *device; /* "cpu", "cuda" (the first GPU), "cuda:N", or "auto": cuda where there is one, else cpu (a log line says why) */
    int threads;        /* CPU threads, 0 = all the process may use */
    lk_dtype compute;   /* LK_F32 or LK_BF16 */
    /* NULL: the best this processor has; else "portable", "avx2", "avx512", "amx" (tests, benches), or "reference": the readable
     * fp32 operations on one thread (kernels/cpu/reference), which state what each operation means. */
    const char *cpu_tier;
    /* Processes that compute together, each with a backend of its own, or NULL: what lk_all_reduce sums over. Borrowed; outlives the
     * backend. With "cuda" or "auto", rank r takes GPU r. Opening is then collective. */
    lk_ranks *ranks;
} lk_backend_options;

lk_status lk_backend_open(lk_backend **be, const lk_backend_options *options, lk_error *err);
void lk_backend_close(lk_backend *be);    /* NULL is fine. Everything created on it must be gone. */
lk_status lk_backend_use(lk_backend *be); /* the calling thread drives it from now on; the thread that opened it need not say so */
const lk_error *lk_backend_error(const lk_backend *be);
/* Copies the last failure of an operation to err; returns status. `return lk_backend_fail(be, status, err)` */
lk_status lk_backend_fail(const lk_backend *be, lk_status status, lk_error *err);
const char *lk_backend_name(const lk_backend *be);  /* "cpu/avx512", "cuda/sm_90", ... for logs and run.json */
const char *lk_backend_about(const lk_backend *be); /* what it runs on and what it was built for, for people; may be empty */
int lk_backend_threads(const lk_backend *be);
lk_dtype lk_backend_compute(const lk_backend *be);
lk_dtype lk_backend_act(const lk_backend *be);
bool lk_backend_mixes(const lk_backend *be);  /* it has what mixtures of experts need */
bool lk_backend_serves(const lk_backend *be); /* it has what serving needs: pages of keys and values, attention over them, sampling */
bool lk_backend_ahead(const lk_backend *be);  /* it has lk_sample_begin: a step can be queued before the one before it is done */

/* A loader: a second, light backend on the device of `be`, for one other thread that brings data in while `be` computes. It has memory,
 * copies and lk_sync, on a queue of its own, and of the operations that compute only what making an adapter takes (matrices, lk_embed,
 * lk_gain_norms); its copies from memory of lk_host_alloc run beside the computing. Closed before `be`.
 *
 *     LK_TRY(lk_loader_open(&loader, be, err));
 *     LK_TRY(lk_loader_after(loader, be));              -- the thread that drives be: this memory is yours, once be is done with it
 *     LK_TRY(lk_upload(loader, memory, host, bytes));   -- the loader's thread; on return it is there for whatever be queues later
 *
 * lk_loader_after: what the loader queues from now on runs behind all that is queued on `be` so far. It is called by the thread that
 * drives `be`, at any time, and reports there; the caller waits for nothing. */
lk_status lk_loader_open(lk_backend **loader, lk_backend *be, lk_error *err);
lk_status lk_loader_after(lk_backend *loader, lk_backend *be);

/* 64-byte aligned memory of the backend, zeroed. LK_ERR_MEMORY leaves *out NULL. */
lk_status lk_alloc(lk_backend *be, size_t bytes, void **out);
void lk_free(lk_backend *be, void *p); /* NULL is fine */
/* Bytes taken through lk_alloc, matrices, KV and scratch: now, and the most so far. */
size_t lk_allocated(const lk_backend *be);
size_t lk_allocated_peak(const lk_backend *be);
lk_status lk_upload(lk_backend *be, void *device, const void *host, size_t bytes);
lk_status lk_download(lk_backend *be, void *host, const void *device, size_t bytes);
lk_status lk_zero(lk_backend *be, void *device, size_t bytes);
lk_status lk_copy(lk_backend *be, void *device_to, const void *device_from, size_t bytes); /* must not overlap */
/* Bytes still free in the device's own memory; 0 where the backend computes in the host's, as the CPU does. */
size_t lk_device_memory(const lk_backend *be);
lk_status lk_sync(lk_backend *be); /* waits for everything queued; the CPU has nothing queued */

/* Copies beside the computing: checkpoints that wait in host memory. lk_host_alloc gives host memory that a device can copy to and from
 * by itself (pinned). A transfer begins when the operations queued before it are done and runs beside later ones; until its wait, neither
 * memory may be used. Operations queued after lk_transfer_wait run after the copy. A slot carries one transfer at a time; waiting for an
 * idle slot is nothing. Directions: device to host or host to device. */
enum { LK_TRANSFER_SLOTS = 4 };
lk_status lk_host_alloc(lk_backend *be, size_t bytes, void **out); /* not counted by lk_allocated */
void lk_host_free(lk_backend *be, void *p);                        /* NULL is fine */
lk_status lk_transfer_begin(lk_backend *be, int slot, void *to, const void *from, size_t bytes);
lk_status lk_transfer_wait(lk_backend *be, int slot);

/* The largest shapes that operations will be called with; 0 where an operation is not used. */
typedef struct lk_limits {
    int64_t tokens; /* rows of any activation */
    int64_t slots;  /* rows of those that a mixture of experts brings together: tokens times experts of each */
    int64_t width;  /* K or N of any linear layer */
    int64_t vocab;  /* N of the head */
    int64_t rank;   /* of any adapter */
    int64_t heads, kv_heads, head_dim;
    int64_t context; /* keys any token may see */
    int64_t matrix;  /* N*K of the largest linear layer; the head apart (vocab * width) */
    bool training;   /* backward operations will be called */
    bool gains;      /* lk_gain_norms will be called; with training lk_gain_backward, too */
    bool head;       /* lk_linear_loss_trained will be */
    bool serving;    /* only batches of sequences will be begun (lk_batch.n_sequences > 0), and sampling comes with them: else a backend
                      * need not have room for it */
    /* Serving with adapters: of one batch, and how many linear layers they may adapt (lk_batch.n_adapters and n_sites). */
    int64_t adapters, sites;
} lk_limits;

/* Bytes of scratch these limits need (for the memory plan), and the reservation itself: grows, never shrinks. */
size_t lk_scratch_bytes(const lk_backend *be, const lk_limits *limits);
lk_status lk_reserve(lk_backend *be, const lk_limits *limits);

/* x[n] F32 becomes its sum over the ranks of the options, in a fixed order and with the same bits in each of them. Collective. Without
 * ranks it does nothing. */
lk_status lk_all_reduce(lk_backend *be, float *x, int64_t n);

/* ---------------------------------------------------------------------------------------------- frozen matrices */

/* w[N,K] as it comes from a file, in host memory, borrowed for the call. */
typedef struct lk_matrix_source {
    lk_dtype type; /* LK_F32, LK_BF16, LK_F16: data is row-major. LK_NF4: codes over the flat matrix (kernels/nf4.h) */
    int64_t n, k;
    const void *data;
    const float *absmax; /* LK_NF4: lk_nf4_blocks(n*k) scales, already un-nested; else NULL */
    /* Where the scales are double-quantised, the nested form of the same values (absmax = lk_nf4_unnest of these): a backend may keep
     * this one and save memory. All three or none. */
    const uint8_t *absmax8;
    const float *absmax2;
    float absmax_offset;
} lk_matrix_source;

/* Prepares (repacks) a matrix for this backend's kernels; immutable afterwards and shared by training and serving.
 * Weight meaning: NF4: codebook * absmax, rounded to bf16 when compute is BF16. Dense: rounded to bf16 when compute is BF16;
 * otherwise exact (stored as BF16 when the source is, else F32).
 * For a serving batch in BF16 a backend may round the codebook value alone and apply absmax in fp32 to the sum over its block: a little
 * nearer to codebook * absmax. Which of the two is a matter of the kind of batch (n_sequences > 0), never of the number of rows. */
lk_status lk_matrix_create(lk_backend *be, lk_matrix **out, const lk_matrix_source *source);
void lk_matrix_destroy(lk_backend *be, lk_matrix *w); /* NULL is fine */
/* What a matrix of this source type and shape will take, for the plan. nested: the source will come with absmax8 and its company. */
size_t lk_matrix_bytes(const lk_backend *be, lk_dtype source_type, int64_t n, int64_t k, bool nested);
/* For who lays a matrix's memory out himself, as serving does with the tables of an adapter. Its bytes as the backend keeps them, in
 * backend memory: lk_matrix_bytes of them, which mean the same at any place that is as well aligned as a page of a KV cache. NULL: they are
 * nowhere. lend: from now on they are at `data`, which stays the caller's, or (NULL) nowhere, and no operation may use the matrix; memory
 * of its own is given back. The matrix of a source without absmax only. */
const void *lk_matrix_data(const lk_backend *be, const lk_matrix *w);
lk_status lk_matrix_lend(lk_backend *be, lk_matrix *w, void *data);
/* Row ids[i] (ids NULL: row i) of a matrix that was made from F32 becomes rows[i,K], for i < n: F32 in backend memory, rounded as
 * lk_matrix_create rounds. What is trained as a whole is multiplied with like this: the matrix is its copy in the kernels' layout. ids host
 * memory. A source of F32 whose data is NULL makes a matrix of zeros, to be filled. */
lk_status lk_matrix_set(lk_backend *be, lk_matrix *w, const int32_t *ids, int64_t n, const float *rows);
int64_t lk_matrix_n(const lk_matrix *w);
int64_t lk_matrix_k(const lk_matrix *w);
lk_dtype lk_matrix_type(const lk_matrix *w);

/* y[T,N] = x[T,K] * w[N,K]^T + bias[N] + residual[T,N]. x, y act (y may also be F32); bias F32 or NULL; residual of y's type, not
 * aliasing y, or NULL. */
lk_status lk_linear(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const lk_matrix *w, const float *bias,
                    const lk_tensor *residual);

/* dx[T,K] = dy[T,N] * w[N,K]   (accumulate: dx +=). The frozen matrix gets no gradient of its own. */
lk_status lk_linear_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dy, const lk_matrix *w, bool accumulate);

/* y[T,K] = rows ids[T] of table[V,K], as dequantised. Every 0 <= ids[t] < V. */
lk_status lk_embed(lk_backend *be, const lk_tensor *y, const lk_matrix *table, const int32_t *ids);
/* Row t of y becomes row i of rows[n,K] where ids[t] == some[i]; others are left alone. some[n] rises, in backend memory. */
lk_status lk_embed_some(lk_backend *be, const lk_tensor *y, const lk_matrix *rows, const int32_t *some, const int32_t *ids);

/* ---------------------------------------------------------------------------------------------- the batch */

/* Tokens grouped by adapter: rows [begin,end) use adapter `adapter` of the batch's LoRA table, -1 = the base alone. */
typedef struct lk_segment {
    int64_t begin, end;
    int32_t adapter;
} lk_segment;

/* One adapter's factors at one linear layer ("site"). Memory of the backend. rank 0: this adapter leaves the site alone. */
typedef struct lk_lora {
    const void *a;  /* A[R,K], row-major */
    const void *b;  /* B[N,R], row-major */
    float *da, *db; /* F32 gradients of the same shapes, or NULL when not training */
    lk_dtype type;  /* of a and b: F32, or BF16 (serving only) */
    int32_t rank;
    float scale; /* alpha/r, or alpha/sqrt(r) for rsLoRA */
    /* What lk_lora_forward does not look at (model/adapted.h does): DoRA's m/norm [N], its 1/norm and the gradient of m when training; a
     * bias [N] in place of the layer's own. F32, or NULL: none. */
    const float *gain, *inverse_norm, *bias;
    float *dm;
    /* When they are trained: the gradient of that bias, and of the bias behind B (PEFT's lora_bias), which is scaled like the factors. */
    float *dbias, *dlora_bias;
} lk_lora;

/* What one adapter puts in the place of the embedding and the head, or adds to it. NULL: the base's own. Read by model/adapted.h only. */
typedef struct lk_adapter_tables {
    const lk_matrix *embedding, *head;
    const lk_matrix *embed_a, *embed_b; /* adds embed_b[C,R] embed_a[V,R]: an adapted embedding's A transposed, and its B with the scale */
    const lk_matrix *token_rows;        /* [n_tokens,C]: the rows of the tokens token_ids (rising), instead of all the above */
    const int32_t *token_ids;           /* memory of the backend */
    int32_t n_tokens;
    lk_lora head_factors; /* on top of the head; rank 0: none */
    /* When they are trained, their gradients, F32; NULL: not trained. Of embed_a and embed_b as they are in PEFT, before the scale
     * embed_scale; dhead_tokens is of the head's rows token_ids. Two of them may be the same memory. */
    float *dembedding, *dhead, *dembed_a, *dembed_b, *dtokens, *dhead_tokens;
    float embed_scale;
} lk_adapter_tables;

/* One sequence of a serving batch: its new tokens are rows [begin, begin+count), at positions length-count .. length-1. */
typedef struct lk_sequence {
    int64_t begin, count;
    int64_t length;       /* tokens in the cache once this batch is written */
    const int32_t *pages; /* page numbers, ceil(length / page_tokens) of them */
} lk_sequence;

/* An id of a serving batch that the host does not know yet: what the sampling before (lk_sample_begin) draws for its row `row`. */
static inline int32_t lk_drawn(int64_t row) { return (int32_t)(-1 - row); }

/* What the rows of the activations are. All arrays are host memory, borrowed until the forward (or backward) that uses them
 * returns; a device backend mirrors them in lk_batch_begin. */
typedef struct lk_batch {
    int64_t n_tokens;
    /* NULL, or the batch begun before, of whose rows these are some (those of one expert): neither documents nor sequences then, but what
     * that batch's kind decides is decided alike. */
    const struct lk_batch *of;
    /* serving: so many rows more that every activation has behind the tokens'. They are computed and mean nothing: a step that is recorded
     * (lk_step_begin) has one of few sizes. Their ids and positions are there and 0. */
    int64_t padding;
    const int32_t *ids;       /* lk_embed takes this very array; lk_drawn(r) only where lk_backend_ahead */
    const int32_t *positions; /* RoPE positions: restart at 0 with each document */
    /* training: documents tile the rows; doc_starts[n_docs+1], first 0, last n_tokens */
    int64_t n_docs;
    const int32_t *doc_starts;
    /* serving: sequences tile the rows */
    int64_t n_sequences;
    const lk_sequence *sequences;
    /* serving: the rows whose logits are wanted, those of a padded row 0; lk_gather_rows takes this very array */
    int64_t n_rows;
    const int32_t *rows;
    /* adapters: segments tile the rows; lora[site * n_adapters + adapter]. n_segments 0: the base alone. */
    int64_t n_segments;
    const lk_segment *segments;
    int32_t n_sites, n_adapters;
    const lk_lora *lora;
    const lk_adapter_tables *tables; /* [n_adapters], or NULL: none has any */
} lk_batch;

/* Called once before the operations of a forward or backward over this batch. Operations that are not handed a batch (lk_linear) belong
 * to the last one begun. */
lk_status lk_batch_begin(lk_backend *be, const lk_batch *batch);

/* A step that comes again and again (decoding), recorded once: CUDA graphs.
 *
 *     LK_TRY(lk_batch_begin(be, &batch));
 *     LK_TRY(lk_step_begin(be, key, &queued));
 *     if (!queued) { ... the operations of the step ...; LK_TRY(lk_step_end(be)); }
 *
 * The caller promises that a key stands for the same operations with the same tensors, matrices and cache in the same order; only what
 * lk_batch_begin was given, and what memory holds, may differ. *queued: the backend has repeated its recording, and none of the operations
 * may be called. A backend without recordings says false each time. After a failure between the two, lk_step_end is called all the same
 * and nothing is kept. Between the two only operations of a forward may be called. */
lk_status lk_step_begin(lk_backend *be, uint64_t key, bool *queued);
lk_status lk_step_end(lk_backend *be);
void lk_step_forget(lk_backend *be); /* all recordings: before memory that they name is given back */
bool lk_backend_records(const lk_backend *be);

/* ---------------------------------------------------------------------------------------------- LoRA (Hu et al. 2021) */

/* Inverted dropout of the adapter's input, recomputed in backward. Element (row t, column k) of site s is kept when
 * lk_philox_uniform(word) >= p, scaled by 1/(1-p), with word number k%4 of lk_philox(key, counter, s<<44 | t*ceil(K/4) + k/4). */
typedef struct lk_dropout {
    float p; /* 0 = none */
    lk_philox_key key;
    uint64_t counter; /* differs for every micro-batch of every step */
} lk_dropout;

/* y[T,K] = drop(x), for what reads the dropped input itself; y may be x. dropout must drop something. */
lk_status lk_drop(lk_backend *be, const lk_tensor *y, const lk_tensor *x, int32_t site, const lk_dropout *dropout);
bool lk_backend_drops(const lk_backend *be);

/* h[T,Rmax] = drop(x)[T,K] * A^T, columns beyond a segment's rank untouched;  y[T,N] += scale * h * B^T.  Rows of segments without
 * adapter (or rank 0 at this site) are left alone. h F32 with at least the largest rank of columns; kept for backward.
 * dropout may be NULL. */
lk_status lk_lora_forward(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *y, const lk_tensor *x, const lk_tensor *h,
                          const lk_dropout *dropout);

/* With dh = scale * dy * B:   db[N,R] += scale * dy^T * h,   da[R,K] += dh^T * drop(x),   dx[T,K] += drop(dh * A).
 * All three accumulate; da and db in F32, summed in row order. Segments whose da is NULL get only dx. dx may be NULL when the
 * layer below needs no gradient. */
lk_status lk_lora_backward(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *dx, const lk_tensor *dy,
                           const lk_tensor *x, const lk_tensor *h, const lk_dropout *dropout);

/* A linear layer with its adapters, both ways: lk_linear and then lk_lora_forward on the same x and y; lk_linear_backward and then
 * lk_lora_backward on the same dx and dy (dx NULL: the adapters' gradients alone). A backend may make one product of the two by joining
 * their contractions, [x | h] times [w | scale*B] and [dy | dh] times [w ; A]: it then writes h or dh into the gap behind each row of x or
 * dy, when stride - cols is at least lk_row_gap(be, rank). What lies in the gap of a tensor that is handed to these two is overwritten. */
lk_status lk_linear_lora(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *y, const lk_tensor *x, const lk_matrix *w,
                         const float *bias, const lk_tensor *residual, const lk_tensor *h, const lk_dropout *dropout);
lk_status lk_linear_lora_backward(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *dx, const lk_tensor *dy,
                                  const lk_matrix *w, const lk_tensor *x, const lk_tensor *h, bool accumulate, const lk_dropout *dropout);
/* Layers that read the same x (query, key and value; gate and up): lk_linear_lora of each, no residual. A backend may do them, or their
 * adapters, in one go. The parts' h may be the same memory: it then holds nothing of use afterwards. */
typedef struct lk_part {
    const lk_matrix *w;
    const float *bias; /* or NULL */
    int32_t site;
    lk_tensor y, h;
} lk_part;
enum { LK_MOST_PARTS = 3 };
lk_status lk_linear_parts(lk_backend *be, const lk_batch *batch, const lk_part *parts, int n, const lk_tensor *x,
                          const lk_dropout *dropout);

/* Elements that are worth leaving free behind each row for linear_lora both ways, with adapters of up to this rank; 0: no use for them. */
int64_t lk_row_gap(const lk_backend *be, int64_t rank);

/* ---------------------------------------------------------------------------------------------- what is trained whole */

/* Gradients of biases, embeddings and tables, which PEFT trains beside factors. All accumulate, in F32, rows in their order. */

/* sums[N] += by * the sum over the rows of x[T,N]. */
lk_status lk_add_columns(lk_backend *be, float *sums, const lk_tensor *x, float by);
/* dw[N,K] += by * dy[T,N]^T * x[T,K]. x act or F32. */
lk_status lk_weight_gradient(lk_backend *be, float *dw, const lk_tensor *dy, const lk_tensor *x, float by);
/* dtable[ids[t]] += dy[t]; a row with ids[t] -1 is left out. dtable[n,C]; dy act or F32; ids host memory. */
lk_status lk_embed_backward(lk_backend *be, float *dtable, int64_t n, const lk_tensor *dy, const int32_t *ids);
/* Whether the backend has these three, lk_matrix_set and lk_linear_loss_trained. */
bool lk_backend_trains_weights(const lk_backend *be);

/* ---------------------------------------------------------------------------------------------- norms, RoPE, activations */

/* RMSNorm (Zhang & Sennrich 2019) as Llama uses it: rstd[T] = 1/sqrt(mean(x^2) + eps), y = x * rstd * weight[C]. rstd F32, may be NULL.
 * y may alias x. For per-head norms pass q as a [T*H, D] view. */
lk_status lk_rmsnorm(lk_backend *be, const lk_tensor *y, float *rstd, const lk_tensor *x, const float *weight, float eps);

/* dx = rstd * (dy*w - x * rstd^2 * mean(dy*w*x))   (accumulate: dx +=). Without accumulation dx may alias dy. */
lk_status lk_rmsnorm_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dy, const lk_tensor *x, const float *weight,
                              const float *rstd, bool accumulate);

/* cos_sin[T, D'] F32: for pair i < D'/2, columns i and D'/2+i hold factor*cos and factor*sin of positions[t] * inv_freq[i]; angle in
 * fp32 as transformers computes it. inv_freq[D'/2] F32 in backend memory. */
lk_status lk_rope_table(lk_backend *be, const lk_tensor *cos_sin, const int32_t *positions, const float *inv_freq, float factor);

/* In place on x[T, heads*D]: rotates pairs (i, i + D'/2) of each head (rotate_half convention of transformers), D' = cos_sin cols <= D;
 * the rest passes. backward rotates the other way (the transpose). */
lk_status lk_rope(lk_backend *be, const lk_tensor *x, int64_t heads, const lk_tensor *cos_sin, bool backward);

typedef enum lk_activation { LK_SILU, LK_GELU_TANH } lk_activation;

/* y[T,F] = act(gate[T,F]) * up[T,F]; y may alias either. */
lk_status lk_glu(lk_backend *be, const lk_tensor *y, const lk_tensor *gate, const lk_tensor *up, lk_activation act);
/* dgate and dup from dy and the forward's inputs; dgate may alias gate, dup may alias up. */
lk_status lk_glu_backward(lk_backend *be, const lk_tensor *dgate, const lk_tensor *dup, const lk_tensor *dy, const lk_tensor *gate,
                          const lk_tensor *up, lk_activation act);

/* y[T,N] = y * gain[N] + bias[N] + residual[T,N]: the end of a layer that a DoRA adapter (Liu et al. 2024) rescales, its factors already in
 * y. gain and bias F32; any of the three may be NULL; y act or F32, residual of its type. */
lk_status lk_gain(lk_backend *be, const lk_tensor *y, const float *gain, const float *bias, const lk_tensor *residual);
/* lk_gain of each row that has an adapter with a gain or a bias of its own at this site, with these; where the adapter has no bias, with
 * `bias`, the layer's own. Other rows are left alone. */
lk_status lk_lora_gain(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *y, const float *bias,
                       const lk_tensor *residual);
/* inverse_norm[N] = 1 / ||w + scale b a|| by rows, w as dequantised; gain[N] = m[N] * inverse_norm. All F32 in backend memory; gain may be
 * NULL, and of l only factors, rank and scale are read. Rank 0: w alone. A norm below 1e-15 counts as that. */
lk_status lk_gain_norms(lk_backend *be, float *gain, float *inverse_norm, const lk_matrix *w, const lk_lora *l, const float *m);
/* From y as it was before lk_gain, and the gradient dy behind it: dm[N] += inverse_norm[N] * sum over rows of dy * y (in row order; dm may
 * be NULL), and y becomes the gradient before the gain, dy * gain. gain = m * inverse_norm, the norm without a gradient (section 4.3). */
lk_status lk_gain_backward(lk_backend *be, const lk_tensor *y, const lk_tensor *dy, const float *gain, float *dm,
                           const float *inverse_norm);
/* Whether the backend has all of these: it computes DoRA, biases and tables of adapters. */
bool lk_backend_gains(const lk_backend *be);

/* y = 0, F32. */
lk_status lk_clear(lk_backend *be, const lk_tensor *y);

/* y += x. */
lk_status lk_add(lk_backend *be, const lk_tensor *y, const lk_tensor *x);

/* y = by * x; y may be x. */
lk_status lk_scale(lk_backend *be, const lk_tensor *y, const lk_tensor *x, float by);

/* y = cap * tanh(y / cap), in place on F32 (the soft cap of Gemma 2's logits). */
lk_status lk_cap(lk_backend *be, const lk_tensor *y, float cap);

/* y[n,C] = rows[n] of x. */
lk_status lk_gather_rows(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *rows);

/* ---------------------------------------------------------------------------------------------- mixtures of experts */

/* A router gives each row of a batch K of E experts. The rows that an expert gets are brought together (lk_gather_rows), so that its linear
 * layers are ordinary ones: of T*K slots, slot slots[t*K + j] holds what row t has with its j-th choice. */

/* For each row of logits[T,E] F32: the K largest, falling, the lower id first among equals. ids[T*K] I32 in backend memory;
 * weights[T,K] F32 = their part of the softmax over all E, with `normalise` over the K alone (Mixtral; Qwen3-MoE's norm_topk_prob). */
lk_status lk_moe_route(lk_backend *be, int32_t *ids, const lk_tensor *weights, const lk_tensor *logits, bool normalise);
/* dlogits[T,E] act, of the choice that was made. dweights[T,K] F32. */
lk_status lk_moe_route_backward(lk_backend *be, const lk_tensor *dlogits, const lk_tensor *dweights, const int32_t *ids,
                                const lk_tensor *logits, bool normalise);

/* y[T,C] = residual + sum over j of weights[t,j] * x[slots[t*K+j]], j rising; K = rows of x / T. slots host memory, a permutation of the
 * rows of x. weights[T,K] F32, NULL: all 1. residual NULL: none; it must not alias y. */
lk_status lk_moe_combine(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *slots, const lk_tensor *weights,
                         const lk_tensor *residual);
/* dx[slots[t*K+j]] = weights[t,j] * dy[t];  dweights[t,j] = dy[t] . x[slots[t*K+j]]. dx may be x. */
lk_status lk_moe_combine_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dweights, const lk_tensor *dy, const lk_tensor *x,
                                  const int32_t *slots, const lk_tensor *weights);

/* The same without the host, for a serving batch, where lk_backend_groups: who goes where stays in backend memory, and one call is a layer
 * of all experts. Slots are in the order of experts and, of one expert, of tokens.
 *
 *     lk_experts up = {.w = matrices, .count = E, .table = memory};     -- memory: lk_experts_bytes
 *     LK_TRY(lk_experts_fill(be, &up));                                   -- once
 *     LK_TRY(lk_moe_place(be, places, ids, T, K, E));                     -- places: lk_moe_placing_bytes(be, T*K, E)
 *     LK_TRY(lk_experts_linear(be, &y, &x, &up, places, true)); */
typedef struct lk_experts {
    const lk_matrix *const *w; /* of one shape and type, K a multiple of 8; borrowed */
    int64_t count;
    void *table; /* memory of the backend */
} lk_experts;

bool lk_backend_groups(const lk_backend *be);
size_t lk_experts_bytes(const lk_backend *be, int64_t experts); /* 0 where the backend has none of this; so lk_moe_placing_bytes */
lk_status lk_experts_fill(lk_backend *be, const lk_experts *w);
size_t lk_moe_placing_bytes(const lk_backend *be, int64_t slots, int64_t experts);
lk_status lk_moe_place(lk_backend *be, int32_t *places, const int32_t *ids, int64_t tokens, int64_t k, int64_t experts);
/* y[T*K,N] = each slot's row of x times its expert's matrix: row s of x[T*K,K'] or, by_token, the row of its token in x[T,K']. */
lk_status lk_experts_linear(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const lk_experts *w, int32_t *places, bool by_token);
/* lk_moe_combine with the slots of these places. */
lk_status lk_moe_combine_placed(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *places, const lk_tensor *weights,
                                const lk_tensor *residual);

/* ---------------------------------------------------------------------------------------------- attention */

typedef struct lk_attention_shape {
    int64_t heads, kv_heads, head_dim; /* heads % kv_heads == 0; query head h reads key/value head h / (heads/kv_heads) */
    float scale;                       /* usually 1/sqrt(D) */
    int64_t window;                    /* 0: all earlier positions; else a key is seen when query - key < window */
    float cap;                         /* 0: none; else a scaled score s becomes cap * tanh(s / cap) (Gemma 2) */
} lk_attention_shape;

/* Causal attention within each document of the batch (training; FlashAttention, Dao et al. 2022).
 * o[T,H*D], q[T,H*D], k[T,G*D], v[T,G*D]; lse[T,H] F32 = log sum exp of the scaled scores, kept for backward, or NULL. */
lk_status lk_attention(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *o, float *lse,
                       const lk_tensor *q, const lk_tensor *k, const lk_tensor *v);

/* dq, dk, dv from do, o, lse and the inputs. dq may not alias do. */
lk_status lk_attention_backward(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *dq,
                                const lk_tensor *dk, const lk_tensor *dv, const lk_tensor *dout, const lk_tensor *o, const float *lse,
                                const lk_tensor *q, const lk_tensor *k, const lk_tensor *v);

/* The cache of keys and values in fixed pages: page p of layer l holds page_tokens positions of all key/value heads. The backend
 * chooses the layout inside; callers only deal in page numbers. Values are kept in `type`: F32, BF16, or I8, where each key and each
 * value of a head at a position has a scale of its own: scale = max|x| / 127, code = x * (127 / max|x|) to the nearest even, and what is
 * read is code * scale. */
typedef struct lk_kv_shape {
    int32_t n_layers, kv_heads, head_dim;
    int32_t page_tokens; /* a power of two, 16..256 */
    int32_t n_pages;
    lk_dtype type;
} lk_kv_shape;

size_t lk_kv_page_bytes(const lk_backend *be, const lk_kv_shape *shape); /* keys and values of one page over all layers */
lk_status lk_kv_create(lk_backend *be, lk_kv **kv, const lk_kv_shape *shape);
void lk_kv_destroy(lk_backend *be, lk_kv *kv);
/* Where page p begins: pages lie behind one another in the order of their numbers, lk_kv_page_bytes each, 64-byte aligned. A run of pages
 * that no sequence uses is memory for anything else (adapters). */
void *lk_kv_page(lk_kv *kv, int32_t page);

/* Writes k[T,G*D], v[T,G*D] (k already rotated) of the batch's rows into the pages of their sequences. */
lk_status lk_kv_write(lk_backend *be, const lk_batch *batch, lk_kv *kv, int32_t layer, const lk_tensor *k, const lk_tensor *v);

/* lk_rope of q[T,heads*D] and of k, then lk_kv_write of k and v, in one go where the backend can; the same bits in the pages and in q. What
 * k holds afterwards means nothing. */
lk_status lk_rope_kv_write(lk_backend *be, const lk_batch *batch, lk_kv *kv, int32_t layer, int64_t heads, const lk_tensor *q,
                           const lk_tensor *k, const lk_tensor *v, const lk_tensor *cos_sin);

/* o[T,H*D]: each row of q attends to its sequence's cached positions up to its own. Prefill chunks and decode alike: the result
 * of a row depends only on its query, its position and the cached values. lk_kv_write of the same rows must have come first. */
lk_status lk_paged_attention(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *o, const lk_tensor *q,
                             const lk_kv *kv, int32_t layer);

/* ---------------------------------------------------------------------------------------------- loss and optimiser */

/* Linear head and cross-entropy in one, in chunks of rows, so that the [T,V] logits never exist at once (Liger's fused linear
 * cross-entropy). For rows with labels[t] >= 0: nll[t] = logsumexp(logits) - logits[label]; hits[t] = 1 when the label is the arg max.
 * Rows with labels[t] < 0 are ignored: nll 0, hits 0, dx 0, and no product is computed for them.
 * dx[T,C] = grad_scale * (softmax(logits) - onehot(label)) * head, or NULL for evaluation. nll[T] F32, hits[T] U8 or NULL. labels host
 * memory. cap: 0, or the soft cap of the logits (lk_cap), here and in their gradient. */
lk_status lk_linear_loss(lk_backend *be, float *nll, uint8_t *hits, const lk_tensor *dx, const lk_tensor *x, const lk_matrix *head,
                         const int32_t *labels, float grad_scale, float cap);

/* What of a head is trained, or added to it. */
typedef struct lk_head_part {
    float *dw;          /* [V,C] F32, += dlogits^T x; NULL: the head itself is frozen */
    const int32_t *ids; /* dw is [n_ids,C], of these rows of the head, in fp32 whatever `compute` is; NULL: of all. Host memory */
    int64_t n_ids;
    const lk_lora *factors;    /* logits += scale * (drop(x) A[R,C]^T) B[V,R]^T, F32, before the cap; NULL: none. da and db accumulate where
                                * they are there */
    const lk_dropout *dropout; /* of the factors, as lk_lora_forward's for site `site` */
    int32_t site;
} lk_head_part;

/* lk_linear_loss of a head with these parts. Gradients are made when dx is there, and sum over rows in their order. */
lk_status lk_linear_loss_trained(lk_backend *be, float *nll, uint8_t *hits, const lk_tensor *dx, const lk_tensor *x, const lk_matrix *head,
                                 const lk_head_part *part, const int32_t *labels, float grad_scale, float cap);

/* sum of squares of x[n] in double, in a fixed order. *out is host memory. */
lk_status lk_sum_squares(lk_backend *be, double *out, const float *x, int64_t n);

typedef struct lk_adamw_step {
    float lr, beta1, beta2, eps, weight_decay;
    int64_t step;     /* 1 for the first update */
    float grad_scale; /* gradients are multiplied by this first (clipping) */
} lk_adamw_step;

/* AdamW (Loshchilov & Hutter 2019) as torch.optim.AdamW: p *= 1 - lr*wd; m = b1*m + (1-b1)*g; v = b2*v + (1-b2)*g^2;
 * p -= lr/(1-b1^t) * m / (sqrt(v)/sqrt(1-b2^t) + eps). All F32 [n]. Element-wise: any partition gives the same bits. */
lk_status lk_adamw(lk_backend *be, float *p, const float *g, float *m, float *v, int64_t n, const lk_adamw_step *step);

/* AdamW with its two moments in 8 bits, as bitsandbytes' AdamW8bit on a GPU (Dettmers et al. 2022, 8-bit Optimizers via Block-wise
 * Quantization; kOptimizerStatic8bit2StateBlockwise in csrc/kernels.cu of 0.50). Blocks of LK_ADAMW8_BLOCK values share a scale, the
 * block's largest magnitude; m8 indexes the signed dynamic map, v8 the unsigned one (kernels/dynamic_map.h). For each element, in fp32: g
 * *= grad_scale; m = b1*(map[m8]*m_scale) + (1-b1)*g; v = b2*(map[v8]*v_scale) + (1-b2)*g^2; p = (p - lr/(1-b1^t) * m /
 * (sqrt(v)/sqrt(1-b2^t) + eps)) * (1 - lr*wd)         -- decayed after the update, unlike lk_adamw and then each moment divided by its
 * block's new scale takes the nearest code, the even one of two that are as near; a negative m that would become 0 takes the code below, so
 * that its sign stays. An element whose gradient is not finite keeps its p, and its moments become 0. The state of zero moments is scale 0,
 * with any codes; a block whose moments are all zero gets the codes of zero. m8, v8 U8 [n]; m_scale, v_scale F32 [ceil(n /
 * LK_ADAMW8_BLOCK)]. p, g F32 [n]. Blocks are independent: any partition at multiples of LK_ADAMW8_BLOCK gives the same bits.
 *
 * What differs from bitsandbytes: its kernel leaves fused multiply-adds to the compiler and divides and takes powers approximately (some
 * 1e-6 of the value); here every operation rounds once and nothing is fused. Its CPU backend differs from its kernel: it decays p first,
 * does not keep the sign of m, and picks codes from a grid of 65536 points. It leaves tensors of fewer than 4096 elements in fp32: here
 * that is the caller's choice. */
enum { LK_ADAMW8_BLOCK = 256 };
lk_status lk_adamw8(lk_backend *be, float *p, const float *g, uint8_t *m8, uint8_t *v8, float *m_scale, float *v_scale, int64_t n,
                    const lk_adamw_step *step);

/* ---------------------------------------------------------------------------------------------- sampling */

/* How one row of logits becomes a token. Order: logit bias, penalties, temperature, top-k, top-p, min-p, draw. */
typedef struct lk_sample_request {
    float temperature;        /* 0 = greedy (lowest id among equals) */
    float top_p;              /* 1 = off */
    float min_p;              /* 0 = off: drops tokens below min_p * the largest probability */
    int32_t top_k;            /* 0 = off */
    float repetition_penalty; /* 1 = off; CTRL's: positive logits divided, negative multiplied, for tokens seen in prompt or output */
    float presence_penalty, frequency_penalty; /* OpenAI's: subtracted, over the output */
    const int32_t *seen; /* distinct token ids of prompt and output, with their counts in the output (0: only in the prompt) */
    const int32_t *seen_counts;
    int32_t n_seen;
    const int32_t *bias_ids;
    const float *bias;
    int32_t n_bias;
    const int32_t *banned; /* ids that may not be drawn (stop tokens before min_tokens) */
    int32_t n_banned;
    /* Behind an lk_sample_begin that has not ended: 1 + the row of that sampling whose token counts as seen too, once more than
     * seen_counts says; 0: none. */
    int32_t pending;
    lk_philox_key key;  /* the request's own generator: the draw is lk_philox(key, 0, counter) */
    uint64_t counter;   /* number of tokens generated so far */
    int32_t n_logprobs; /* 0..20 alternatives to report; -1: no logprob wanted */
} lk_sample_request;

enum { LK_MAX_LOGPROBS = 20 };

typedef struct lk_sample_result {
    int32_t token;
    float logprob; /* of the token, log softmax of the raw logits (before any processing), as OpenAI reports */
    int32_t n_top;
    int32_t top_ids[LK_MAX_LOGPROBS]; /* by falling logprob, lower id first among equals */
    float top_logprobs[LK_MAX_LOGPROBS];
} lk_sample_result;

/* logits[R,V] F32; row r by requests[r]. Host arrays. A row without any finite logit is LK_ERR_FORMAT (a broken model or adapter) and
 * result.token -1; the other rows are still answered. The draw walks the survivors by rising id: the first whose running sum of
 * probabilities exceeds lk_philox_uniform(word 0) times their total. */
lk_status lk_sample(lk_backend *be, const lk_tensor *logits, const lk_sample_request *requests, lk_sample_result *results);

/* The same in two halves, where lk_backend_ahead: begin queues it (requests and what they point to may be reused on return), end waits for
 * the oldest one begun and gives its results. At most two are under way. The tokens of the last one begun are what lk_drawn and `pending`
 * name. LK_ERR_FORMAT, as above, comes from end. */
lk_status lk_sample_begin(lk_backend *be, const lk_tensor *logits, const lk_sample_request *requests);
lk_status lk_sample_end(lk_backend *be, lk_sample_result *results);

#ifdef __cplusplus
}
#endif
#endif
