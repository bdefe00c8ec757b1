/* kernels/cuda/blas.h over cuBLASLt.
 *
 * Row-major on a column-major library: the memory of a row-major [r,c] is that of a column-major [c,r], so D = op(A) op(B) is computed as
 * D^T = op(B)^T op(A)^T with the two operands exchanged and nothing moved. cuBLASLt also knows row order, but its epilogues are written for
 * columns: exchanged, the bias runs along the n values of a row, as it should.
 *
 * Repeatability. Only algorithms with one path through k are admitted (split 1, no reduction scheme); with `split`, also those that cut k
 * and join the pieces in fp32 through the workspace in a fixed order, never those that join in the output. An algorithm follows from the
 * shape, the strides, the types and the alignment of the pointers by cuBLASLt's heuristics, which measure nothing: the same call gives the
 * same bits, in this process and the next.
 *
 * What this does not promise: that a row keeps its bits when m changes. Another m may get another tile, and tiles may walk k in other
 * steps. Training repeats the same m for the same batch, which is all that resuming needs. Serving, where a
 * token's logits must not depend on its company, has to bring a constant m here (prefill chunks padded to one size) and its own kernel
 * for the few rows of a decode step.
 *
 * Rejected: cuBLAS's older interface (its workspace and its choice of algorithm belong to the handle, and a bias would be one more
 * pass); timing the candidates at the first call (the fastest changes from run to run, and the bits with it). */
#include "kernels/cuda/blas.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cublasLt.h>

/* 32 MiB is what NVIDIA recommends on Hopper; older GPUs want less. */
enum { WORKSPACE = 32 << 20, SLOTS = 1024, PROBES = 8, CANDIDATES = 16 };

/* All that the choice of an algorithm may depend on. Compared as bytes: zeroed before it is filled. */
typedef struct shape_key {
    int64_t m, n, k, lda, ldb, ldc, ldd;
    uint32_t align_a, align_b, align_c, align_d, align_bias;
    uint8_t type, d_type, a_transposed, b_transposed, accumulates, in_place, split, unused;
} shape_key;

typedef struct chosen {
    bool taken;
    shape_key key;
    cublasLtMatmulAlgo_t algo;
    size_t workspace;
} chosen;

struct lk_blas {
    cublasLtHandle_t handle;
    void *workspace;
    chosen slots[SLOTS]; /* by hash, a few probes, the first overwritten when all are taken: choosing again gives the same */
};

static lk_status refused(lk_error *err, cublasStatus_t s, const char *what)
{
    lk_status code = s == CUBLAS_STATUS_ALLOC_FAILED    ? LK_ERR_MEMORY
                     : s == CUBLAS_STATUS_NOT_SUPPORTED ? LK_ERR_UNSUPPORTED
                                                        : LK_ERR_INTERNAL;
    return lk_fail(err, code, "%s: cuBLASLt says %s (%s)", what, cublasLtGetStatusString(s), cublasLtGetStatusName(s));
}

size_t lk_blas_workspace_bytes(void) { return WORKSPACE; }

lk_status lk_blas_create(lk_blas **blas, const lk_rt_device *device, lk_error *err)
{
    *blas = NULL;
    lk_blas *b = calloc(1, sizeof *b);
    if (!b) return lk_fail(err, LK_ERR_MEMORY, "no memory for the table of matrix products");
    lk_status status = lk_rt_malloc(&b->workspace, WORKSPACE, err);
    if (status) {
        status = lk_error_prefix(err, status, "workspace of the matrix products");
        goto out;
    }
    cublasStatus_t s = cublasLtCreate(&b->handle);
    if (s) {
        char what[128];
        snprintf(what, sizeof what, "starting cuBLASLt on GPU %d (%s)", device->ordinal, device->name);
        status = refused(err, s, what);
        goto out;
    }
    *blas = b;
    return LK_OK;
out:
    lk_blas_destroy(b);
    return status;
}

void lk_blas_destroy(lk_blas *blas)
{
    if (!blas) return;
    if (blas->handle) (void)cublasLtDestroy(blas->handle);
    lk_rt_free(blas->workspace);
    free(blas);
}

/* ------------------------------------------------------------------------------------------------------------ one product */

/* "y[2048,4096] = x[2048,4096] w[4096,4096]^T" for messages. */
static void describe(char *out, size_t size, const lk_gemm *g)
{
    snprintf(out, size, "product [%lld,%lld]%s x [%lld,%lld]%s of %s into %s%s%s", (long long)g->m, (long long)g->k,
             g->a_transposed ? " (transposed)" : "", (long long)g->k, (long long)g->n, g->b_transposed ? " (transposed)" : "",
             lk_dtype_name(g->type), lk_dtype_name(g->d_type), g->bias ? " with bias" : "", g->beta != 0.0f ? ", added to c" : "");
}

static lk_status check(const lk_gemm *g, lk_error *err)
{
    char what[200];
    const char *wrong = NULL;
    if (g->m < 0 || g->n < 0 || g->k <= 0)
        wrong = "sizes must be positive";
    else if ((g->type != LK_BF16 && g->type != LK_F32) || (g->d_type != LK_BF16 && g->d_type != LK_F32))
        wrong = "types are bf16 and f32";
    else if (g->lda < (g->a_transposed ? g->m : g->k))
        wrong = "lda is less than a row of a";
    else if (g->ldb < (g->b_transposed ? g->k : g->n))
        wrong = "ldb is less than a row of b";
    else if (g->ldd < g->n)
        wrong = "ldd is less than a row of d";
    else if (g->beta != 0.0f && g->c && g->ldc < g->n)
        wrong = "ldc is less than a row of c";
    if (!wrong) return LK_OK;
    describe(what, sizeof what, g);
    return lk_fail(err, LK_ERR_ARGUMENT, "%s: %s", what, wrong);
}

/* The power of two that p is a multiple of, at most 256: cuBLASLt takes 256 for granted unless told. */
static uint32_t alignment(const void *p)
{
    uintptr_t bits = (uintptr_t)p | 256;
    return (uint32_t)(bits & (~bits + 1));
}

static shape_key key_of(const lk_gemm *g, const void *c, int64_t ldc)
{
    shape_key key;
    memset(&key, 0, sizeof key);
    key.m = g->m, key.n = g->n, key.k = g->k;
    key.lda = g->lda, key.ldb = g->ldb, key.ldc = ldc, key.ldd = g->ldd;
    key.align_a = alignment(g->a), key.align_b = alignment(g->b), key.align_c = alignment(c), key.align_d = alignment(g->d);
    key.align_bias = g->bias ? alignment(g->bias) : 0;
    key.type = (uint8_t)g->type, key.d_type = (uint8_t)g->d_type;
    key.a_transposed = g->a_transposed, key.b_transposed = g->b_transposed;
    key.accumulates = g->beta != 0.0f, key.in_place = c == g->d, key.split = g->split;
    return key;
}

/* FNV-1a. */
static uint64_t hash_of(const shape_key *key)
{
    const unsigned char *bytes = (const unsigned char *)key;
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < sizeof *key; i++) h = (h ^ bytes[i]) * 1099511628211u;
    return h ^ (h >> 29);
}

/* What cuBLASLt is told of one call: its "a" is our b and its "b" our a. All on the stack, nothing to free. */
typedef struct call {
    cublasLtMatmulDescOpaque_t op;
    cublasLtMatrixLayoutOpaque_t a, b, c, d;
} call;

static cublasStatus_t set_op(cublasLtMatmulDesc_t op, cublasLtMatmulDescAttributes_t name, const void *value, size_t size)
{
    return cublasLtMatmulDescSetAttribute(op, name, value, size);
}

static cudaDataType_t cuda_type(lk_dtype type) { return type == LK_BF16 ? CUDA_R_16BF : CUDA_R_32F; }

static cublasStatus_t call_init(call *x, const lk_gemm *g, int64_t ldc)
{
    cublasOperation_t a = g->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, b = g->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    uint64_t m = (uint64_t)g->m, n = (uint64_t)g->n, k = (uint64_t)g->k;
    cudaDataType_t in = cuda_type(g->type), out = cuda_type(g->d_type);
    cublasStatus_t s;
    if ((s = cublasLtMatmulDescInit(&x->op, CUBLAS_COMPUTE_32F, CUDA_R_32F))) return s;
    if ((s = set_op(&x->op, CUBLASLT_MATMUL_DESC_TRANSA, &a, sizeof a))) return s;
    if ((s = set_op(&x->op, CUBLASLT_MATMUL_DESC_TRANSB, &b, sizeof b))) return s;
    if (g->bias) {
        uint32_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        int32_t type = cuda_type(g->d_type); /* as the header demands where products are of bf16 or fp32 */
        if ((s = set_op(&x->op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue))) return s;
        if ((s = set_op(&x->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g->bias, sizeof g->bias))) return s;
        if ((s = set_op(&x->op, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type))) return s;
    }
    if ((s = g->b_transposed ? cublasLtMatrixLayoutInit(&x->a, in, k, n, g->ldb) : cublasLtMatrixLayoutInit(&x->a, in, n, k, g->ldb)))
        return s;
    if ((s = g->a_transposed ? cublasLtMatrixLayoutInit(&x->b, in, m, k, g->lda) : cublasLtMatrixLayoutInit(&x->b, in, k, m, g->lda)))
        return s;
    if ((s = cublasLtMatrixLayoutInit(&x->c, out, n, m, ldc))) return s;
    return cublasLtMatrixLayoutInit(&x->d, out, n, m, g->ldd);
}

static cublasStatus_t preference_init(cublasLtMatmulPreferenceOpaque_t *p, const shape_key *key)
{
    uint64_t workspace = WORKSPACE;
    uint32_t schemes = key->split ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : CUBLASLT_REDUCTION_SCHEME_NONE;
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        const void *value;
        size_t size;
    } set[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &key->align_b, 4},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &key->align_a, 4},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &key->align_c, 4},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &key->align_d, 4},
    };
    cublasStatus_t s = cublasLtMatmulPreferenceInit(p);
    for (size_t i = 0; !s && i < sizeof set / sizeof *set; i++)
        s = cublasLtMatmulPreferenceSetAttribute(p, set[i].name, set[i].value, set[i].size);
    return s;
}

/* The heuristics honour the mask; an algorithm is asked all the same, because a wrong answer here would be a silent one. */
static bool admitted(const cublasLtMatmulAlgo_t *algo, bool split)
{
    int32_t pieces = 0;
    uint32_t scheme = 0;
    size_t written = 0;
    if (cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &pieces, sizeof pieces, &written)) return false;
    if (cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme, sizeof scheme, &written)) return false;
    if (pieces <= 1 && scheme == CUBLASLT_REDUCTION_SCHEME_NONE) return pieces >= 0;
    return split && pieces > 1 && scheme == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
}

static lk_status choose(lk_blas *blas, chosen *slot, const shape_key *key, const call *x, const lk_gemm *g, lk_error *err)
{
    char what[200];
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    int n = 0;
    cublasStatus_t s = preference_init(&preference, key);
    /* The library's prototypes take descriptors as plain pointers; it does not write to them here. */
    call copy = *x;
    if (!s)
        s = cublasLtMatmulAlgoGetHeuristic(blas->handle, &copy.op, &copy.a, &copy.b, &copy.c, &copy.d, &preference, CANDIDATES, found, &n);
    describe(what, sizeof what, g);
    if (s) return refused(err, s, what);
    for (int i = 0; i < n; i++) {
        if (found[i].state || found[i].workspaceSize > WORKSPACE || !admitted(&found[i].algo, g->split)) continue;
        slot->key = *key;
        slot->algo = found[i].algo;
        slot->workspace = found[i].workspaceSize;
        slot->taken = true;
        return LK_OK;
    }
    return lk_fail(
        err, LK_ERR_UNSUPPORTED,
        "%s: cuBLASLt has no repeatable algorithm for it (lda %lld, ldb %lld, ldd %lld, aligned to %u, %u and %u bytes): strides "
        "should be multiples of 8 values and pointers of 16 bytes",
        what, (long long)g->lda, (long long)g->ldb, (long long)g->ldd, key->align_a, key->align_b, key->align_d);
}

lk_status lk_blas_gemm(lk_blas *blas, const lk_gemm *g, lk_rt_stream stream, lk_error *err)
{
    LK_TRY(check(g, err));
    if (!g->m || !g->n) return LK_OK;
    const void *c = g->beta != 0.0f && g->c ? g->c : g->d;
    int64_t ldc = c == g->d ? g->ldd : g->ldc;
    char what[200];
    call x;
    cublasStatus_t s = call_init(&x, g, ldc);
    if (s) {
        describe(what, sizeof what, g);
        return refused(err, s, what);
    }
    shape_key key = key_of(g, c, ldc);
    uint64_t at = hash_of(&key);
    chosen *slot = NULL, *first = &blas->slots[at % SLOTS];
    for (uint64_t i = 0; i < PROBES && !slot; i++) {
        chosen *here = &blas->slots[(at + i) % SLOTS];
        if (!here->taken || !memcmp(&here->key, &key, sizeof key)) slot = here;
    }
    if (!slot) first->taken = false, slot = first;
    if (!slot->taken) LK_TRY(choose(blas, slot, &key, &x, g, err));
    s = cublasLtMatmul(blas->handle, &x.op, &g->alpha, g->b, &x.a, g->a, &x.b, &g->beta, c, &x.c, g->d, &x.d, &slot->algo, blas->workspace,
                       WORKSPACE, stream);
    if (!s) return LK_OK;
    describe(what, sizeof what, g);
    return refused(err, s, what);
}
