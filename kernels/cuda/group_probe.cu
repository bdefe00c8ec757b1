/* Before the products of serving take warp groups for many tokens and mma.sync for few, the device itself says whether the two add alike:
 * a token's bits may not depend on how many others there are (product.h), and that both instructions round in the same way stands in no
 * manual. Bit for bit, 16 rounds of 64 x 64 x 64 in chains of four products as the kernels run them, from zero and on top of sums: values
 * of one size, exponents over 80 powers of two, sums that cancel, and products that fall below the normal numbers.
 *
 * Where they differ, or the module was built without sm_90a, products go by mma.sync alone, as on every other GPU. */
#include "kernels/cuda/group_probe.h"

#include "kernels/cuda/device.h"

enum { THREADS = 128, ROUNDS = 16, DONE = 0x600d, KINDS = 4 };

#ifdef LK_HAS_GROUPS
/* A counter's hash (the finaliser of MurmurHash3). */
LK_DEVICE uint32_t probe_random(uint32_t x)
{
    x = (x ^ x >> 16) * 0x85ebca6bu;
    x = (x ^ x >> 13) * 0xc2b2ae35u;
    return x ^ x >> 16;
}

/* bf16 number `at` of a round: sign and fraction at random, the exponent by the kind of the round. Of the third kind numbers 8 to 15 of
 * every 16 are those 8 before them, of A negated and all but one in 16 equal, so that most of a sum cancels. */
LK_DEVICE uint32_t probe_value(uint32_t round, uint32_t at, bool of_a)
{
    uint32_t kind = round % KINDS;
    bool echo = kind == 2 && at % 16 >= 8;
    uint32_t r = probe_random((echo ? at - 8 : at) * 2 + of_a + round * 0x10001u), bits = r & 0x807fu;
    if (echo && of_a) bits ^= 0x8000u | (r >> 28 == 0);
    uint32_t spread = r >> 8 & 0xff;
    if (kind == 0) return bits | (125 + spread % 4) << 7;
    if (kind == 3) return bits | (spread % 40 + 40) << 7; /* products about 2^-174 to 2^-94: the least number is 2^-149 */
    return bits | (87 + spread % 80) << 7;
}

LK_DEVICE uint32_t probe_pair(uint32_t round, uint32_t row, uint32_t column, bool of_a)
{
    uint32_t at = row * 64 + column;
    return probe_value(round, at, of_a) | probe_value(round, at + 1, of_a) << 16;
}

/* Adds to `wrong` how many of this lane's sums differ in a round. */
LK_DEVICE int probe_round(unsigned char *rows, uint32_t round)
{
    int lane = (int)threadIdx.x % 32;
    uint32_t row = threadIdx.x / 32 * 16 + (uint32_t)lane / 4, column = (uint32_t)lane % 4 * 2;
    for (uint32_t i = threadIdx.x; i < 64 * 32; i += THREADS) { /* pairs of b */
        uint32_t r = i / 32, pair = i % 32;
        *(uint32_t *)(rows + r * 128 + ((pair / 4) ^ (r & 7)) * 16 + pair % 4 * 4) = probe_pair(round, r, 2 * pair, false);
    }
    lk_proxy_fence();
    lk_block_sync();
    uint32_t a[4][4];
    float group[8][4], warp[8][4];
    LK_UNROLL
    for (int i = 0; i < 16; i++) a[i / 4][i % 4] = probe_pair(round, row + 8 * (i % 2), 16 * (i / 4) + column + 8 * (i % 4 / 2), true);
    LK_UNROLL
    for (int i = 0; i < 32; i++) {
        uint32_t start = probe_value(round, 4096 + threadIdx.x * 32 + i, false) << 16 | (probe_random(i + round) & 0xffff);
        warp[i / 4][i % 4] = group[i / 4][i % 4] = round % 8 < KINDS ? 0.0f : lk_as_float(start);
    }
    lk_group_fence();
    LK_UNROLL
    for (int step = 0; step < 4; step++)
        lk_group_mma(group, a[step], lk_group_rows(rows) + 2 * (uint64_t)step, step > 0 || round % 8 >= KINDS);
    lk_group_commit();
    lk_group_wait<0>();
    lk_group_arrived(group);
    int wrong = 0;
    LK_UNROLL
    for (int t = 0; t < 8; t++) {
        LK_UNROLL
        for (int step = 0; step < 4; step++) {
            uint32_t r = t * 8 + (uint32_t)lane / 4, pair = 8 * step + (uint32_t)lane % 4, b[2];
            for (int half = 0; half < 2; half++)
                b[half] = *(const uint32_t *)(rows + r * 128 + ((pair / 4 + half) ^ (r & 7)) * 16 + pair % 4 * 4);
            lk_mma_bf16(warp[t], a[step], b);
        }
        for (int i = 0; i < 4; i++) wrong += lk_as_bits(warp[t][i]) != lk_as_bits(group[t][i]);
    }
    lk_block_sync(); /* before b is another one */
    return wrong;
}
#endif

/* out: DONE, and how many sums differ. */
LK_KERNEL void probe_kernel(int *out)
{
#ifdef LK_HAS_GROUPS
    LK_SHARED_ROWS(unsigned char, rows);
    LK_SHARED(int, wrong, THREADS);
    int mine = 0;
    for (uint32_t round = 0; round < ROUNDS; round++) mine += probe_round(rows, round);
    wrong[threadIdx.x] = mine;
    lk_block_sync();
    if (threadIdx.x) return;
    for (int i = 1; i < THREADS; i++) mine += wrong[i];
    out[0] = DONE;
    out[1] = mine;
#endif
}

static lk_status run_probe(lk_backend *be, int *out, int got[2])
{
    lk_cuda *cu = lk_cuda_of(be);
    LK_TRY(lk_rt_set(out, 0, 2 * sizeof(int), cu->stream, &be->error));
    LK_LAUNCH("group_probe", probe_kernel, dim3(1), dim3(THREADS), 64 * 128, cu->stream, out);
    LK_TRY(lk_rt_launched("group_probe", &be->error));
    LK_TRY(lk_rt_copy(got, out, 2 * sizeof(int), cu->stream, &be->error));
    return lk_rt_stream_sync(cu->stream, &be->error);
}

extern "C" lk_status lk_cuda_probe_groups(lk_backend *be, int *wrong)
{
    void *out;
    int got[2] = {0, 0};
    LK_TRY(lk_cuda_alloc(be, sizeof got, &out));
    lk_status status = run_probe(be, (int *)out, got);
    lk_cuda_free(be, out);
    *wrong = got[0] == DONE ? got[1] : -1;
    return status;
}
