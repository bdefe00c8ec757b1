/* What the benchmarks of a device share: results as rows, times of queued operations, ceilings measured in the same run. A result is a line
 * "row<TAB>name<TAB>value<TAB>of<TAB>goal<TAB>verdict", which deploy/gpu.sh gathers. Any failure ends the program. */
#ifndef LK_BENCH_DEVICE_H
#define LK_BENCH_DEVICE_H

#include "kernels/ops.h"
#include "model/config.h"

typedef struct bench {
    lk_backend *be;
    lk_error err;
    lk_config c;
    int64_t tokens;       /* rows of every activation */
    double copy, product; /* ceilings: bytes/s, operations/s */
    double last;          /* seconds of the last operation timed */
} bench;

void bench_row(const char *name, const char *value, const char *of, const char *goal, const char *verdict);
_Noreturn void bench_stop(const char *what, const lk_error *err);
void bench_check(bench *b, const char *what, lk_status status);
/* rows x cols of small random numbers, `gap` elements between rows. */
lk_tensor bench_tensor(bench *b, lk_dtype type, int64_t rows, int64_t cols, int64_t gap);

typedef lk_status bench_operation(bench *b, void *context);
/* Seconds of one call: the median of five rounds of about 30 ms each, of the host's clock round many queued calls and one wait. */
double bench_seconds(bench *b, const char *what, bench_operation *run, void *context);
/* A row: time, rate, and its percentage of the ceiling under which this work would take longer. goal_percent 0: none. */
void bench_report(bench *b, const char *name, double seconds, double bytes, double operations, double goal_percent);
/* Bandwidth of a copy within the device, and the rate of one large bf16 product (8192, small: 512). */
void bench_ceilings(bench *b, bool small);
/* Of codes and double-quantised scales. */
double bench_nf4_bytes(double weights);

#endif
