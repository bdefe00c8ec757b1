/* AdamW element by element, and sums of squares in pieces of fixed boundaries. */
#include <math.h>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

typedef struct adamw_args {
    const lk_rows *rows;
    float *p, *m, *v;
    const float *g;
    lk_adamw_rates rates;
} adamw_args;

static void update(void *context, int64_t begin, int64_t end, int thread)
{
    const adamw_args *a = context;
    (void)thread;
    a->rows->adamw(a->p + begin, a->g + begin, a->m + begin, a->v + begin, end - begin, &a->rates);
}

lk_status lk_cpu_adamw(lk_backend *be, float *p, const float *g, float *m, float *v, int64_t n, const lk_adamw_step *s)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    double first = 1.0 - pow((double)s->beta1, (double)s->step), second = 1.0 - pow((double)s->beta2, (double)s->step);
    adamw_args args = {.rows = lk_rows_get(cpu->tier), .p = p, .m = m, .v = v, .g = g};
    args.rates = (lk_adamw_rates){.beta1 = s->beta1,
                                  .beta2 = s->beta2,
                                  .rest1 = 1.0f - s->beta1,
                                  .rest2 = 1.0f - s->beta2,
                                  .rate = (float)((double)s->lr / first),
                                  .root = (float)sqrt(second),
                                  .decay = (float)(1.0 - (double)s->lr * (double)s->weight_decay),
                                  .eps = s->eps,
                                  .grad_scale = s->grad_scale};
    lk_pool_run(cpu->pool, n, 4096, update, &args);
    return LK_OK;
}

/* Piece i of PIECES is elements n*i/PIECES up to n*(i+1)/PIECES whoever sums it. */
enum { PIECES = 128 };

typedef struct squares_args {
    const lk_rows *rows;
    const float *x;
    int64_t n;
    double sums[PIECES];
} squares_args;

static void squares(void *context, int64_t begin, int64_t end, int thread)
{
    squares_args *a = context;
    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        int64_t from = a->n / PIECES * i + a->n % PIECES * i / PIECES, to = a->n / PIECES * (i + 1) + a->n % PIECES * (i + 1) / PIECES;
        a->sums[i] = a->rows->sum_squares_double(a->x + from, to - from);
    }
}

lk_status lk_cpu_sum_squares(lk_backend *be, double *out, const float *x, int64_t n)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    squares_args args = {.rows = lk_rows_get(cpu->tier), .x = x, .n = n};
    lk_pool_run(cpu->pool, PIECES, n > 100000 ? 1 : PIECES, squares, &args);
    *out = 0.0;
    for (int i = 0; i < PIECES; i++) *out += args.sums[i];
    return LK_OK;
}
