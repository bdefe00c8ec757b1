/* The dialect of kernels/cuda/device.h on the host: with `-x c++ -include tests/cuda_emu/emu.h` a host compiler builds the .cu files as
 * they are, and LK_LAUNCH runs every thread of every block to its end before it returns.
 *
 * What it models: blocks one after another, a block's threads as fibres (fibre.h) that run from one synchronisation to the next, in an
 * order that lk_emu_schedule chooses; warp operations that complete when all 32 lanes have come; shared memory, poisoned and with guard
 * bytes round each array; asynchronous copies that arrive at the wait that covers them and leave poison where they will land until then;
 * products of warp groups in the same way (groups.h).
 * What it reports, naming kernel, block and line (the launch then ends, and lk_rt_launched or the next synchronisation fails): lanes
 * missing from a warp operation, barriers that part of a block waits at or that differ, writes round shared arrays, misaligned or misplaced
 * asynchronous copies and ldmatrix rows, launches no GPU would take, pointers to ordinary host memory as arguments.
 * A stream that captures keeps its launches for a graph, and streams can be as late as they may be (capture.h).
 * What it cannot see: races within the stretch between two synchronisations that no order of whole threads brings out, reads out of
 * bounds outside the address sanitizer's build, speed, and the rounding of the approximate functions (exp2, rsqrt), which are libm's here.
 *
 * No CUDA header is needed. The state is one for the module, under a lock that a launch holds: two streams' launches take turns. */
#ifndef LK_TESTS_CUDA_EMU_EMU_H
#define LK_TESTS_CUDA_EMU_EMU_H

#define LK_CUDA_EMU 1

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <memory>
#include <tuple>
#include <type_traits>

/* ---- CUDA's types and words */

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline double2 make_double2(double x, double y) { return {x, y}; }

#define __launch_bounds__(...)
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __align__(n)    __attribute__((aligned(n)))

template <typename T, typename U> static inline std::common_type_t<T, U> min(T a, U b)
{
    std::common_type_t<T, U> x = a, y = b;
    return y < x ? y : x;
}
template <typename T, typename U> static inline std::common_type_t<T, U> max(T a, U b)
{
    std::common_type_t<T, U> x = a, y = b;
    return x < y ? y : x;
}
template <typename T> static inline T __ldg(const T *p) { return *p; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
#define __expf expf /* glibc has declared functions of these names for itself */
#define __logf logf
#define __sinf sinf
#define __cosf cosf
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }

/* Threads of a block never run at the same time, so these are whole by nature. Integers only: see device.h. */
static inline int atomicAdd(int *p, int x) { return (*p += x) - x; }
static inline unsigned atomicAdd(unsigned *p, unsigned x) { return (*p += x) - x; }
static inline unsigned long long atomicAdd(unsigned long long *p, unsigned long long x) { return (*p += x) - x; }
static inline int atomicMax(int *p, int x)
{
    int old = *p;
    if (old < x) *p = x;
    return old;
}
static inline unsigned atomicOr(unsigned *p, unsigned x)
{
    unsigned old = *p;
    *p |= x;
    return old;
}

/* ---- what emu.cpp does */

struct lk_emu_indices {
    uint3 thread, block;
    dim3 block_dim, grid_dim;
};
extern lk_emu_indices lk_emu_here; /* of the thread that runs; changed at every switch */
#define threadIdx (lk_emu_here.thread)
#define blockIdx  (lk_emu_here.block)
#define blockDim  (lk_emu_here.block_dim)
#define gridDim   (lk_emu_here.grid_dim)

/* One LK_SHARED of the source. */
struct lk_emu_shared_site {
    uint64_t block; /* that `memory` was taken for */
    void *memory;
};
void *lk_emu_shared(lk_emu_shared_site *site, size_t bytes, const char *name);
void *lk_emu_shared_dynamic(void);

/* Waits for all 32 lanes; the last one to come calls `combine` with what each brought, by lane. */
typedef void lk_emu_combine(void *const lanes[32]);
void lk_emu_warp(const char *what, lk_emu_combine *combine, void *mine, const char *file, int line);
void lk_emu_barrier(const char *file, int line);
void lk_emu_async_copy16(void *shared, const void *global, bool valid, const char *file, int line);
void lk_emu_async_commit(void);
void lk_emu_async_wait(int still_under_way);
void lk_emu_proxy_fence(void);

/* groups.cpp */
uint64_t lk_emu_group_rows(const void *rows, const char *file, int line);
void lk_emu_group_mma(float *d, const uint32_t *a, uint64_t rows, bool add, const char *file, int line);
void lk_emu_group_fence(void);
void lk_emu_group_commit(void);
void lk_emu_group_wait(int still_under_way, const char *file, int line);

struct lk_emu_launch_shape {
    const char *what;
    const void *kernel;
    dim3 grid, block;
    size_t shared;
};
typedef void lk_emu_body(void *arguments);
void lk_emu_launch(const lk_emu_launch_shape *shape, lk_emu_body *body, void *arguments);
/* False: no GPU would take it, and lk_rt_launched says why. */
bool lk_emu_launch_fits(const lk_emu_launch_shape *shape);
/* The launch that follows fails when p is neither NULL nor memory of the emulated device. */
void lk_emu_check_argument(const char *what, int argument, const void *p);
/* Kept for a graph that s is capturing, or for later (capture.h). */
bool lk_emu_keeps(const struct CUstream_st *s);
void lk_emu_keep_launch(struct CUstream_st *s, const lk_emu_launch_shape *shape, lk_emu_body *check, lk_emu_body *body,
                        std::shared_ptr<void> arguments);

/* ---- device.h's names */

#define LK_KERNEL static
#define LK_DEVICE static inline __attribute__((unused))
#define LK_UNROLL
#define LK_SHARED(type, name, count)              \
    static lk_emu_shared_site lk_emu_site_##name; \
    type(&name)[count] = *(type(*)[count])lk_emu_shared(&lk_emu_site_##name, sizeof(type[count]), #name)
#define LK_SHARED_DYNAMIC(type, name) type *name = (type *)lk_emu_shared_dynamic()
#define LK_SHARED_ROWS(type, name)    type *name = (type *)lk_emu_shared_dynamic()
#define LK_HAS_GROUPS                 1
#define LK_LAUNCH(what, kernel, grid, block, shared, stream, ...) \
    lk_emu_call((stream), (what), (kernel), (grid), (block), (shared), ##__VA_ARGS__)

/* The place in the source, for messages: where the caller wrote the call. */
#define LK_EMU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

template <typename T> static inline void lk_emu_check_one(const char *what, int argument, const T &value)
{
    if constexpr (std::is_pointer_v<T>) lk_emu_check_argument(what, argument, (const void *)value);
}

/* Arguments are converted to the kernel's own types and copied once, as a launch does. */
template <typename... P, typename... A>
static inline void lk_emu_call(struct CUstream_st *stream, const char *what, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                               A... arguments)
{
    static_assert(sizeof...(P) == sizeof...(A), "the kernel takes another number of arguments");
    struct call {
        const char *what;
        void (*kernel)(P...);
        std::tuple<P...> arguments;
    } c = {what, kernel, std::tuple<P...>(static_cast<P>(arguments)...)};
    lk_emu_body *check = [](void *p) {
        call *now = (call *)p;
        int at = 0;
        std::apply([&](const P &...a) { (lk_emu_check_one(now->what, ++at, a), ...); }, now->arguments);
        (void)at;
    };
    lk_emu_body *body = [](void *p) {
        call *now = (call *)p;
        std::apply(now->kernel, now->arguments);
    };
    lk_emu_launch_shape shape = {what, (const void *)kernel, grid, block, shared};
    if (lk_emu_keeps(stream)) {
        lk_emu_keep_launch(stream, &shape, check, body, std::make_shared<call>(c));
    } else {
        check(&c);
        lk_emu_launch(&shape, body, &c);
    }
}

LK_DEVICE void lk_block_sync(LK_EMU_HERE) { lk_emu_barrier(file, line); }
LK_DEVICE void lk_warp_sync(LK_EMU_HERE)
{
    lk_emu_warp(
        "lk_warp_sync", [](void *const *) {}, NULL, file, line);
}

/* A butterfly's lane is lane ^ mask, a plain shuffle's the one named, modulo 32. */
template <typename T> struct lk_emu_exchange {
    T value, got;
    int lane;
};
template <typename T> static void lk_emu_exchange_lanes(void *const lanes[32])
{
    for (int l = 0; l < 32; l++) {
        lk_emu_exchange<T> *mine = (lk_emu_exchange<T> *)lanes[l];
        mine->got = ((const lk_emu_exchange<T> *)lanes[mine->lane & 31])->value;
    }
}
LK_DEVICE int lk_emu_lane(void) { return (int)((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) & 31); }
template <typename T> LK_DEVICE T lk_shuffle(T value, int lane, LK_EMU_HERE)
{
    lk_emu_exchange<T> mine = {value, value, lane};
    lk_emu_warp("lk_shuffle", lk_emu_exchange_lanes<T>, &mine, file, line);
    return mine.got;
}
template <typename T> LK_DEVICE T lk_shuffle_xor(T value, int mask, LK_EMU_HERE)
{
    lk_emu_exchange<T> mine = {value, value, lk_emu_lane() ^ mask};
    lk_emu_warp("lk_shuffle_xor", lk_emu_exchange_lanes<T>, &mine, file, line);
    return mine.got;
}

void lk_emu_mma(float d[4], const uint32_t a[4], const uint32_t b[2], const char *file, int line);
void lk_emu_ldmatrix4(uint32_t out[4], const void *row, bool transposed, const char *file, int line);
LK_DEVICE void lk_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], LK_EMU_HERE) { lk_emu_mma(d, a, b, file, line); }
LK_DEVICE void lk_ldmatrix4(uint32_t out[4], const void *row, LK_EMU_HERE) { lk_emu_ldmatrix4(out, row, false, file, line); }
LK_DEVICE void lk_ldmatrix4_transposed(uint32_t out[4], const void *row, LK_EMU_HERE) { lk_emu_ldmatrix4(out, row, true, file, line); }

LK_DEVICE void lk_async_copy16(void *shared, const void *global, bool valid, LK_EMU_HERE)
{
    lk_emu_async_copy16(shared, global, valid, file, line);
}
LK_DEVICE void lk_async_commit(void) { lk_emu_async_commit(); }
template <int N> LK_DEVICE void lk_async_wait(void) { lk_emu_async_wait(N); }

LK_DEVICE void lk_proxy_fence(void) { lk_emu_proxy_fence(); }
LK_DEVICE uint64_t lk_group_rows(const void *rows, LK_EMU_HERE) { return lk_emu_group_rows(rows, file, line); }
LK_DEVICE void lk_group_mma(float (&d)[8][4], const uint32_t a[4], uint64_t rows, bool add, LK_EMU_HERE)
{
    lk_emu_group_mma(&d[0][0], a, rows, add, file, line);
}
LK_DEVICE void lk_group_fence(void) { lk_emu_group_fence(); }
LK_DEVICE void lk_group_commit(void) { lk_emu_group_commit(); }
template <int N> LK_DEVICE void lk_group_wait(LK_EMU_HERE) { lk_emu_group_wait(N, file, line); }
LK_DEVICE void lk_group_arrived(float (&)[8][4]) {}
LK_DEVICE void lk_prefetch(const void *) {}

LK_DEVICE float lk_as_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
LK_DEVICE uint32_t lk_as_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
/* As cvt.rn.bf16x2 does: nearest even, any NaN becomes 0x7fff. */
LK_DEVICE uint32_t lk_emu_bf16(float x)
{
    uint32_t u = lk_as_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
}
LK_DEVICE uint32_t lk_pack_bf16(float low, float high) { return lk_emu_bf16(low) | lk_emu_bf16(high) << 16; }
LK_DEVICE float lk_mul_rn(float a, float b) { return a * b; } /* the build forbids contraction */
LK_DEVICE float lk_add_rn(float a, float b) { return a + b; }
LK_DEVICE float lk_exp2(float x) { return exp2f(x); }
LK_DEVICE uint32_t lk_mul_high(uint32_t a, uint32_t b) { return (uint32_t)((uint64_t)a * b >> 32); }

#endif
