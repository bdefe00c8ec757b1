/* The dialect that this module's kernels are written in: CUDA C++ where the few things that a host compiler lacks have names here, so that
 * one source builds with nvcc and, with -include tests/cuda_emu/emu.h (which defines LK_CUDA_EMU), with a host compiler.
 *
 *     LK_KERNEL void scale(float *x, int64_t n, float by)
 *     {
 *         LK_SHARED(float, tile, 256);                  -- a block's own memory; poisoned in the emulation
 *         int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
 *         if (i < n) x[i] *= by;
 *     }
 *     LK_LAUNCH("scale", scale, dim3(blocks), dim3(256), 0, stream, x, n, by);       -- returns nothing; then
 *     return lk_rt_launched("scale", &be->error);
 *
 * Rules the emulation relies on: shared memory only through LK_SHARED and LK_SHARED_DYNAMIC; asynchronous copies only through
 * lk_async_*; warp operations with all 32 lanes present; no <<<>>>; vector loads through lk_load16/lk_store16. Sums across threads run
 * in a fixed order: lk_warp_sum's butterfly, then warps in order. No atomics on floating-point values. */
#ifndef LK_KERNELS_CUDA_DEVICE_H
#define LK_KERNELS_CUDA_DEVICE_H

#include <stdint.h>

#ifndef LK_CUDA_EMU /* else tests/cuda_emu/emu.h, which is included ahead of everything, has the same names for the host */

#include <cuda_runtime.h>

#define LK_KERNEL                    static __global__
#define LK_DEVICE                    static __device__ __forceinline__
#define LK_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define LK_SHARED_DYNAMIC(type, name)                                      \
    extern __shared__ __align__(16) unsigned char lk_dynamic_shared_raw[]; \
    type *name = (type *)lk_dynamic_shared_raw
#define LK_SHARED_ROWS(type, name)                                        \
    extern __shared__ __align__(1024) unsigned char lk_rows_shared_raw[]; \
    type *name = (type *)lk_rows_shared_raw
#define LK_LAUNCH(what, kernel, grid, block, shared, stream, ...) kernel<<<(grid), (block), (shared), (stream)>>>(__VA_ARGS__)
#define LK_UNROLL                                                 _Pragma("unroll")

LK_DEVICE void lk_block_sync(void) { __syncthreads(); }
LK_DEVICE void lk_warp_sync(void) { __syncwarp(); }
template <typename T> LK_DEVICE T lk_shuffle(T value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
template <typename T> LK_DEVICE T lk_shuffle_xor(T value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

/* d += a * b, one 16x8x16 tile of a warp: a row-major bf16 pairs, b column-major, c and d fp32 (PTX ISA, mma.m16n8k16 fragments). */
LK_DEVICE void lk_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four 8x8 tiles of bf16 from shared memory; lane l gives the address of row l%8 of tile l/8. */
LK_DEVICE void lk_ldmatrix4(uint32_t out[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}
LK_DEVICE void lk_ldmatrix4_transposed(uint32_t out[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

/* 16 bytes from global to shared memory without passing through registers; zeros when !valid (nothing is read then). */
LK_DEVICE void lk_async_copy16(void *shared, const void *global, bool valid)
{
    uint32_t n = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)), "l"(global), "r"(n)
                 : "memory");
}
LK_DEVICE void lk_async_commit(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Waits until at most N of this thread's groups are on their way; others' copies need a lk_block_sync after it. */
template <int N> LK_DEVICE void lk_async_wait(void) { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define LK_HAS_GROUPS 1
LK_DEVICE void lk_group_fence(void) { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
LK_DEVICE void lk_group_commit(void) { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> LK_DEVICE void lk_group_wait(void) { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
LK_DEVICE void lk_proxy_fence(void) { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
LK_DEVICE uint64_t lk_group_rows(const void *rows)
{
    uint64_t address = (uint64_t)__cvta_generic_to_shared(rows);
    return (address & 0x3ffff) >> 4 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
LK_DEVICE void lk_group_mma(float (&d)[8][4], const uint32_t a[4], uint64_t rows, bool add)
{
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
                 "{%32,%33,%34,%35}, %36, add, 1, 1, 0;\n}"
                 : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
                   "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
                   "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
                   "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(rows), "r"((int)add));
}
LK_DEVICE void lk_group_arrived(float (&d)[8][4])
{
    LK_UNROLL
    for (int t = 0; t < 8; t++) asm volatile("" : "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3])::"memory");
}
#endif

/* Asks for the line at p to come to L2. */
LK_DEVICE void lk_prefetch(const void *p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

/* Two floats as a pair of bf16, nearest even, `low` in the low half. */
LK_DEVICE uint32_t lk_pack_bf16(float low, float high)
{
    uint32_t out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}
/* Products and sums that the compiler must not fuse: where bits have to equal the host's. */
LK_DEVICE float lk_mul_rn(float a, float b) { return __fmul_rn(a, b); }
LK_DEVICE float lk_add_rn(float a, float b) { return __fadd_rn(a, b); }
LK_DEVICE float lk_exp2(float x) { return exp2f(x); }
LK_DEVICE float lk_as_float(uint32_t bits) { return __uint_as_float(bits); }
LK_DEVICE uint32_t lk_as_bits(float x) { return __float_as_uint(x); }
LK_DEVICE uint32_t lk_mul_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }

#endif

/* Products of a warp group (four warps of which the first is a multiple of four), on sm_90a only: code that calls them stands between
 * #ifdef LK_HAS_GROUPS. d[64,64] = a[64,16] b[64,16]^T (+ d): lane and register hold of warp w's rows 16w .. 16w+15 what they hold in
 * lk_mma_bf16 of a and, tile of 8 columns by tile, of d. b lies in shared memory as 64 rows of 128 bytes, of which 32 are taken; 16-byte
 * chunk c of row r lies at c ^ (r & 7); lk_group_rows(b) names it, + 2 the 16 columns after it. b begins at a multiple of 1024 bytes, which
 * memory of LK_SHARED_ROWS does. (PTX ISA, "Asynchronous warpgroup level matrix instructions": K-major, 128-byte swizzle.)
 *
 *     lk_async_wait<0>();                    -- b was brought by asynchronous copies, then
 *     lk_proxy_fence();                      -- each thread shows what it wrote, also by plain stores, to the tensor cores, then
 *     lk_block_sync();
 *     unpack(a); lk_group_fence();           -- whenever registers of a or d have been written by other than these products, and at first
 *     for (int s = 0; s < 4; s++) lk_group_mma(d, a[s], rows + 2 * s, s > 0);
 *     lk_group_commit();
 *     lk_group_wait<0>();                    -- all but N groups have ended: a may be written again,
 *     lk_group_arrived(d);                   -- and d read, which the compiler would otherwise do before
 *
 * From the product to the wait neither a nor d may be touched, nor leave their scope, nor may b change. */

/* ---------------------------------------------------------------------------------------------- the same in both builds */

typedef uint16_t lk_bf16; /* bits */

LK_DEVICE float lk_bf16_float(lk_bf16 h) { return lk_as_float((uint32_t)h << 16); }
LK_DEVICE lk_bf16 lk_float_bf16(float f) { return (lk_bf16)lk_pack_bf16(f, 0.0f); }
LK_DEVICE float lk_low(uint32_t pair) { return lk_as_float(pair << 16); }
LK_DEVICE float lk_high(uint32_t pair) { return lk_as_float(pair & 0xffff0000u); }

/* Eight bf16 values, 16 bytes, 16-byte aligned. */
LK_DEVICE void lk_load8(float out[8], const lk_bf16 *p)
{
    uint4 v = *(const uint4 *)p;
    uint32_t w[4] = {v.x, v.y, v.z, v.w};
    for (int i = 0; i < 4; i++) {
        out[2 * i] = lk_low(w[i]);
        out[2 * i + 1] = lk_high(w[i]);
    }
}
LK_DEVICE void lk_store8(lk_bf16 *p, const float in[8])
{
    uint4 v;
    v.x = lk_pack_bf16(in[0], in[1]);
    v.y = lk_pack_bf16(in[2], in[3]);
    v.z = lk_pack_bf16(in[4], in[5]);
    v.w = lk_pack_bf16(in[6], in[7]);
    *(uint4 *)p = v;
}

LK_DEVICE float lk_warp_sum(float x)
{
    for (int mask = 16; mask; mask >>= 1) x += lk_shuffle_xor(x, mask);
    return x;
}
LK_DEVICE float lk_warp_max(float x)
{
    for (int mask = 16; mask; mask >>= 1) x = fmaxf(x, lk_shuffle_xor(x, mask));
    return x;
}

/* Sum over the block, the same value in every thread: lanes by butterfly, warps in order. `part` is shared memory for 32 floats that
 * nobody else uses between this call and the next block barrier after it. All threads of the block call; their number is a multiple of 32.
 */
LK_DEVICE float lk_block_sum(float x, float *part)
{
    int thread = (int)threadIdx.x, warps = (int)blockDim.x / 32;
    x = lk_warp_sum(x);
    lk_block_sync();
    if (thread % 32 == 0) part[thread / 32] = x;
    lk_block_sync();
    float total = 0.0f;
    for (int w = 0; w < warps; w++) total += part[w];
    return total;
}
LK_DEVICE float lk_block_max(float x, float *part)
{
    int thread = (int)threadIdx.x, warps = (int)blockDim.x / 32;
    x = lk_warp_max(x);
    lk_block_sync();
    if (thread % 32 == 0) part[thread / 32] = x;
    lk_block_sync();
    float most = part[0];
    for (int w = 1; w < warps; w++) most = fmaxf(most, part[w]);
    return most;
}

#endif
