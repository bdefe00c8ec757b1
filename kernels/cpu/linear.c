/* y = x * w^T and dx = dy * w in blocks. Some rows are packed once; then each thread walks its share of the matrix, unpacks a few rows of
 * it (or columns, turned) for a part of the contraction into its own panel, and multiplies that by all the packed rows. At one token the
 * panel is used once and is simply the way from nibbles to the multiplier; at many its cost is shared. Tiers that have something better
 * for a few rows and an NF4 matrix take them as strips (kernels/cpu/gemm.h).
 *
 * Sizes: the packed rows of one pass stay in the second-level cache (AMX needs 32 bytes a cycle from each side, which the third
 * level does not deliver), and so does the panel; with few rows the panel stays in the first level.
 *
 * Threads divide N (forward) or K (backward). When that leaves threads idle, they divide the rows as well. Bits do not depend on any
 * of this: see kernels/cpu/gemm.h. */
#include "kernels/cpu/linear.h"
#include "kernels/cpu/ops.h"

enum {
    FEW = 8,                                            /* rows up to which a panel is made for the first-level cache, */
    FEW_TILES = 128,                                    /* where rows are multiplied by tiles, */
    FEW_BYTES = 16 << 10,                               /* of this size */
    MOST_ROWS = 512,                                    /* packed at a time */
    ROWS_BYTES = 1 << 20,                               /* of packed rows that one pass reads */
    PANEL_ELEMENTS = LK_NF4_TILE_DEPTH * LK_GEMM_DEPTH, /* of the matrix, unpacked */
    SUMS = 256 * 1024                                   /* floats kept between passes */
};

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/* How one product is cut: `rows` of activations at a time; passes of `depth` of the contraction, panels `width` rows (or, turned,
 * columns) of the matrix wide; `group` columns of the result see all passes before the next ones begin, so that their sums fit. */
typedef struct cut {
    int64_t rows, depth, width, group;
} cut;

static cut choose_cut(const lk_gemm *g, int64_t rows, int64_t depth, bool turned)
{
    bool few = rows <= (g->lanes > 1 ? FEW : FEW_TILES) && !turned;
    cut c = {.width = 2 * LK_TILE_ROWS, .depth = lk_gemm_depth(g)};
    if (turned) c = (cut){.width = LK_NF4_TILE_DEPTH, .depth = g->lanes > 1 ? lk_gemm_depth(g) : lk_gemm_depth(g) / 2};
    if (few) { /* one block of rows keeps lanes longest; two give the tile multiplier a second chain of sums */
        c.width = g->lanes > 1 ? LK_TILE_ROWS : 2 * LK_TILE_ROWS;
        c.depth = FEW_BYTES / c.width / (int64_t)g->element;
    }
    int64_t fit = ROWS_BYTES / (int64_t)g->element / smaller(c.depth, larger(depth, 1));
    c.rows = smaller(MOST_ROWS, larger(fit / 32 * 32, 32));
    c.group = few ? c.width : SUMS / round_up(smaller(c.rows, larger(rows, 1)), LK_TILE_ROWS) / c.width * c.width;
    return c;
}

/* Of one thread: a panel and the sums. */
static size_t thread_bytes(const lk_gemm *g) { return PANEL_ELEMENTS * g->element + SUMS * sizeof(float); }

size_t lk_cpu_product_scratch(const lk_gemm *g, int threads, int64_t rows, int64_t width)
{
    return lk_gemm_panel_bytes(g, smaller(rows, MOST_ROWS), width) + (size_t)threads * thread_bytes(g);
}

/* One block of rows of one product, as the threads see it. */
typedef struct product {
    const lk_cpu_team *team;
    const lk_matrix *w;
    const float *in;
    float *out;
    int64_t ldin, ldout;
    int64_t rows;  /* of this block */
    int64_t depth; /* the contraction: K forward, N backward */
    int64_t width; /* of the result: N forward, K backward */
    const float *bias;
    bool turned, accumulate;
    cut cut;
    int across; /* threads that share the width; the others take other rows */
    char *packed, *panels;
} product;

/* Packed rows lie pass by pass, [pass][16 rows][tiles of the pass]: were K whole rows apart, at the usual powers of two the rows of
 * one pass would fall into half of the second-level cache's sets. */
static char *packed_pass(const product *p, int64_t first, int64_t row, int64_t *pitch)
{
    const lk_gemm *g = p->team->gemm;
    *pitch = (int64_t)lk_gemm_panel_bytes(g, 1, smaller(p->depth - first, p->cut.depth));
    return p->packed + lk_gemm_panel_bytes(g, p->rows, first) + row / LK_TILE_ROWS * *pitch;
}

static void pack_rows(void *context, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const product *p = context;
    const lk_gemm *g = p->team->gemm;
    int64_t row = begin * LK_TILE_ROWS, rows = smaller(end * LK_TILE_ROWS, p->rows) - row, pitch;
    lk_factor factor = lk_factor_rows(p->in, LK_F32, p->ldin);
    for (int64_t first = 0; first < p->depth; first += p->cut.depth) {
        char *to = packed_pass(p, first, row, &pitch);
        int64_t depth = smaller(p->depth - first, p->cut.depth);
        if (p->turned)
            lk_gemm_pack_left(g, to, factor, row, rows, first, depth);
        else
            lk_gemm_pack_right(g, to, factor, row, rows, first, depth);
    }
}

/* One thread's part: columns [begin, end) of the result for rows [row, row + rows). */
typedef struct part {
    const product *p;
    int64_t row, rows, begin, end;
    char *panel;
    float *sums;
} part;

/* `columns` columns from `at`, the contraction from `first` on: unpack and multiply. */
static void multiply_panel(const part *t, int64_t at, int64_t columns, int64_t first, float *sums)
{
    const product *p = t->p;
    const lk_gemm *g = p->team->gemm;
    int64_t depth = smaller(p->depth - first, p->cut.depth), pitch;
    const char *packed = packed_pass(p, first, t->row, &pitch);
    lk_gemm_pass pass = {.c = p->out + t->row * p->ldout + at,
                         .tiles = lk_tiles_along(depth),
                         .first = first / LK_TILE_DEPTH,
                         .mode = p->accumulate ? LK_GEMM_ADD : LK_GEMM_SET,
                         .partial = first + depth < p->depth,
                         .sums = sums};
    if (p->turned) {
        lk_cpu_matrix_turned(p->w, t->panel, first, depth, at, columns);
        pass.down = p->ldout, pass.across = 1;
        pass.left = packed, pass.left_rows = t->rows, pass.left_pitch = pitch;
        pass.right = t->panel, pass.right_rows = columns, pass.right_pitch = (int64_t)lk_gemm_panel_bytes(g, 1, depth);
    } else {
        pass.left = lk_cpu_matrix_panel(p->w, t->panel, &pass.left_pitch, at, columns, first, depth);
        pass.down = 1, pass.across = p->ldout;
        pass.left_rows = columns;
        pass.right = packed, pass.right_rows = t->rows, pass.right_pitch = pitch;
    }
    g->multiply(&pass);
}

static void add_bias(const part *t, int64_t at, int64_t columns)
{
    const product *p = t->p;
    for (int64_t i = t->row; i < t->row + t->rows; i++)
        for (int64_t j = at; j < at + columns; j++) p->out[i * p->ldout + j] += p->bias[j];
}

static void multiply_part(const part *t)
{
    const cut *c = &t->p->cut;
    const lk_gemm *g = t->p->team->gemm;
    lk_gemm_begin(g);
    for (int64_t group = t->begin; group < t->end; group += c->group) {
        int64_t last = smaller(group + c->group, t->end);
        for (int64_t first = 0; first < t->p->depth; first += c->depth)
            for (int64_t at = group; at < last; at += c->width)
                multiply_panel(t, at, smaller(c->width, last - at), first, t->sums + lk_gemm_sums(g, t->rows, at - group, false));
        if (t->p->bias) add_bias(t, group, last - group);
    }
    lk_gemm_end(g);
}

static void multiply_share(void *context, int64_t begin, int64_t end, int thread)
{
    (void)begin, (void)end;
    const product *p = context;
    int threads = lk_pool_threads(p->team->pool), groups = threads / p->across;
    int column = thread % p->across, group = thread / p->across;
    if (group >= groups) return;
    int64_t unit = p->cut.width, units = (p->width + unit - 1) / unit, blocks = lk_tiles_down(p->rows);
    int64_t from = units * column / p->across * unit, to = smaller(units * (column + 1) / p->across * unit, p->width);
    int64_t row = blocks * group / groups * LK_TILE_ROWS, last = smaller(blocks * (group + 1) / groups * LK_TILE_ROWS, p->rows);
    part t = {.p = p, .row = row, .rows = last - row, .begin = from, .end = to};
    t.panel = p->panels + (size_t)thread * thread_bytes(p->team->gemm);
    t.sums = (float *)(void *)(t.panel + PANEL_ELEMENTS * p->team->gemm->element);
    if (from < to && row < last) multiply_part(&t);
}

/* The same for a few rows, straight from the blocks of an NF4 matrix. */
static void multiply_strip(void *context, int64_t begin, int64_t end, int thread)
{
    const product *p = context;
    lk_gemm_strip s = {.c = p->out + begin * LK_TILE_ROWS,
                       .across = p->ldout,
                       .rows = smaller(end * LK_TILE_ROWS, p->width) - begin * LK_TILE_ROWS,
                       .tiles = lk_tiles_along(p->depth),
                       .packed = p->packed,
                       .count = p->rows,
                       .panel = p->panels + (size_t)thread * thread_bytes(p->team->gemm)};
    s.blocks = lk_cpu_matrix_blocks(p->w, begin * LK_TILE_ROWS, &s.blocks_along);
    p->team->gemm->strip(&s);
    if (p->bias) add_bias(&(part){.p = p, .rows = p->rows}, begin * LK_TILE_ROWS, s.rows);
}

static bool takes_strips(const product *p, int64_t rows)
{
    int64_t along;
    return !p->turned && rows > 0 && rows <= p->team->gemm->few && p->depth > 0 && lk_cpu_matrix_blocks(p->w, 0, &along);
}

/* How many threads share the width: all, unless there are more threads than units of it and rows enough to divide. */
static int threads_across(const product *p, int threads)
{
    int64_t units = (p->width + p->cut.width - 1) / p->cut.width;
    int across = threads;
    while (across > units && across % 2 == 0 && lk_tiles_down(p->rows) >= threads / across * 2) across /= 2;
    return across;
}

static void run(product *p, int64_t rows)
{
    const lk_cpu_team *team = p->team;
    int threads = lk_pool_threads(team->pool);
    p->cut = choose_cut(team->gemm, rows, p->depth, p->turned);
    p->packed = team->scratch;
    p->panels = p->packed + lk_gemm_panel_bytes(team->gemm, smaller(rows, MOST_ROWS), p->depth);
    if (takes_strips(p, rows)) {
        p->rows = rows;
        lk_gemm_pack_few(team->gemm, p->packed, p->in, p->ldin, rows, p->depth);
        lk_pool_run(team->pool, lk_tiles_down(p->width), 1, multiply_strip, p);
        return;
    }
    const float *in = p->in;
    float *out = p->out;
    for (int64_t first = 0; first < rows; first += p->cut.rows) {
        p->in = in + first * p->ldin;
        p->out = out + first * p->ldout;
        p->rows = smaller(rows - first, p->cut.rows);
        p->across = threads_across(p, threads);
        lk_pool_run(team->pool, lk_tiles_down(p->rows), 1, pack_rows, p);
        lk_pool_each(team->pool, multiply_share, p);
    }
}

void lk_cpu_product(const lk_cpu_team *team, float *y, int64_t ldy, const float *x, int64_t ldx, int64_t rows, const lk_matrix *w,
                    const float *bias)
{
    product p = {.team = team, .w = w, .in = x, .out = y, .ldin = ldx, .ldout = ldy, .depth = w->k, .width = w->n, .bias = bias};
    run(&p, rows);
}

void lk_cpu_product_backward(const lk_cpu_team *team, float *dx, int64_t lddx, const float *dy, int64_t lddy, int64_t rows,
                             const lk_matrix *w, bool accumulate)
{
    product p = {.team = team, .w = w, .in = dy, .out = dx, .ldin = lddy, .ldout = lddx, .depth = w->n, .width = w->k};
    p.turned = true;
    p.accumulate = accumulate;
    run(&p, rows);
}

/* ---------------------------------------------------------------------------------------------- table entries */

lk_cpu_team lk_cpu_team_of(lk_backend *be, void *scratch)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    return (lk_cpu_team){lk_gemm_get(cpu->tier, be->compute), cpu->pool, scratch};
}

size_t lk_cpu_linear_scratch(const lk_backend *be, const lk_limits *limits)
{
    /* The head goes backward only inside the loss, which has its own: N of the vocabulary never is a contraction here. */
    return lk_cpu_product_scratch(lk_gemm_get(lk_cpu_of_const(be)->tier, be->compute), be->threads, limits->tokens, limits->width);
}

lk_status lk_cpu_linear(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const lk_matrix *w, const float *bias,
                        const lk_tensor *residual)
{
    lk_cpu_team team = lk_cpu_team_of(be, NULL);
    LK_TRY(lk_cpu_scratch(be, "linear", lk_cpu_product_scratch(team.gemm, be->threads, x->rows, w->k), &team.scratch));
    lk_cpu_product(&team, y->data, y->stride, x->data, x->stride, x->rows, w, bias);
    return residual ? lk_cpu_add(be, y, residual) : LK_OK;
}

lk_status lk_cpu_linear_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dy, const lk_matrix *w, bool accumulate)
{
    lk_cpu_team team = lk_cpu_team_of(be, NULL);
    LK_TRY(lk_cpu_scratch(be, "linear_backward", lk_cpu_product_scratch(team.gemm, be->threads, dy->rows, w->n), &team.scratch));
    lk_cpu_product_backward(&team, dx->data, dx->stride, dy->data, dy->stride, dy->rows, w, accumulate);
    return LK_OK;
}

typedef struct embedding {
    const lk_tensor *y;
    const lk_matrix *table;
    const int32_t *ids;
} embedding;

static void embed_rows(void *context, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const embedding *e = context;
    for (int64_t t = begin; t < end; t++)
        lk_cpu_matrix_unpack(e->table, e->ids[t], (int64_t)e->ids[t] + 1, (float *)e->y->data + t * e->y->stride);
}

lk_status lk_cpu_embed(lk_backend *be, const lk_tensor *y, const lk_matrix *table, const int32_t *ids)
{
    embedding e = {y, table, ids};
    lk_pool_run(lk_cpu_of(be)->pool, y->rows, 8, embed_rows, &e);
    return LK_OK;
}
