/* OpenBLAS' sgemm and oneDNN's matmul (weights in the layout that oneDNN prefers). */
#include "bench/peers.h"

#include <stdlib.h>

#include "kernels/tensor.h"

#if defined(LK_BENCH_OPENBLAS)
#include <cblas.h>
#endif
#if defined(LK_BENCH_DNNL)
#include <oneapi/dnnl/dnnl.h>
#endif

struct lk_peer {
    lk_peer_kind kind;
    int64_t m, n, k;
    const float *w;
#if defined(LK_BENCH_DNNL)
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_t product;
    dnnl_primitive_t round;
    dnnl_memory_t x, x_rounded, weights, y;
#endif
};

const char *lk_peer_name(lk_peer_kind kind)
{
    static const char *const names[LK_PEERS] = {"OpenBLAS f32", "oneDNN f32", "oneDNN bf16"};
    return names[kind];
}

#if defined(LK_BENCH_DNNL)
static dnnl_memory_t make_memory(lk_peer *p, const dnnl_memory_desc_t *desc, void *data)
{
    dnnl_memory_t memory = NULL;
    return dnnl_memory_create(&memory, desc, p->engine, data) ? NULL : memory;
}

static dnnl_primitive_t make_reorder(lk_peer *p, const dnnl_memory_desc_t *from, const dnnl_memory_desc_t *to)
{
    dnnl_primitive_desc_t desc = NULL;
    dnnl_primitive_t primitive = NULL;
    if (dnnl_reorder_primitive_desc_create(&desc, from, p->engine, to, p->engine, NULL)) return NULL;
    if (dnnl_primitive_create(&primitive, desc)) primitive = NULL;
    dnnl_primitive_desc_destroy(desc);
    return primitive;
}

static int move(lk_peer *p, dnnl_primitive_t reorder, dnnl_memory_t from, dnnl_memory_t to)
{
    dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
    return dnnl_primitive_execute(reorder, p->stream, 2, args) || dnnl_stream_wait(p->stream);
}

static int open_dnnl(lk_peer *p)
{
    dnnl_data_type_t type = p->kind == LK_PEER_DNNL_BF16 ? dnnl_bf16 : dnnl_f32;
    dnnl_dims_t xd = {p->m, p->k}, wd = {p->k, p->n}, yd = {p->m, p->n};
    dnnl_memory_desc_t x_f32, x, any, w_plain, y;
    if (dnnl_engine_create(&p->engine, dnnl_cpu, 0) || dnnl_stream_create(&p->stream, p->engine, dnnl_stream_default_flags)) return 1;
    dnnl_memory_desc_init_by_tag(&x_f32, 2, xd, dnnl_f32, dnnl_ab);
    dnnl_memory_desc_init_by_tag(&x, 2, xd, type, dnnl_ab);
    dnnl_memory_desc_init_by_tag(&any, 2, wd, type, dnnl_format_tag_any);
    dnnl_memory_desc_init_by_tag(&w_plain, 2, wd, dnnl_f32, dnnl_ba);
    dnnl_memory_desc_init_by_tag(&y, 2, yd, dnnl_f32, dnnl_ab);
    dnnl_matmul_desc_t matmul;
    dnnl_primitive_desc_t desc = NULL;
    if (dnnl_matmul_desc_init(&matmul, &x, &any, NULL, &y) || dnnl_primitive_desc_create(&desc, &matmul, NULL, p->engine, NULL)) return 1;
    const dnnl_memory_desc_t *packed = dnnl_primitive_desc_query_md(desc, dnnl_query_weights_md, 0);
    p->weights = make_memory(p, packed, DNNL_MEMORY_ALLOCATE);
    dnnl_memory_t plain = make_memory(p, &w_plain, (void *)(uintptr_t)p->w);
    dnnl_primitive_t pack = make_reorder(p, &w_plain, packed);
    int failed = !p->weights || !plain || !pack || move(p, pack, plain, p->weights) || dnnl_primitive_create(&p->product, desc);
    if (pack) dnnl_primitive_destroy(pack);
    if (plain) dnnl_memory_destroy(plain);
    dnnl_primitive_desc_destroy(desc);
    if (failed) return 1;
    p->x = make_memory(p, &x_f32, DNNL_MEMORY_NONE);
    p->y = make_memory(p, &y, DNNL_MEMORY_NONE);
    if (type == dnnl_bf16) {
        p->x_rounded = make_memory(p, &x, DNNL_MEMORY_ALLOCATE);
        p->round = make_reorder(p, &x_f32, &x);
        failed = !p->x_rounded || !p->round;
    }
    return failed || !p->x || !p->y;
}

static void run_dnnl(lk_peer *p, float *y, const float *x)
{
    dnnl_memory_set_data_handle(p->x, (void *)(uintptr_t)x);
    dnnl_memory_set_data_handle(p->y, y);
    if (p->round) move(p, p->round, p->x, p->x_rounded);
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, p->round ? p->x_rounded : p->x}, {DNNL_ARG_WEIGHTS, p->weights}, {DNNL_ARG_DST, p->y}};
    dnnl_primitive_execute(p->product, p->stream, 3, args);
    dnnl_stream_wait(p->stream);
}
#endif

lk_peer *lk_peer_open(lk_peer_kind kind, int64_t m, int64_t n, int64_t k, const float *w, int threads)
{
    lk_peer *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    *p = (lk_peer){.kind = kind, .m = m, .n = n, .k = k, .w = w};
    (void)threads;
#if defined(LK_BENCH_OPENBLAS)
    if (kind == LK_PEER_OPENBLAS_F32) {
        openblas_set_num_threads(threads);
        return p;
    }
#endif
#if defined(LK_BENCH_DNNL)
    if (kind != LK_PEER_OPENBLAS_F32 && !open_dnnl(p)) return p;
#endif
    lk_peer_close(p);
    return NULL;
}

void lk_peer_run(lk_peer *p, float *y, const float *x)
{
#if defined(LK_BENCH_OPENBLAS)
    if (p->kind == LK_PEER_OPENBLAS_F32) {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)p->m, (int)p->n, (int)p->k, 1.0f, x, (int)p->k, p->w, (int)p->k, 0.0f, y,
                    (int)p->n);
        return;
    }
#endif
#if defined(LK_BENCH_DNNL)
    run_dnnl(p, y, x);
#else
    (void)p, (void)y, (void)x;
#endif
}

void lk_peer_close(lk_peer *p)
{
#if defined(LK_BENCH_DNNL)
    if (p->product) dnnl_primitive_destroy(p->product);
    if (p->round) dnnl_primitive_destroy(p->round);
    dnnl_memory_t memories[] = {p->x, p->x_rounded, p->weights, p->y};
    for (int i = 0; i < 4; i++)
        if (memories[i]) dnnl_memory_destroy(memories[i]);
    if (p->stream) dnnl_stream_destroy(p->stream);
    if (p->engine) dnnl_engine_destroy(p->engine);
#endif
    free(p);
}
