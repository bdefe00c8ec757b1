/* Kernels with one fault each, left out where MENDED. Those with int results move numbers about so that a wrong order shows as another
 * number. */
#include "tests/cuda_emu/planted.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/runtime.h"

enum { THREADS = 128 };

/* The second write may come before a neighbour has read. */
template <bool MENDED> LK_KERNEL void race(int *out, const int *in)
{
    LK_SHARED(int, tile, THREADS);
    int t = (int)threadIdx.x;
    tile[t] = in[t];
    lk_block_sync();
    int next = tile[(t + 1) % THREADS];
    if (MENDED) lk_block_sync();
    tile[t] = 3 * next;
    lk_block_sync();
    out[t] = next + tile[(t + 7) % THREADS];
}

/* The same between the lanes of a warp: other lanes have not written yet. */
template <bool MENDED> LK_KERNEL void warp_race(int *out, const int *in)
{
    LK_SHARED(int, tile, THREADS);
    int t = (int)threadIdx.x;
    tile[t] = in[t];
    if (MENDED) lk_warp_sync();
    out[t] = tile[t ^ 1];
}

/* One warp may be a whole round ahead of another; only depth-first schedules show it. */
template <bool MENDED> LK_KERNEL void far_ahead(int *out, const int *in)
{
    LK_SHARED(int, sums, 1);
    int t = (int)threadIdx.x, x = in[t];
    for (int mask = 16; mask; mask >>= 1) x += lk_shuffle_xor(x, mask);
    if (t == 0) sums[0] = 0;
    lk_block_sync();
    for (int warp = 0; warp < THREADS / 32; warp++) {
        if (t == 32 * warp) sums[0] = 3 * sums[0] + x;
        if (MENDED) lk_block_sync();
    }
    lk_block_sync();
    out[t] = sums[0];
}

template <bool MENDED> LK_KERNEL void past_the_end(int *out, const int *in, int n)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (MENDED ? i < n : i <= n) out[i] = in[i < n ? i : 0];
}

template <bool MENDED> LK_KERNEL void before_the_beginning(int *out, const int *in)
{
    int t = (int)threadIdx.x;
    int *p = out - (MENDED ? 0 : 1);
    p[t] = in[t];
}

template <bool MENDED> LK_KERNEL void past_shared(int *out, const int *in)
{
    LK_SHARED(int, tile, THREADS);
    int *p = tile;
    int t = (int)threadIdx.x;
    p[t + (MENDED ? 0 : 1)] = in[t];
    lk_block_sync();
    out[t] = p[t];
}

template <bool MENDED> LK_KERNEL void past_dynamic_shared(int *out, const int *in)
{
    LK_SHARED_DYNAMIC(int, tile);
    int t = (int)threadIdx.x;
    tile[t + (MENDED ? 0 : 1)] = in[t];
    lk_block_sync();
    out[t] = tile[t];
}

/* Two groups of copies; the first is read while it may still be under way. */
template <bool MENDED> LK_KERNEL void missing_wait(int *out, const int *in)
{
    LK_SHARED(int, tile, 2 * 4 * THREADS);
    int t = (int)threadIdx.x;
    for (int i = 0; i < 8; i++) tile[8 * t + i] = -7;
    lk_block_sync();
    for (int half = 0; half < 2; half++) {
        lk_async_copy16(tile + 4 * (half * THREADS + t), in + 4 * t, true);
        lk_async_commit();
    }
    if (MENDED)
        lk_async_wait<1>();
    else
        lk_async_wait<2>();
    lk_block_sync();
    out[t] = tile[4 * ((t + 1) % THREADS)] + tile[4 * t + 3];
    lk_block_sync();
    lk_async_wait<0>();
}

/* A copy that is not valid brings zeros. */
template <bool MENDED> LK_KERNEL void zero_filled(int *out, const int *in)
{
    LK_SHARED(int, tile, 4 * THREADS);
    int t = (int)threadIdx.x;
    bool valid = MENDED || t % 2 == 0;
    lk_async_copy16(tile + 4 * t, valid ? in + 4 * t : NULL, valid);
    lk_async_commit();
    lk_async_wait<0>();
    out[t] = tile[4 * t + 1];
}

template <bool MENDED> LK_KERNEL void misplaced_copy(int *out, const int *in)
{
    LK_SHARED(int, tile, 4 * THREADS);
    int t = (int)threadIdx.x;
    lk_async_copy16(MENDED ? tile + 4 * t : out + 4 * (t % 8), in, true);
    lk_async_commit();
    lk_async_wait<0>();
    out[t] = tile[4 * t];
}

template <bool MENDED> LK_KERNEL void part_of_a_block(int *out, const int *in)
{
    int t = (int)threadIdx.x;
    out[t] = in[t];
    if (MENDED || t < 32) lk_block_sync();
}

template <bool MENDED> LK_KERNEL void two_barriers(int *out, const int *in)
{
    int t = (int)threadIdx.x;
    out[t] = in[t];
    if (MENDED || t < 64)
        lk_block_sync();
    else
        lk_block_sync();
}

template <bool MENDED> LK_KERNEL void missing_lane(int *out, const int *in)
{
    int t = (int)threadIdx.x, x = in[t];
    if (MENDED || t != 33) x = lk_shuffle(x, 5);
    out[t] = x;
}

template <bool MENDED> LK_KERNEL void two_operations(int *out, const int *in)
{
    int t = (int)threadIdx.x, x = in[t];
    if (MENDED || t % 32 < 16)
        x = lk_shuffle_xor(x, 1);
    else
        lk_warp_sync();
    out[t] = x;
}

/* Block sums of many blocks and a grid in three dimensions: what a correct kernel of the usual kind does. */
template <bool MENDED> LK_KERNEL void indices(int *out, const int *in)
{
    LK_SHARED(int, part, 32);
    int block = (int)(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
    int t = (int)(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)), x = in[t] * (block + 1);
    for (int mask = 16; mask; mask >>= 1) x += lk_shuffle_xor(x, mask);
    if (t % 32 == 0) part[t / 32] = x;
    lk_block_sync();
    if (t >= 1) return;
    int warps = (int)(blockDim.x * blockDim.y * blockDim.z / 32);
    for (int w = 1; w < warps; w++) x += part[w];
    out[block] = x;
}

/* out[16,16] = a[16,16] b[16,16] of bf16, b row by row: both operands by way of shared memory. */
template <bool MENDED> LK_KERNEL void product(float *out, const lk_bf16 *in)
{
    LK_SHARED(lk_bf16, a, 256);
    LK_SHARED(lk_bf16, b, 256);
    int l = (int)threadIdx.x;
    for (int i = l; i < 256; i += 32) a[i] = in[i], b[i] = in[256 + i];
    lk_warp_sync();
    uint32_t fa[4], fb[4];
    int row = l % 8 + l / 8 % 2 * 8, column = l / 16 * 8; /* tiles: rows 0 and 8, then columns 8 */
    lk_ldmatrix4(fa, a + row * 16 + column);
    if (MENDED)
        lk_ldmatrix4_transposed(fb, b + row * 16 + column);
    else
        lk_ldmatrix4(fb, b + row * 16 + column);
    for (int half = 0; half < 2; half++) {
        float d[4] = {1.0f, 1.0f, 1.0f, 1.0f};
        lk_mma_bf16(d, fa, fb + 2 * half);
        for (int i = 0; i < 4; i++) out[(l / 4 + i / 2 * 8) * 16 + half * 8 + l % 4 * 2 + i % 2] = d[i];
    }
}

/* The registers as ldmatrix gives them: plain, then transposed, four words a lane each. */
template <bool MENDED> LK_KERNEL void tiles(uint32_t *out, const lk_bf16 *in)
{
    LK_SHARED(lk_bf16, m, 256);
    int l = (int)threadIdx.x;
    for (int i = l; i < 256; i += 32) m[i] = in[i];
    lk_warp_sync();
    uint32_t plain[4], transposed[4];
    lk_ldmatrix4(plain, m + 8 * l);
    lk_ldmatrix4_transposed(transposed, m + 8 * l + (MENDED ? 0 : 4)); /* else misaligned */
    for (int i = 0; i < 4; i++) out[4 * l + i] = plain[i], out[128 + 4 * l + i] = transposed[i];
}

/* out[64,64] = a[64,32] b[64,32]^T by a warp group, in two products on the same sums. `a` comes first in `in`, then b's rows of 64 columns
 * of which the first 32 count. FAULT 0 has none. */
enum group_fault {
    GROUP_RIGHT,
    NO_GROUP_WAIT,
    EARLY_A,
    NO_GROUP_FENCE,
    NO_PROXY_FENCE,
    NO_GROUP_BARRIER,
    ROWS_MOVED,
    B_CHANGED,
    NO_COMMIT
};

template <int FAULT> LK_KERNEL void group_product(float *out, const lk_bf16 *in)
{
    LK_SHARED_ROWS(unsigned char, shared);
    int l = (int)threadIdx.x, lane = l % 32, row = l / 32 * 16 + lane / 4, column = lane % 4 * 2;
    unsigned char *rows = shared + (FAULT == ROWS_MOVED ? 512 : 1024);
    const lk_bf16 *b = in + 64 * 32;
    for (int i = 0; i < 4; i++) {
        int at = l / 8 + 16 * i, chunk = l % 8;
        lk_async_copy16(rows + at * 128 + (chunk ^ (at & 7)) * 16, b + at * 64 + chunk * 8, true);
    }
    lk_async_commit();
    lk_async_wait<0>();
    if (FAULT != NO_PROXY_FENCE) lk_proxy_fence();
    if (FAULT != NO_GROUP_BARRIER) lk_block_sync();
    uint32_t a[2][4];
    for (int step = 0; step < 2; step++)
        for (int i = 0; i < 4; i++) a[step][i] = *(const uint32_t *)(in + (row + 8 * (i % 2)) * 32 + step * 16 + column + 8 * (i / 2));
    float d[8][4];
    if (FAULT != NO_GROUP_FENCE) lk_group_fence();
    for (int step = 0; step < 2; step++) lk_group_mma(d, a[step], lk_group_rows(rows) + 2 * (uint64_t)step, step > 0);
    if (FAULT != NO_COMMIT) lk_group_commit();
    if (FAULT == EARLY_A) a[1][l % 4] ^= 0x80008000u;
    if (FAULT == B_CHANGED) *(uint4 *)(rows + l / 2 * 128 + l % 2 * 16) = make_uint4(0, 0, 0, 0);
    if (FAULT == NO_GROUP_WAIT)
        lk_group_wait<1>();
    else
        lk_group_wait<0>();
    lk_group_arrived(d);
    for (int t = 0; t < 8; t++)
        for (int i = 0; i < 4; i++) out[(row + 8 * (i / 2)) * 64 + t * 8 + column + i % 2] = d[t][i];
    if (FAULT == NO_COMMIT) lk_group_commit();
    if (FAULT == NO_GROUP_WAIT || FAULT == NO_COMMIT) lk_group_wait<0>();
}

/* A lane of the last warp does not come. */
template <bool MENDED> LK_KERNEL void part_of_a_group(int *out, const int *in)
{
    LK_SHARED_ROWS(unsigned char, shared);
    int t = (int)threadIdx.x;
    for (int i = 0; i < 64; i++) shared[64 * t + i] = 0;
    uint32_t a[4] = {0, 0, 0, 0};
    float d[8][4];
    lk_proxy_fence();
    lk_block_sync();
    lk_group_fence();
    if (MENDED || t < 96) lk_group_mma(d, a, lk_group_rows(shared), false);
    lk_group_commit();
    lk_group_wait<0>();
    out[t] = in[t];
}

template <bool MENDED> LK_KERNEL void never_waited(int *out, const int *in)
{
    LK_SHARED_ROWS(unsigned char, shared);
    int t = (int)threadIdx.x;
    for (int i = 0; i < 64; i++) shared[64 * t + i] = 0;
    uint32_t a[4] = {0, 0, 0, 0};
    float d[8][4];
    lk_proxy_fence();
    lk_block_sync();
    lk_group_fence();
    lk_group_mma(d, a, lk_group_rows(shared), false);
    lk_group_commit();
    if (MENDED) lk_group_wait<0>();
    out[t] = in[t];
}

template <bool MENDED> LK_KERNEL void round_pairs(uint32_t *out, const float *in)
{
    int t = (int)threadIdx.x;
    out[t] = MENDED ? lk_pack_bf16(in[2 * t], in[2 * t + 1]) : lk_as_bits(in[2 * t]) >> 16 | (lk_as_bits(in[2 * t + 1]) & 0xffff0000u);
}

LK_KERNEL void add_up(int *sum, const int *x)
{
    if (threadIdx.x == 0) *sum += x[0] + x[1];
}

/* ---- one launch of each */

template <int FAULT> static bool launch_group(void *out, const void *in)
{
    LK_LAUNCH("group_product", group_product<FAULT>, dim3(1), dim3(128), 64 * 128 + 1024, (lk_rt_stream)NULL, (float *)out,
              (const lk_bf16 *)in);
    return true;
}

static bool launch_group_fault(const char *name, void *out, const void *in)
{
    if (strcmp(name, "no_group_wait") == 0) return launch_group<NO_GROUP_WAIT>(out, in);
    if (strcmp(name, "early_a") == 0) return launch_group<EARLY_A>(out, in);
    if (strcmp(name, "no_group_fence") == 0) return launch_group<NO_GROUP_FENCE>(out, in);
    if (strcmp(name, "no_proxy_fence") == 0) return launch_group<NO_PROXY_FENCE>(out, in);
    if (strcmp(name, "no_group_barrier") == 0) return launch_group<NO_GROUP_BARRIER>(out, in);
    if (strcmp(name, "rows_moved") == 0) return launch_group<ROWS_MOVED>(out, in);
    if (strcmp(name, "b_changed") == 0) return launch_group<B_CHANGED>(out, in);
    if (strcmp(name, "no_commit") == 0) return launch_group<NO_COMMIT>(out, in);
    return false;
}

/* The fault of the last few is in the launch. */
template <bool MENDED> static bool launch(const char *name, void *out, const void *in, int n)
{
    int *o = (int *)out;
    const int *i = (const int *)in;
    dim3 one(1), block(THREADS), warp(32);
#define PLAIN(kernel) \
    if (strcmp(name, #kernel) == 0) return LK_LAUNCH(#kernel, kernel<MENDED>, one, block, 0, (lk_rt_stream)NULL, o, i), true
    PLAIN(race);
    PLAIN(warp_race);
    PLAIN(far_ahead);
    PLAIN(before_the_beginning);
    PLAIN(past_shared);
    PLAIN(missing_wait);
    PLAIN(zero_filled);
    PLAIN(misplaced_copy);
    PLAIN(part_of_a_block);
    PLAIN(two_barriers);
    PLAIN(missing_lane);
    PLAIN(two_operations);
#undef PLAIN
    if (strcmp(name, "past_the_end") == 0)
        LK_LAUNCH(name, past_the_end<MENDED>, dim3((unsigned)n / THREADS + 1), block, 0, (lk_rt_stream)NULL, o, i, n);
    else if (strcmp(name, "past_dynamic_shared") == 0)
        LK_LAUNCH(name, past_dynamic_shared<MENDED>, one, block, THREADS * sizeof(int), (lk_rt_stream)NULL, o, i);
    else if (strcmp(name, "indices") == 0)
        LK_LAUNCH(name, indices<MENDED>, dim3(3, 2, 2), dim3(8, 4, 2), 0, (lk_rt_stream)NULL, o, i);
    else if (strcmp(name, "product") == 0)
        LK_LAUNCH(name, product<MENDED>, one, warp, 0, (lk_rt_stream)NULL, (float *)out, (const lk_bf16 *)in);
    else if (strcmp(name, "tiles") == 0)
        LK_LAUNCH(name, tiles<MENDED>, one, warp, 0, (lk_rt_stream)NULL, (uint32_t *)out, (const lk_bf16 *)in);
    else if (strcmp(name, "round_pairs") == 0)
        LK_LAUNCH(name, round_pairs<MENDED>, one, block, 0, (lk_rt_stream)NULL, (uint32_t *)out, (const float *)in);
    else if (strcmp(name, "many_threads") == 0)
        LK_LAUNCH(name, race<true>, one, dim3(MENDED ? THREADS : 2048), 0, (lk_rt_stream)NULL, o, i);
    else if (strcmp(name, "much_shared") == 0)
        LK_LAUNCH(name, race<true>, one, block, MENDED ? 1024 : 64 * 1024, (lk_rt_stream)NULL, o, i);
    else if (strcmp(name, "host_argument") == 0)
        LK_LAUNCH(name, race<true>, one, block, 0, (lk_rt_stream)NULL, o, MENDED ? i : &n);
    else if (strcmp(name, "part_of_a_group") == 0)
        LK_LAUNCH(name, part_of_a_group<MENDED>, one, block, 64 * 128, (lk_rt_stream)NULL, o, i);
    else if (strcmp(name, "never_waited") == 0)
        LK_LAUNCH(name, never_waited<MENDED>, one, block, 64 * 128, (lk_rt_stream)NULL, o, i);
    else if (strcmp(name, "group_product") == 0)
        return launch_group<GROUP_RIGHT>(out, in);
    else
        return launch_group_fault(name, out, in);
    return true;
}

extern "C" __attribute__((visibility("default"))) lk_status lk_planted_run(const lk_planted *p, lk_error *err)
{
    void *in = NULL, *out = NULL;
    lk_rt_stream stream = NULL;
    lk_status status = lk_rt_malloc(&in, p->in_bytes, err);
    if (!status) status = lk_rt_malloc(&out, p->out_bytes, err);
    if (!status) status = lk_rt_copy(in, p->in, p->in_bytes, stream, err);
    if (!status) {
        int n = (int)(p->out_bytes / sizeof(int));
        bool known = p->mended ? launch<true>(p->kernel, out, in, n) : launch<false>(p->kernel, out, in, n);
        status = known ? lk_rt_launched(p->kernel, err) : lk_fail(err, LK_ERR_NOT_FOUND, "no kernel %s", p->kernel);
    }
    if (!status) status = lk_rt_stream_sync(stream, err);
    if (!status) status = lk_rt_copy(p->out, out, p->out_bytes, stream, err);
    lk_rt_free(in);
    lk_rt_free(out);
    return status;
}

/* What the runtime refuses. */
extern "C" __attribute__((visibility("default"))) lk_status lk_planted_runtime(const char *what, lk_error *err)
{
    void *p = NULL;
    char host[64] = {0};
    lk_status status = LK_OK;
    if (strcmp(what, "too much memory") == 0) {
        status = lk_rt_malloc(&p, (size_t)1 << 50, err);
    } else if (strcmp(what, "foreign free") == 0) {
        lk_rt_free(host);
        status = lk_rt_stream_sync(NULL, err);
    } else if (strcmp(what, "free twice") == 0) {
        LK_TRY(lk_rt_malloc(&p, 64, err));
        lk_rt_free(p);
        lk_rt_free(p);
        p = NULL;
        status = lk_rt_stream_sync(NULL, err);
    } else if (strcmp(what, "long copy") == 0) {
        LK_TRY(lk_rt_malloc(&p, 60, err));
        status = lk_rt_copy(p, host, 64, NULL, err);
    } else if (strcmp(what, "leak") == 0) {
        return lk_rt_malloc(&p, 16, err);
    }
    lk_rt_free(p);
    return status;
}

/* The copy on a stream that branches off; unless what says otherwise it is joined before the sum. */
static lk_status branch(const char *what, lk_rt_stream stream, lk_rt_stream beside, int *x, lk_rt_event event, lk_error *err)
{
    LK_TRY(lk_rt_event_record(event, stream, err));
    LK_TRY(lk_rt_stream_wait(beside, event, err));
    LK_TRY(lk_rt_copy(x + 1, x, sizeof *x, beside, err));
    if (strcmp(what, "open branch") == 0 || strcmp(what, "late join") == 0) return LK_OK;
    LK_TRY(lk_rt_event_record(event, beside, err));
    return lk_rt_stream_wait(stream, event, err);
}

/* What may not be done while a stream captures; "nothing" is done right, and "branch": a copy and a sum, recorded once and run three times
 * over memory that changes, give *sum. */
static lk_status capture(const char *what, lk_rt_stream stream, lk_rt_stream beside, int *x, int *pinned, lk_rt_event event, lk_error *err)
{
    int host = 0;
    if (strstr(what, "branch") || strcmp(what, "late join") == 0)
        LK_TRY(branch(what, stream, beside, x, event, err));
    else
        LK_TRY(lk_rt_copy(x + 1, x, sizeof *x, stream, err));
    LK_LAUNCH("add_up", add_up, dim3(1), dim3(2), 0, stream, x + 2, (const int *)x);
    LK_TRY(lk_rt_launched("add_up", err));
    if (strcmp(what, "host copy") == 0) return lk_rt_copy(x, &host, sizeof host, stream, err);
    if (strcmp(what, "pinned copy") == 0) return lk_rt_copy(x, pinned, sizeof *pinned, stream, err);
    if (strcmp(what, "copy back") == 0) return lk_rt_copy(&host, x, sizeof host, stream, err);
    if (strcmp(what, "wait") == 0) return lk_rt_stream_sync(stream, err);
    if (strcmp(what, "event") == 0) {
        LK_TRY(lk_rt_event_record(event, stream, err));
        return lk_rt_event_wait(event, err);
    }
    if (strcmp(what, "late join") == 0) {
        LK_TRY(lk_rt_event_record(event, beside, err));
        return lk_rt_stream_wait(stream, event, err);
    }
    if (strcmp(what, "memory") == 0) {
        void *p = NULL;
        return lk_rt_malloc(&p, 16, err);
    }
    if (strcmp(what, "host argument") == 0) {
        LK_LAUNCH("add_up", add_up, dim3(1), dim3(2), 0, stream, &host, (const int *)x);
        return lk_rt_launched("add_up", err);
    }
    return LK_OK;
}

static lk_status replay(lk_rt_graph graph, lk_rt_stream stream, int *x, int *sum, lk_error *err)
{
    LK_TRY(lk_rt_copy(sum, x + 2, sizeof *sum, stream, err));
    if (*sum != 0) return lk_fail(err, LK_ERR_INTERNAL, "a launch ran while it was captured");
    for (int i = 1; i <= 3; i++) {
        LK_TRY(lk_rt_copy(x, &i, sizeof i, stream, err));
        LK_TRY(lk_rt_graph_launch(graph, stream, err));
    }
    LK_TRY(lk_rt_stream_sync(stream, err));
    return lk_rt_copy(sum, x + 2, sizeof *sum, stream, err);
}

extern "C" __attribute__((visibility("default"))) lk_status lk_planted_capture(const char *what, int *sum, lk_error *err)
{
    void *x = NULL, *pinned = NULL;
    lk_rt_stream stream = NULL, beside = NULL;
    lk_rt_event event = NULL;
    lk_rt_graph graph = NULL;
    lk_status status = lk_rt_malloc(&x, 3 * sizeof(int), err);
    if (!status) status = lk_rt_host_malloc(&pinned, sizeof(int), err);
    if (!status) status = lk_rt_stream_create(&stream, err);
    if (!status) status = lk_rt_stream_create(&beside, err);
    if (!status) status = lk_rt_event_create(&event, err);
    if (!status) status = lk_rt_set(x, 0, 3 * sizeof(int), stream, err);
    if (!status) status = lk_rt_capture_begin(stream, err);
    if (!status) {
        status = capture(what, stream, beside, (int *)x, (int *)pinned, event, err);
        lk_error second;
        lk_status ended = lk_rt_capture_end(stream, &graph, &second);
        if (!status && ended) status = lk_fail(err, ended, "%s", second.message);
        if (status && !ended && strcmp(what, "host argument") != 0) status = lk_fail(err, LK_ERR_CONFLICT, "the capture was not broken");
    }
    if (strcmp(what, "freed memory") == 0) {
        lk_rt_free(x);
        x = NULL;
        if (!status) status = lk_rt_graph_launch(graph, stream, err);
    } else if (!status) {
        status = replay(graph, stream, (int *)x, sum, err);
    }
    lk_rt_graph_destroy(graph);
    lk_rt_event_destroy(event);
    lk_rt_stream_destroy(beside);
    lk_rt_stream_destroy(stream);
    lk_rt_host_free(pinned);
    lk_rt_free(x);
    return status;
}

/* Memory that a queued copy still reads, written too early: got[0] tells whether the copy had been made by then, got[1] that pageable
 * memory is put aside. */
extern "C" __attribute__((visibility("default"))) lk_status lk_planted_late(int got[2], lk_error *err)
{
    void *x = NULL, *pinned = NULL;
    int host = 3;
    lk_rt_stream stream = NULL;
    lk_rt_event event = NULL;
    lk_status status = lk_rt_malloc(&x, 2 * sizeof(int), err);
    if (!status) status = lk_rt_host_malloc(&pinned, sizeof(int), err);
    if (!status) status = lk_rt_stream_create(&stream, err);
    if (!status) status = lk_rt_event_create(&event, err);
    if (!status) *(int *)pinned = 1;
    if (!status) status = lk_rt_copy(x, pinned, sizeof(int), stream, err);
    if (!status) status = lk_rt_copy((int *)x + 1, &host, sizeof(int), stream, err);
    if (!status) status = lk_rt_event_record(event, stream, err);
    if (!status) *(int *)pinned = 2;
    host = 4;
    if (!status) status = lk_rt_event_wait(event, err);
    if (!status) *(int *)pinned = 5;
    if (!status) status = lk_rt_copy(got, x, 2 * sizeof(int), stream, err);
    lk_rt_event_destroy(event);
    lk_rt_stream_destroy(stream);
    lk_rt_host_free(pinned);
    lk_rt_free(x);
    return status;
}
