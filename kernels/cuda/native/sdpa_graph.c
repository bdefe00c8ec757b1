/* Building attention graphs for cuDNN's backend API.
 *
 * A graph is written down by small functions that latch the first failure: after it they do nothing, and the end reports it. So the two
 * graphs read straight down like the formulas. Every descriptor made is owned by the plan and lives as long as it.
 *
 * Forward, per document and head, with rows i and columns j:
 *     s = q k^T * scale;  s[i,j] = -inf where i or j lie past the document, j > i, or j <= i - window;
 *     m = max_j s;  e = exp(s - m);  z = sum_j e;  stats = m + log z;  o = (e / z) v.
 * Backward (Dao et al., FlashAttention-2, arXiv 2307.08691, section 3.2):
 *     p = exp(s - stats);  dv = p^T dout;  dp = dout v^T;  ds = p * (dp - sum_d dout * o) * scale;  dq = ds k;  dk = ds^T q.
 * With grouped heads dk and dv of a group's query heads are added by a reduction.
 *
 * Repeatable backward: NVIDIA's usual graph lets the blocks of a row of queries add into an fp32 dq in any order. Multiplying ds k straight
 * into dq makes the engine write ds to its workspace and read it back in a fixed order instead; that workspace is documents * heads *
 * longest^2 bf16 values, and sdpa.c cuts calls so that it stays small. It is this form of the graph that makes it repeatable, as in
 * NVIDIA's front end: 9.19 does not mark the engine of the usual one as nondeterministic. Marked engines are refused all the same. */
#include "kernels/cuda/native/sdpa_graph.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef cudnnBackendDescriptor_t desc;

enum { MOST_MADE = 256, MOST_OPS = 64, CANDIDATES = 16 };
/* Names of tensors within a graph: LK_SDPA_*, their ragged offsets, constants (a minus infinity for each use), what is never in memory. */
enum {
    UID_TENSOR = 1,
    UID_OFFSETS = 100,
    UID_SCALE = 200,
    UID_ONE,
    UID_WINDOW,
    UID_INFINITY = 210,
    MOST_INFINITIES = 3,
    UID_VIRTUAL = 1000
};

struct lk_sdpa_plan {
    lk_sdpa_spec spec;
    desc made[MOST_MADE];
    int n_made;
    desc plan;
    size_t workspace;
    int64_t engine;
    int infinities;
};

typedef struct graph {
    const lk_cudnn *dnn;
    const lk_sdpa_spec *spec;
    lk_sdpa_plan *plan; /* owner of descriptors */
    desc ops[MOST_OPS];
    int n_ops;
    int64_t virtuals;
    desc offsets[LK_SDPA_LENGTHS];
    lk_status status;
    lk_error *err;
} graph;

/* ------------------------------------------------------------------------------------------------------------- descriptors */

static void failed(graph *g, cudnnStatus_t s, const char *what)
{
    if (!g->status) g->status = lk_cudnn_refused(g->dnn, g->err, s, what);
}

static desc make(graph *g, cudnnBackendDescriptorType_t type, const char *what)
{
    if (g->status) return NULL;
    if (g->plan->n_made == MOST_MADE) {
        g->status = lk_fail(g->err, LK_ERR_INTERNAL, "attention graph: more than %d descriptors", MOST_MADE);
        return NULL;
    }
    desc d = NULL;
    cudnnStatus_t s = g->dnn->cudnnBackendCreateDescriptor(type, &d);
    if (s) {
        failed(g, s, what);
        return NULL;
    }
    g->plan->made[g->plan->n_made++] = d;
    return d;
}

static void set(graph *g, desc d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t n, const void *values,
                const char *what)
{
    if (g->status) return;
    cudnnStatus_t s = g->dnn->cudnnBackendSetAttribute(d, name, type, n, values);
    if (s) failed(g, s, what);
}

static void set_desc(graph *g, desc d, cudnnBackendAttributeName_t name, desc value, const char *what)
{
    if (value) set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value, what);
}

static void finalize(graph *g, desc d, const char *what)
{
    if (g->status) return;
    cudnnStatus_t s = g->dnn->cudnnBackendFinalize(d);
    if (s) failed(g, s, what);
}

static desc operation(graph *g, desc op, const char *what)
{
    finalize(g, op, what);
    if (g->status) return NULL;
    if (g->n_ops == MOST_OPS) {
        g->status = lk_fail(g->err, LK_ERR_INTERNAL, "attention graph: more than %d operations", MOST_OPS);
        return NULL;
    }
    g->ops[g->n_ops++] = op;
    return op;
}

/* ----------------------------------------------------------------------------------------------------------------- tensors */

typedef enum place { IN_MEMORY, VIRTUAL, BY_VALUE } place;

/* In memory bf16 rows begin at 16 bytes and numbers at those of their type: a call may begin at any head. */
static desc tensor(graph *g, int64_t uid, cudnnDataType_t type, const int64_t dim[4], const int64_t stride[4], place where, desc ragged)
{
    const char *what = "attention graph, a tensor";
    int64_t align = type == CUDNN_DATA_FLOAT && where == IN_MEMORY ? 4 : 16;
    bool is_virtual = where == VIRTUAL, by_value = where == BY_VALUE;
    desc t = make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR, what);
    set(g, t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid, what);
    set(g, t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type, what);
    set(g, t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dim, what);
    set(g, t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, stride, what);
    set(g, t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &align, what);
    set(g, t, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual, what);
    set(g, t, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value, what);
    set_desc(g, t, CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC, ragged, what);
    finalize(g, t, what);
    return t;
}

/* A value for every query and key of a head: [docs, heads, longest, longest]. */
static desc scores(graph *g, cudnnDataType_t type)
{
    int64_t h = g->spec->heads, s = g->spec->longest;
    return tensor(g, UID_VIRTUAL + g->virtuals++, type, (int64_t[4]){g->spec->docs, h, s, s}, (int64_t[4]){h * s * s, s * s, s, 1}, VIRTUAL,
                  NULL);
}

/* The same memory seen with queries and keys exchanged. */
static desc scores_transposed(graph *g, cudnnDataType_t type)
{
    int64_t h = g->spec->heads, s = g->spec->longest;
    return tensor(g, UID_VIRTUAL + g->virtuals++, type, (int64_t[4]){g->spec->docs, h, s, s}, (int64_t[4]){h * s * s, s * s, 1, s}, VIRTUAL,
                  NULL);
}

/* A value for every query of a head. */
static desc column(graph *g)
{
    int64_t h = g->spec->heads, s = g->spec->longest;
    return tensor(g, UID_VIRTUAL + g->virtuals++, CUDNN_DATA_FLOAT, (int64_t[4]){g->spec->docs, h, s, 1}, (int64_t[4]){h * s, s, 1, 1},
                  VIRTUAL, NULL);
}

/* Head vectors of every query head, dense. */
static desc vectors(graph *g, cudnnDataType_t type)
{
    int64_t h = g->spec->heads, s = g->spec->longest, d = g->spec->head_dim;
    return tensor(g, UID_VIRTUAL + g->virtuals++, type, (int64_t[4]){g->spec->docs, h, s, d}, (int64_t[4]){h * s * d, s * d, d, 1}, VIRTUAL,
                  NULL);
}

static desc constant(graph *g, int64_t uid)
{
    const int64_t one[4] = {1, 1, 1, 1};
    return tensor(g, uid, CUDNN_DATA_FLOAT, one, one, BY_VALUE, NULL);
}

/* At most MOST_INFINITIES in a graph. */
static desc infinity(graph *g) { return constant(g, UID_INFINITY + g->plan->infinities++); }

static desc ragged_offset(graph *g, int which)
{
    const int64_t dim[4] = {g->spec->docs + 1, 1, 1, 1}, stride[4] = {1, 1, 1, 1};
    if (!g->offsets[which]) g->offsets[which] = tensor(g, UID_OFFSETS + which, CUDNN_DATA_INT32, dim, stride, IN_MEMORY, NULL);
    return g->offsets[which];
}

/* Packed rows of bf16 heads: [docs, heads, longest, D], where a document begins its ragged offset says. */
static desc rows(graph *g, int which, int64_t heads)
{
    int64_t s = g->spec->longest, d = g->spec->head_dim, stride = g->spec->stride[which];
    return tensor(g, UID_TENSOR + which, CUDNN_DATA_BFLOAT16, (int64_t[4]){g->spec->docs, heads, s, d},
                  (int64_t[4]){s * stride, d, stride, 1}, IN_MEMORY, ragged_offset(g, which));
}

/* [docs, heads, D, longest] of the same memory. */
static desc rows_transposed(graph *g, int which, int64_t heads)
{
    int64_t s = g->spec->longest, d = g->spec->head_dim, stride = g->spec->stride[which];
    return tensor(g, UID_TENSOR + which, CUDNN_DATA_BFLOAT16, (int64_t[4]){g->spec->docs, heads, d, s},
                  (int64_t[4]){s * stride, d, 1, stride}, IN_MEMORY, ragged_offset(g, which));
}

/* One fp32 value for every row and head, packed [T, stride]. */
static desc row_values(graph *g, int which)
{
    int64_t s = g->spec->longest, stride = g->spec->stride[which];
    return tensor(g, UID_TENSOR + which, CUDNN_DATA_FLOAT, (int64_t[4]){g->spec->docs, g->spec->heads, s, 1},
                  (int64_t[4]){s * stride, 1, stride, 1}, IN_MEMORY, ragged_offset(g, which));
}

/* The same numbers for queries and keys, under two names as the pattern has it. */
static desc lengths(graph *g, int which)
{
    const int64_t dim[4] = {g->spec->docs, 1, 1, 1}, stride[4] = {1, 1, 1, 1};
    return tensor(g, UID_TENSOR + which, CUDNN_DATA_INT32, dim, stride, IN_MEMORY, NULL);
}

/* -------------------------------------------------------------------------------------------------------------- operations */

/* y = mode(x), mode(x, b) or, for a selection, t ? x : b, computed in `math`. `axis` only for GEN_INDEX, else -1. */
static desc pointwise(graph *g, cudnnPointwiseMode_t mode, cudnnDataType_t math, desc x, desc b, desc t, desc y, int64_t axis)
{
    const char *what = "attention graph, an elementwise operation";
    desc p = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR, what);
    set(g, p, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode, what);
    set(g, p, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &math, what);
    if (axis >= 0) set(g, p, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis, what);
    finalize(g, p, what);
    desc op = make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, what);
    set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, p, what);
    set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x, what);
    set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b, what);
    set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t, what);
    set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y, what);
    operation(g, op, what);
    return y;
}

static desc unary(graph *g, cudnnPointwiseMode_t mode, desc x, desc y)
{
    return pointwise(g, mode, CUDNN_DATA_FLOAT, x, NULL, NULL, y, -1);
}

static desc binary(graph *g, cudnnPointwiseMode_t mode, desc x, desc b, desc y)
{
    return pointwise(g, mode, CUDNN_DATA_FLOAT, x, b, NULL, y, -1);
}

static desc compare(graph *g, cudnnPointwiseMode_t mode, desc x, desc b)
{
    return pointwise(g, mode, CUDNN_DATA_BOOLEAN, x, b, NULL, scores(g, CUDNN_DATA_BOOLEAN), -1);
}

static desc index_of(graph *g, desc like, cudnnDataType_t math, int64_t axis)
{
    return pointwise(g, CUDNN_POINTWISE_GEN_INDEX, math, like, NULL, NULL, scores(g, CUDNN_DATA_INT32), axis);
}

/* x where `keep`, else minus infinity. */
static desc keep_where(graph *g, desc x, desc keep)
{
    return pointwise(g, CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, x, infinity(g), keep, scores(g, CUDNN_DATA_FLOAT), -1);
}

static desc reduction(graph *g, cudnnReduceTensorOp_t how, desc x, desc y)
{
    const char *what = "attention graph, a reduction";
    cudnnDataType_t math = CUDNN_DATA_FLOAT;
    desc r = make(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR, what);
    set(g, r, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &how, what);
    set(g, r, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &math, what);
    finalize(g, r, what);
    desc op = make(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, what);
    set_desc(g, op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, r, what);
    set_desc(g, op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x, what);
    set_desc(g, op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y, what);
    operation(g, op, what);
    return y;
}

/* c = a b, of whose m, n and k some are as long as the document: their override is the lengths, else NULL. */
static desc matmul(graph *g, desc a, desc b, desc c, desc m, desc n, desc k)
{
    const char *what = "attention graph, a product";
    cudnnDataType_t math = CUDNN_DATA_FLOAT;
    desc p = make(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR, what);
    set(g, p, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &math, what);
    finalize(g, p, what);
    desc op = make(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, what);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_DESC, p, what);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a, what);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b, what);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c, what);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, m, what);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, n, what);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, k, what);
    operation(g, op, what);
    return c;
}

static desc reshape(graph *g, desc x, desc y)
{
    const char *what = "attention graph, a transposition";
    desc op = make(g, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, what);
    set_desc(g, op, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x, what);
    set_desc(g, op, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y, what);
    operation(g, op, what);
    return y;
}

/* ------------------------------------------------------------------------------------------------------------------ graphs */

static desc mask_padding(graph *g, desc s, desc rows_there, desc cols_there)
{
    desc row = index_of(g, s, CUDNN_DATA_INT32, 2);
    desc col = index_of(g, s, CUDNN_DATA_INT32, 3);
    desc row_inside = compare(g, CUDNN_POINTWISE_CMP_LT, row, rows_there);
    desc col_inside = compare(g, CUDNN_POINTWISE_CMP_LT, col, cols_there);
    return keep_where(g, s, compare(g, CUDNN_POINTWISE_LOGICAL_AND, row_inside, col_inside));
}

/* Keeps keys at or before the query and, with a window, later than query - window. */
static desc mask_band(graph *g, desc s)
{
    desc row = index_of(g, s, CUDNN_DATA_FLOAT, 2);
    desc col = index_of(g, s, CUDNN_DATA_FLOAT, 3);
    s = keep_where(g, s, compare(g, CUDNN_POINTWISE_CMP_GE, row, col));
    if (!g->spec->window) return s;
    row = index_of(g, s, CUDNN_DATA_FLOAT, 2);
    col = index_of(g, s, CUDNN_DATA_FLOAT, 3);
    col = pointwise(g, CUDNN_POINTWISE_ADD, CUDNN_DATA_FLOAT, col, constant(g, UID_WINDOW), NULL, scores(g, CUDNN_DATA_FLOAT), 3);
    return keep_where(g, s, compare(g, CUDNN_POINTWISE_CMP_GT, col, row));
}

static void forward(graph *g)
{
    const lk_sdpa_spec *spec = g->spec;
    desc nq = lengths(g, LK_SDPA_QUERIES), nkv = lengths(g, LK_SDPA_KEYS);
    desc s = matmul(g, rows(g, LK_SDPA_Q, spec->heads), rows_transposed(g, LK_SDPA_K, spec->kv_heads), scores(g, CUDNN_DATA_FLOAT), nq, nkv,
                    NULL);
    s = binary(g, CUDNN_POINTWISE_MUL, s, constant(g, UID_SCALE), scores(g, CUDNN_DATA_FLOAT));
    s = mask_padding(g, s, nq, nkv);
    s = mask_band(g, s);

    desc m = reduction(g, CUDNN_REDUCE_TENSOR_MAX, s, column(g));
    desc e = binary(g, CUDNN_POINTWISE_SUB, s, m, scores(g, CUDNN_DATA_FLOAT));
    e = unary(g, CUDNN_POINTWISE_EXP, e, scores(g, CUDNN_DATA_FLOAT));
    desc z = reduction(g, CUDNN_REDUCE_TENSOR_ADD, e, column(g));
    /* Part of the pattern also where nobody wants it. */
    desc log_z = unary(g, CUDNN_POINTWISE_LOG, z, column(g));
    binary(g, CUDNN_POINTWISE_ADD, m, log_z, spec->stats ? row_values(g, LK_SDPA_STATS) : column(g));
    desc p = binary(g, CUDNN_POINTWISE_DIV, e, z, scores(g, CUDNN_DATA_BFLOAT16));
    matmul(g, p, rows(g, LK_SDPA_V, spec->kv_heads), rows(g, LK_SDPA_O, spec->heads), nq, NULL, nkv);
}

/* `out` = a^T b per query head, the heads of a group added up: a dk or dv. */
static void group_product(graph *g, desc a, desc b, int out, desc nq, desc nkv)
{
    desc result = rows(g, out, g->spec->kv_heads);
    if (g->spec->heads == g->spec->kv_heads) {
        matmul(g, a, b, result, nkv, NULL, nq);
        return;
    }
    desc each = matmul(g, a, b, vectors(g, CUDNN_DATA_BFLOAT16), nkv, NULL, nq);
    reduction(g, CUDNN_REDUCE_TENSOR_ADD, each, result);
}

static void backward(graph *g)
{
    const lk_sdpa_spec *spec = g->spec;
    desc nq = lengths(g, LK_SDPA_QUERIES), nkv = lengths(g, LK_SDPA_KEYS), scale = constant(g, UID_SCALE);
    desc q = rows(g, LK_SDPA_Q, spec->heads), kt = rows_transposed(g, LK_SDPA_K, spec->kv_heads),
         vt = rows_transposed(g, LK_SDPA_V, spec->kv_heads), dout = rows(g, LK_SDPA_DOUT, spec->heads);

    /* sum over a head's vector of dout * o; the product by one is a place in the pattern where dropout would scale */
    desc product = binary(g, CUDNN_POINTWISE_MUL, dout, rows(g, LK_SDPA_O, spec->heads), vectors(g, CUDNN_DATA_FLOAT));
    desc sum = reduction(g, CUDNN_REDUCE_TENSOR_ADD, product, column(g));
    sum = binary(g, CUDNN_POINTWISE_MUL, sum, constant(g, UID_ONE), row_values(g, LK_SDPA_SUM));

    desc s = matmul(g, q, kt, scores(g, CUDNN_DATA_FLOAT), nq, nkv, NULL);
    s = binary(g, CUDNN_POINTWISE_MUL, s, scale, scores(g, CUDNN_DATA_FLOAT));
    s = mask_padding(g, s, nq, nkv);
    s = binary(g, CUDNN_POINTWISE_SUB, s, row_values(g, LK_SDPA_STATS), scores(g, CUDNN_DATA_FLOAT));
    s = mask_band(g, s);
    desc p = unary(g, CUDNN_POINTWISE_EXP, s, scores(g, CUDNN_DATA_FLOAT));
    group_product(g, reshape(g, p, scores_transposed(g, CUDNN_DATA_BFLOAT16)), dout, LK_SDPA_DV, nq, nkv);

    desc dp = matmul(g, dout, vt, scores(g, CUDNN_DATA_FLOAT), nq, nkv, NULL);
    desc ds = binary(g, CUDNN_POINTWISE_SUB, dp, sum, scores(g, CUDNN_DATA_FLOAT));
    ds = binary(g, CUDNN_POINTWISE_MUL, ds, p, scores(g, CUDNN_DATA_FLOAT));
    ds = binary(g, CUDNN_POINTWISE_MUL, ds, scale, scores(g, CUDNN_DATA_FLOAT));
    group_product(g, reshape(g, ds, scores_transposed(g, CUDNN_DATA_BFLOAT16)), q, LK_SDPA_DK, nq, nkv);

    int64_t stride = spec->stride[LK_SDPA_K], longest = spec->longest, d = spec->head_dim;
    desc k = reshape(g, kt,
                     tensor(g, UID_VIRTUAL + g->virtuals++, CUDNN_DATA_BFLOAT16, (int64_t[4]){spec->docs, spec->kv_heads, longest, d},
                            (int64_t[4]){longest * stride, d, stride, 1}, VIRTUAL, ragged_offset(g, LK_SDPA_K)));
    matmul(g, ds, k, rows(g, LK_SDPA_DQ, spec->heads), nq, NULL, nkv);
}

/* ------------------------------------------------------------------------------------------------------------------- plans */

/* A real device is named by its handle, as every user of cuDNN does; the names are marked as deprecated in favour of describing a device.
 */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
static const cudnnBackendAttributeName_t graph_handle = CUDNN_ATTR_OPERATIONGRAPH_HANDLE, plan_handle = CUDNN_ATTR_EXECUTION_PLAN_HANDLE;
#pragma GCC diagnostic pop

static void set_device(graph *g, desc d, cudnnBackendAttributeName_t by_handle, cudnnBackendAttributeName_t by_description,
                       const char *what)
{
    if (g->dnn->described)
        set_desc(g, d, by_description, g->dnn->described, what);
    else
        set(g, d, by_handle, CUDNN_TYPE_HANDLE, 1, &g->dnn->handle, what);
}

/* Whether the engine of a configuration is free of the mark of arbitrary order, and its number. Descriptors are read into ones made
 * beforehand. */
static bool repeatable(graph *g, desc config, int64_t *number)
{
    cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    int64_t n = 0;
    desc engine = make(g, CUDNN_BACKEND_ENGINE_DESCRIPTOR, "attention plan, reading an engine");
    if (g->status) return false;
    if (g->dnn->cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &engine)) return false;
    if (g->dnn->cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &n, number)) return false;
    if (g->dnn->cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                         CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &n, notes))
        return false;
    for (int64_t i = 0; i < n && i < CUDNN_NUMERICAL_NOTE_TYPE_COUNT; i++)
        if (notes[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) return false;
    return true;
}

/* Makes the plan of one configuration; false when this engine does not take it after all. */
static bool try_config(graph *g, desc config)
{
    int64_t number = -1, bytes = 0, n = 0;
    const char *what = "attention plan";
    if (!repeatable(g, config, &number)) return false;
    desc plan = make(g, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, what);
    set_desc(g, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config, what);
    /* A device by its description is part of the configuration already, but the plan wants it again. */
    set_device(g, plan, plan_handle, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, what);
    if (g->status || g->dnn->cudnnBackendFinalize(plan)) return false;
    if (g->dnn->cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n, &bytes)) return false;
    g->plan->plan = plan;
    g->plan->workspace = (size_t)bytes;
    g->plan->engine = number;
    return true;
}

static void choose_plan(graph *g)
{
    const char *what = "attention graph";
    desc whole = make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, what);
    set(g, whole, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->n_ops, g->ops, what);
    if (!g->dnn->described) set(g, whole, graph_handle, CUDNN_TYPE_HANDLE, 1, &g->dnn->handle, what);
    finalize(g, whole, what);

    static const cudnnBackendHeurMode_t modes[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK};
    for (size_t i = 0; i < sizeof modes / sizeof *modes && !g->status; i++) {
        desc heuristics = make(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, what), configs[CANDIDATES];
        set_desc(g, heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, whole, what);
        set(g, heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &modes[i], what);
        if (g->dnn->described) set_desc(g, heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, g->dnn->described, what);
        if (g->status || g->dnn->cudnnBackendFinalize(heuristics)) continue; /* no engine in this mode; the reason is reported below */
        for (int c = 0; c < CANDIDATES; c++) configs[c] = make(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, what);
        int64_t n = 0;
        if (g->status || g->dnn->cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                                          CANDIDATES, &n, configs))
            continue;
        for (int64_t c = 0; c < n && c < CANDIDATES && !g->status; c++)
            if (try_config(g, configs[c])) return;
    }
    failed(g, CUDNN_STATUS_NOT_SUPPORTED, g->spec->backward ? "no engine for the attention's backward" : "no engine for the attention");
}

lk_status lk_sdpa_plan_create(lk_sdpa_plan **out, const lk_cudnn *dnn, const lk_sdpa_spec *spec, lk_error *err)
{
    *out = NULL;
    lk_sdpa_plan *plan = calloc(1, sizeof *plan);
    if (!plan) return lk_fail(err, LK_ERR_MEMORY, "no memory for an attention plan");
    plan->spec = *spec;
    graph g = {.dnn = dnn, .spec = &plan->spec, .plan = plan, .err = err};
    if (spec->backward)
        backward(&g);
    else
        forward(&g);
    choose_plan(&g);
    if (g.status) {
        lk_sdpa_plan_destroy(plan, dnn);
        return lk_error_prefix(err, g.status, "%lld documents of up to %lld rows, %lld/%lld heads of %lld%s", (long long)spec->docs,
                               (long long)spec->longest, (long long)spec->heads, (long long)spec->kv_heads, (long long)spec->head_dim,
                               spec->window ? ", sliding window" : "");
    }
    *out = plan;
    return LK_OK;
}

void lk_sdpa_plan_destroy(lk_sdpa_plan *plan, const lk_cudnn *dnn)
{
    if (!plan) return;
    for (int i = plan->n_made; i-- > 0;) (void)dnn->cudnnBackendDestroyDescriptor(plan->made[i]);
    free(plan);
}

size_t lk_sdpa_plan_workspace(const lk_sdpa_plan *plan) { return plan->workspace; }
int64_t lk_sdpa_plan_engine(const lk_sdpa_plan *plan) { return plan->engine; }

lk_status lk_sdpa_plan_run(const lk_sdpa_plan *plan, const lk_cudnn *dnn, const lk_sdpa_pointers *pointers, void *workspace, lk_error *err)
{
    enum { MOST = LK_SDPA_TENSORS + LK_SDPA_LENGTHS + 3 + MOST_INFINITIES };
    int64_t uids[MOST];
    void *data[MOST];
    int64_t n = 0;
    /* by value: read before the call returns */
    float scale = pointers->scale, minus_infinity = -INFINITY, one = 1.0f, window = (float)plan->spec.window;
    for (int t = 0; t < LK_SDPA_LENGTHS; t++) {
        if (!plan->spec.stride[t]) continue;
        uids[n] = UID_TENSOR + t, data[n++] = pointers->tensor[t];
        uids[n] = UID_OFFSETS + t, data[n++] = pointers->offsets[t];
    }
    uids[n] = UID_TENSOR + LK_SDPA_QUERIES, data[n++] = pointers->lengths;
    uids[n] = UID_TENSOR + LK_SDPA_KEYS, data[n++] = pointers->lengths;
    uids[n] = UID_SCALE, data[n++] = &scale;
    for (int i = 0; i < plan->infinities; i++) uids[n] = UID_INFINITY + i, data[n++] = &minus_infinity;
    if (plan->spec.backward) uids[n] = UID_ONE, data[n++] = &one;
    if (plan->spec.window) uids[n] = UID_WINDOW, data[n++] = &window;

    desc pack = NULL;
    cudnnStatus_t s = dnn->cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
    if (!s) s = dnn->cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, n, uids);
    if (!s) s = dnn->cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, n, data);
    if (!s) s = dnn->cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    if (!s) s = dnn->cudnnBackendFinalize(pack);
    if (!s && !dnn->described) s = dnn->cudnnBackendExecute(dnn->handle, plan->plan, pack);
    lk_status status =
        s ? lk_cudnn_refused(dnn, err, s, plan->spec.backward ? "running the attention's backward" : "running the attention") : LK_OK;
    if (pack) (void)dnn->cudnnBackendDestroyDescriptor(pack);
    return status;
}
