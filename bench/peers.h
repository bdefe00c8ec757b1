/* Other libraries on the same product: y[M,N] = x[M,K] * w[N,K]^T with dense weights, packed beforehand where the library can. They
 * read four times the bytes of NF4 (bf16) or eight (fp32): at few rows that is the point, at many they have less to do.
 *
 *     lk_peer *p = lk_peer_open(LK_PEER_DNNL_BF16, m, n, k, w, threads);      -- NULL when this build or machine lacks it
 *     lk_peer_run(p, y, x);
 *     lk_peer_close(p); */
#ifndef LK_BENCH_PEERS_H
#define LK_BENCH_PEERS_H

#include <stdint.h>

typedef enum lk_peer_kind { LK_PEER_OPENBLAS_F32, LK_PEER_DNNL_F32, LK_PEER_DNNL_BF16, LK_PEERS } lk_peer_kind;
typedef struct lk_peer lk_peer;

const char *lk_peer_name(lk_peer_kind kind);
/* w[N,K] fp32. Threads: OpenBLAS is told; oneDNN takes OMP_NUM_THREADS. */
lk_peer *lk_peer_open(lk_peer_kind kind, int64_t m, int64_t n, int64_t k, const float *w, int threads);
void lk_peer_run(lk_peer *p, float *y, const float *x); /* x is rounded to bf16 inside, and timed with the rest, as ours is */
void lk_peer_close(lk_peer *p);

#endif
