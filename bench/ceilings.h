/* What this machine can do at most, measured in the same run as whatever is compared with it: clocks, neighbours and virtual
 * machines change from hour to hour, a data sheet does not know.
 *
 *     double gb_s = lk_ceiling_read(pool);
 *
 * Each takes a few hundred milliseconds and returns the best of several tries over all threads of the pool; 0 when the processor lacks
 * the instruction. */
#ifndef LK_BENCH_CEILINGS_H
#define LK_BENCH_CEILINGS_H

#include "base/pool.h"

double lk_ceiling_read(lk_pool *pool);     /* GB/s from memory, 256 MiB a thread */
double lk_ceiling_f32_avx2(lk_pool *pool); /* GFLOP/s of fp32 FMA on 256 bits */
double lk_ceiling_f32(lk_pool *pool);      /* the same on the widest vectors there are */
double lk_ceiling_dpbf16(lk_pool *pool);   /* GFLOP/s of vdpbf16ps on 512 bits */
double lk_ceiling_amx(lk_pool *pool);      /* GFLOP/s of tdpbf16ps, operands resident in tile registers */

#endif
