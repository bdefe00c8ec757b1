/* Gated activations, both ways. Bytes an element: forward 4 read, 2 written; backward 6 read, 4 written. About 20 instructions an element
 * forward and 40 backward (an exponential and a division, or tanh): near 60 % of what an H200 issues while the bytes pass, so the bytes
 * decide. Each thread reads all it needs of its group before it writes: outputs may lie on inputs, as the contract says. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.h"

enum { THREADS = 256, MOST_ROWS = 65535 };

/* act(g) and its derivative. */
template <int ACT> LK_DEVICE float activate(float g, float *derivative)
{
    if (ACT == LK_SILU) {
        float s = 1.0f / (1.0f + lk_exp2(-1.44269504f * g)); /* the sigmoid; 0 and 1 at the ends */
        *derivative = s * (1.0f + g * (1.0f - s));
        return g * s;
    }
    const float a = 0.7978845608f, b = 0.044715f; /* sqrt(2/pi); Hendrycks & Gimpel 2016 */
    float t = tanhf(a * (g + b * g * g * g));
    *derivative = 0.5f * (1.0f + t) + 0.5f * g * (1.0f - t * t) * a * (1.0f + 3.0f * b * g * g);
    return 0.5f * g * (1.0f + t);
}

typedef struct rows {
    lk_bf16 *p;
    int64_t stride;
} rows;

/* N values at a time: 8 by vectors, or 1. */
template <int N> LK_DEVICE void load(float *v, const rows &t, int64_t r, int64_t c)
{
    if (N == 8)
        lk_load8(v, t.p + r * t.stride + c);
    else
        v[0] = lk_bf16_float(t.p[r * t.stride + c]);
}
template <int N> LK_DEVICE void store(const rows &t, int64_t r, int64_t c, const float *v)
{
    if (N == 8)
        lk_store8(t.p + r * t.stride + c, v);
    else
        t.p[r * t.stride + c] = lk_float_bf16(v[0]);
}

template <int ACT, int N> LK_KERNEL void glu_forward(rows y, rows gate, rows up, int64_t n_rows, int64_t cols)
{
    int64_t c = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (c >= cols) return;
    for (int64_t r = blockIdx.y; r < n_rows; r += gridDim.y) {
        float g[8], u[8], unused;
        load<N>(g, gate, r, c);
        load<N>(u, up, r, c);
        LK_UNROLL
        for (int i = 0; i < N; i++) g[i] = activate<ACT>(g[i], &unused) * u[i];
        store<N>(y, r, c, g);
    }
}

template <int ACT, int N> LK_KERNEL void glu_backward(rows dgate, rows dup, rows dy, rows gate, rows up, int64_t n_rows, int64_t cols)
{
    int64_t c = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (c >= cols) return;
    for (int64_t r = blockIdx.y; r < n_rows; r += gridDim.y) {
        float g[8], u[8], d[8];
        load<N>(g, gate, r, c);
        load<N>(u, up, r, c);
        load<N>(d, dy, r, c);
        LK_UNROLL
        for (int i = 0; i < N; i++) {
            float slope, value = activate<ACT>(g[i], &slope);
            g[i] = d[i] * u[i] * slope;
            u[i] = d[i] * value;
        }
        store<N>(dgate, r, c, g);
        store<N>(dup, r, c, u);
    }
}

static rows rows_of(const lk_tensor *t)
{
    rows out = {(lk_bf16 *)t->data, t->stride};
    return out;
}

static dim3 grid_for(int64_t n_rows, int64_t items)
{
    return dim3((unsigned)((items + THREADS - 1) / THREADS), (unsigned)(n_rows < MOST_ROWS ? n_rows : MOST_ROWS));
}

template <int ACT, int N> static void launch_forward(lk_rt_stream stream, const lk_tensor *y, const lk_tensor *gate, const lk_tensor *up)
{
    LK_LAUNCH("glu_forward", (glu_forward<ACT, N>), grid_for(y->rows, y->cols / N), dim3(THREADS), 0, stream, rows_of(y), rows_of(gate),
              rows_of(up), y->rows, y->cols);
}

extern "C" lk_status lk_cuda_glu(lk_backend *be, const lk_tensor *y, const lk_tensor *gate, const lk_tensor *up, lk_activation act)
{
    lk_rt_stream stream = lk_cuda_of(be)->stream;
    if (y->rows == 0 || y->cols == 0) return LK_OK;
    bool eights = lk_cuda_eights(y) && lk_cuda_eights(gate) && lk_cuda_eights(up);
    if (act == LK_SILU)
        (eights ? launch_forward<LK_SILU, 8> : launch_forward<LK_SILU, 1>)(stream, y, gate, up);
    else
        (eights ? launch_forward<LK_GELU_TANH, 8> : launch_forward<LK_GELU_TANH, 1>)(stream, y, gate, up);
    return lk_rt_launched("glu", &be->error);
}

template <int ACT, int N>
static void launch_backward(lk_rt_stream stream, const lk_tensor *dgate, const lk_tensor *dup, const lk_tensor *dy, const lk_tensor *gate,
                            const lk_tensor *up)
{
    LK_LAUNCH("glu_backward", (glu_backward<ACT, N>), grid_for(dy->rows, dy->cols / N), dim3(THREADS), 0, stream, rows_of(dgate),
              rows_of(dup), rows_of(dy), rows_of(gate), rows_of(up), dy->rows, dy->cols);
}

extern "C" lk_status lk_cuda_glu_backward(lk_backend *be, const lk_tensor *dgate, const lk_tensor *dup, const lk_tensor *dy,
                                          const lk_tensor *gate, const lk_tensor *up, lk_activation act)
{
    lk_rt_stream stream = lk_cuda_of(be)->stream;
    if (dy->rows == 0 || dy->cols == 0) return LK_OK;
    bool eights = lk_cuda_eights(dgate) && lk_cuda_eights(dup) && lk_cuda_eights(dy) && lk_cuda_eights(gate) && lk_cuda_eights(up);
    if (act == LK_SILU)
        (eights ? launch_backward<LK_SILU, 8> : launch_backward<LK_SILU, 1>)(stream, dgate, dup, dy, gate, up);
    else
        (eights ? launch_backward<LK_GELU_TANH, 8> : launch_backward<LK_GELU_TANH, 1>)(stream, dgate, dup, dy, gate, up);
    return lk_rt_launched("glu_backward", &be->error);
}
