/* Gradients of what is trained as a whole (biases, embeddings, heads) and of factors on the head: every tier against the reference, the
 * same bits with any threads, gradients against differences, and a matrix whose rows are replaced against one made anew. */
#include "tests/kernels/loss_cases.h"

/* ---- columns, products, embeddings */

typedef struct sum_case {
    int64_t rows, n, k, gap, table;
} sum_case;

static const sum_case sums[] = {{0, 5, 3, 0, 4}, {1, 1, 1, 0, 1}, {7, 33, 16, 1, 5}, {65, 129, 70, 0, 11}, {130, 64, 257, 3, 40}};
enum { N_SUMS = sizeof sums / sizeof *sums };

typedef struct sum_outcome {
    float *columns, *product, *table;
} sum_outcome;

static void row_ids(const sum_case *s, int32_t *ids)
{
    check_random r = {5};
    for (int64_t t = 0; t < s->rows; t++) ids[t] = (int32_t)(check_random_u64(&r) % (uint64_t)(s->table + 1)) - 1;
}

static sum_outcome run_sums(lk_backend *be, const sum_case *s)
{
    float *dy_values = random_floats(1, s->rows * s->n, 1.0f), *x_values = random_floats(2, s->rows * s->k, 1.0f);
    guarded dy = guarded_from(s->rows, s->n, s->gap, dy_values), x = guarded_from(s->rows, s->k, s->gap, x_values),
            columns = guarded_make(1, s->n, 0), product = guarded_make(s->n, s->k, 0), table = guarded_make(s->table, s->n, 0);
    guarded *all[] = {&columns, &product, &table};
    for (int i = 0; i < 3; i++) { /* they accumulate */
        float *start = random_floats((uint64_t)(7 + i), all[i]->t.rows * all[i]->t.cols, 1.0f);
        guarded_fill(all[i], start);
        free(start);
    }
    int32_t ids[200];
    row_ids(s, ids);
    OP(be, lk_add_columns(be, columns.t.data, &dy.t, 0.5f));
    OP(be, lk_weight_gradient(be, product.t.data, &dy.t, &x.t, 0.5f));
    OP(be, lk_embed_backward(be, table.t.data, s->table, &dy.t, ids));
    sum_outcome o = {guarded_values("columns", &columns), guarded_values("product", &product), guarded_values("table", &table)};
    guarded *rest[] = {&dy, &x, &columns, &product, &table};
    for (int i = 0; i < 5; i++) guarded_free(rest[i]);
    free(dy_values);
    free(x_values);
    return o;
}

static void free_sums(sum_outcome *o)
{
    free(o->columns);
    free(o->product);
    free(o->table);
}

static void test_sums(void **state)
{
    (void)state;
    for (int compute = 0; compute < 2; compute++) {
        lk_dtype type = compute ? LK_BF16 : LK_F32;
        lk_backend *reference = open_tier("reference", 1, type);
        for (int tier = 1; tier < N_TIERS; tier++) {
            lk_backend *one = open_tier(all_tiers[tier], 1, type), *three = open_tier(all_tiers[tier], 3, type);
            for (int i = 0; i < N_SUMS && one; i++) {
                const sum_case *s = &sums[i];
                sum_outcome want = run_sums(reference, s), got = run_sums(one, s), more = run_sums(three, s);
                check_same_bits("columns", got.columns, want.columns, (size_t)s->n * 4); /* the same additions in the same order */
                check_same_bits("table", got.table, want.table, (size_t)(s->table * s->n) * 4);
                check_close("product", got.product, want.product, s->n * s->k, 3e-5, 3e-5); /* 130 products of magnitude 1 */
                check_same_bits("columns: threads", more.columns, got.columns, (size_t)s->n * 4);
                check_same_bits("table: threads", more.table, got.table, (size_t)(s->table * s->n) * 4);
                check_same_bits("product: threads", more.product, got.product, (size_t)(s->n * s->k) * 4);
                free_sums(&want);
                free_sums(&got);
                free_sums(&more);
            }
            lk_backend_close(one);
            lk_backend_close(three);
        }
        lk_backend_close(reference);
    }
}

/* What the gradients are of: y = x w^T, rows of a table, a bias; the gradient is linear in dy, so one sum says it. */
static void test_sum_values(void **state)
{
    (void)state;
    lk_backend *be = open_tier("reference", 1, LK_F32);
    const float dy_values[] = {1, 2, 3, 4, 5, 6}, x_values[] = {7, 8, 9};
    float columns[2] = {1, 1}, product[2] = {0}, table[4] = {0};
    guarded dy = guarded_from(3, 2, 0, dy_values), x = guarded_from(3, 1, 0, x_values);
    static const int32_t ids[] = {1, -1, 1};
    OP(be, lk_add_columns(be, columns, &dy.t, 2.0f));
    OP(be, lk_weight_gradient(be, product, &dy.t, &x.t, 1.0f));
    OP(be, lk_embed_backward(be, table, 2, &dy.t, ids));
    static const float want_columns[] = {19, 25}, want_product[] = {7 + 24 + 45, 14 + 32 + 54}, want_table[] = {0, 0, 6, 8};
    check_same_bits("columns", columns, want_columns, sizeof columns);
    check_same_bits("product", product, want_product, sizeof product);
    check_same_bits("table", table, want_table, sizeof table);
    static const int32_t outside[] = {1, 2, 1};
    CHECK_FAILS(lk_embed_backward(be, table, 2, &dy.t, outside), LK_ERR_INTERNAL, "id 2 at row 1 of a table of 2", lk_backend_error(be));
    guarded_free(&dy);
    guarded_free(&x);
    lk_backend_close(be);
}

/* ---- rows of a matrix */

static float *product_with(lk_backend *be, const lk_matrix *w, int64_t rows, int64_t k)
{
    float *values = random_floats(9, rows * k, 1.0f);
    guarded x = guarded_from(rows, k, 0, values), y = guarded_make(rows, lk_matrix_n(w), 0);
    OP(be, lk_linear(be, &y.t, &x.t, w, NULL, NULL));
    float *out = guarded_values("product", &y);
    guarded_free(&x);
    guarded_free(&y);
    free(values);
    return out;
}

static void test_rows_of_a_matrix(void **state)
{
    (void)state;
    static const int64_t shapes[][2] = {{1, 1}, {17, 33}, {40, 64}, {100, 70}};
    for (int tier = 0; tier < N_TIERS; tier++)
        for (int i = 0; i < 8; i++) {
            int64_t n = shapes[i / 2][0], k = shapes[i / 2][1];
            lk_backend *be = open_tier(all_tiers[tier], 3, i % 2 ? LK_BF16 : LK_F32);
            if (!be) continue;
            float *values = random_floats(3, n * k, 1.0f), *rows = random_floats(4, 2 * k, 1.0f);
            lk_matrix *w, *want;
            OP(be, lk_matrix_create(be, &w, &(lk_matrix_source){.type = LK_F32, .n = n, .k = k}));
            OP(be, lk_matrix_set(be, w, NULL, n, values));
            const int32_t ids[] = {(int32_t)(n / 2), (int32_t)(n - 1)};
            OP(be, lk_matrix_set(be, w, ids, 2, rows));
            memcpy(values + ids[0] * k, rows, (size_t)k * 4);
            memcpy(values + ids[1] * k, rows + k, (size_t)k * 4);
            OP(be, lk_matrix_create(be, &want, &(lk_matrix_source){.type = LK_F32, .n = n, .k = k, .data = values}));
            float *a = product_with(be, w, 5, k), *b = product_with(be, want, 5, k);
            check_same_bits("a matrix with new rows", a, b, (size_t)(5 * n) * 4);
            const int32_t outside = (int32_t)n;
            CHECK_FAILS(lk_matrix_set(be, w, &outside, 1, rows), LK_ERR_INTERNAL, "matrix_set: row", lk_backend_error(be));
            lk_matrix_destroy(be, w);
            lk_matrix_destroy(be, want);
            free(a);
            free(b);
            free(values);
            free(rows);
            lk_backend_close(be);
        }
}

/* ---- a trained head */

enum { HEAD_RANK = 3, MOST_IDS = 3 };

typedef struct head_inputs {
    float *x, *w, *a, *b;
    int32_t labels[200], ids[MOST_IDS];
    int64_t n_ids;
    lk_dropout dropout;
} head_inputs;

typedef struct head_outcome {
    float *nll, *dx, *dw, *drows, *da, *db;
} head_outcome;

static head_inputs head_make(const loss_case *c)
{
    head_inputs in = {.x = random_floats(1, c->rows * c->width, 1.0f),
                      .w = random_floats(2, c->vocab * c->width, 1.0f),
                      .a = random_floats(3, HEAD_RANK * c->width, 0.5f),
                      .b = random_floats(4, c->vocab * HEAD_RANK, 0.5f),
                      .ids = {0, (int32_t)(c->vocab / 2), (int32_t)(c->vocab - 1)},
                      .n_ids = c->vocab < MOST_IDS ? 1 : MOST_IDS,
                      .dropout = {.p = 0.3f, .key = lk_philox_key_make(8, LK_STREAM_DROPOUT), .counter = 4}};
    loss_labels(c, in.labels);
    return in;
}

static void head_free(head_inputs *in)
{
    free(in->x);
    free(in->w);
    free(in->a);
    free(in->b);
}

static float *started(int64_t n) { return random_floats(77, n, 0.1f); }

/* Two calls: the head whole with factors and dropout; some of its rows. */
static head_outcome run_head(lk_backend *be, const loss_case *c, const head_inputs *in, bool drops)
{
    head_outcome o = {.dw = started(c->vocab * c->width),
                      .drows = started(MOST_IDS * c->width),
                      .da = started(HEAD_RANK * c->width),
                      .db = started(c->vocab * HEAD_RANK)};
    lk_matrix *head;
    OP(be, lk_matrix_create(be, &head, &(lk_matrix_source){LK_F32, c->vocab, c->width, in->w, NULL}));
    guarded x = guarded_from(c->rows, c->width, c->gap, in->x), dx = guarded_make(c->rows, c->width, c->gap),
            nll = guarded_make(c->rows, 1, 0);
    lk_lora factors = {.a = in->a, .b = in->b, .da = o.da, .db = o.db, .rank = HEAD_RANK, .scale = 1.5f};
    lk_head_part rows = {.dw = o.drows, .ids = in->ids, .n_ids = in->n_ids},
                 whole = {.dw = o.dw, .factors = &factors, .dropout = drops ? &in->dropout : NULL, .site = 6};
    OP(be, lk_linear_loss_trained(be, nll.t.data, NULL, &dx.t, &x.t, head, &rows, in->labels, 0.25f, c->cap));
    OP(be, lk_linear_loss_trained(be, nll.t.data, NULL, &dx.t, &x.t, head, &whole, in->labels, 0.25f, c->cap));
    o.nll = guarded_values("nll", &nll);
    o.dx = guarded_values("dx", &dx);
    OP(be, lk_linear_loss_trained(be, nll.t.data, NULL, NULL, &x.t, head, &whole, in->labels, 0.25f, c->cap));
    float *again = guarded_values("nll", &nll);
    check_same_bits("nll with and without gradient", again, o.nll, (size_t)c->rows * 4);
    free(again);
    lk_matrix_destroy(be, head);
    guarded_free(&x);
    guarded_free(&dx);
    guarded_free(&nll);
    return o;
}

static void outcome_free(head_outcome *o)
{
    float *all[] = {o->nll, o->dx, o->dw, o->drows, o->da, o->db};
    for (int i = 0; i < 6; i++) free(all[i]);
}

static void compare_heads(const loss_case *c, const head_outcome *got, const head_outcome *want, double tolerance)
{
    const struct {
        const char *name;
        const float *got, *want;
        int64_t n;
    } parts[] = {{"nll", got->nll, want->nll, c->rows},           {"dx", got->dx, want->dx, c->rows * c->width},
                 {"dw", got->dw, want->dw, c->vocab * c->width},  {"rows of dw", got->drows, want->drows, MOST_IDS * c->width},
                 {"da", got->da, want->da, HEAD_RANK * c->width}, {"db", got->db, want->db, c->vocab * HEAD_RANK}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (tolerance > 0)
            check_close(parts[i].name, parts[i].got, parts[i].want, parts[i].n, tolerance, tolerance);
        else
            check_same_bits(parts[i].name, parts[i].got, parts[i].want, (size_t)parts[i].n * 4);
    }
}

/* The tolerances of test_loss.c, and as many again for sums over a hundred rows. */
static void test_head_tiers(void **state)
{
    (void)state;
    for (int compute = 0; compute < 2; compute++) {
        lk_dtype type = compute ? LK_BF16 : LK_F32;
        lk_backend *reference = open_tier("reference", 1, type);
        for (int tier = 1; tier < N_TIERS; tier++) {
            lk_backend *one = open_tier(all_tiers[tier], 1, type), *three = open_tier(all_tiers[tier], 3, type);
            for (int i = 0; i < 2 * N_LOSS_CASES && one; i++) {
                const loss_case *c = &loss_cases[i / 2];
                head_inputs in = head_make(c);
                head_outcome want = run_head(reference, c, &in, i % 2), got = run_head(one, c, &in, i % 2),
                             more = run_head(three, c, &in, i % 2);
                compare_heads(c, &got, &want, compute ? 6e-3 : 5e-5);
                compare_heads(c, &more, &got, 0);
                outcome_free(&want);
                outcome_free(&got);
                outcome_free(&more);
                head_free(&in);
            }
            lk_backend_close(one);
            lk_backend_close(three);
        }
        lk_backend_close(reference);
    }
}

typedef struct difference {
    const loss_case *c;
    const head_inputs *in;
} difference;

/* x is x, w, a, b one behind the other. Dropout off: its factors are data, and the tiers agree on them. */
static double head_double(const double *x, void *context)
{
    const difference *d = context;
    int64_t T = d->c->rows, V = d->c->vocab, C = d->c->width;
    const double *w = x + T * C, *a = w + V * C, *b = a + HEAD_RANK * C;
    double total = 0.0, logits[300];
    for (int64_t t = 0; t < T; t++) {
        if (d->in->labels[t] < 0) continue;
        double sum = 0.0, h[HEAD_RANK] = {0};
        for (int64_t c = 0; c < C; c++)
            for (int r = 0; r < HEAD_RANK; r++) h[r] += x[t * C + c] * a[r * C + c];
        for (int64_t v = 0; v < V; v++) {
            logits[v] = 0.0;
            for (int64_t c = 0; c < C; c++) logits[v] += x[t * C + c] * w[v * C + c];
            for (int r = 0; r < HEAD_RANK; r++) logits[v] += 1.5 * h[r] * b[v * HEAD_RANK + r];
            if (d->c->cap > 0.0f) logits[v] = (double)d->c->cap * tanh(logits[v] / (double)d->c->cap);
            sum += exp(logits[v]);
        }
        total += log(sum) - logits[d->in->labels[t]];
    }
    return total * 0.25;
}

static void test_head_differences(void **state)
{
    (void)state;
    lk_backend *be = open_tier("reference", 1, LK_F32);
    static const int chosen[] = {2, 8};
    for (int i = 0; i < 2; i++) {
        const loss_case *c = &loss_cases[chosen[i]];
        head_inputs in = head_make(c);
        head_outcome o = run_head(be, c, &in, false);
        const int64_t sizes[] = {c->rows * c->width, c->vocab * c->width, HEAD_RANK * c->width, c->vocab * HEAD_RANK};
        const float *values[] = {in.x, in.w, in.a, in.b}, *gradients[] = {o.dx, o.dw, o.da, o.db};
        int64_t n = sizes[0] + sizes[1] + sizes[2] + sizes[3], at = 0;
        double *x = malloc((size_t)n * sizeof *x);
        float *gradient = malloc((size_t)n * sizeof *gradient);
        for (int part = 0; part < 4; part++) {
            float *start = started(sizes[part]);
            for (int64_t j = 0; j < sizes[part]; j++, at++) {
                x[at] = (double)values[part][j];
                gradient[at] = gradients[part][j] - (part ? start[j] : 0.0f);
            }
            free(start);
        }
        difference d = {c, &in};
        check_gradient("a trained head", gradient, x, n, head_double, &d, 2e-4);
        free(gradient);
        free(x);
        outcome_free(&o);
        head_free(&in);
    }
    lk_backend_close(be);
}

/* The chosen rows of a head's gradient are those of the whole. */
static void test_chosen_rows(void **state)
{
    (void)state;
    lk_backend *be = open_tier("portable", 2, LK_F32);
    const loss_case *c = &loss_cases[4];
    head_inputs in = head_make(c);
    lk_matrix *head;
    OP(be, lk_matrix_create(be, &head, &(lk_matrix_source){LK_F32, c->vocab, c->width, in.w, NULL}));
    float *whole = calloc((size_t)(c->vocab * c->width), 4), *rows = calloc((size_t)(MOST_IDS * c->width), 4), nll[200];
    guarded x = guarded_from(c->rows, c->width, 0, in.x), dx = guarded_make(c->rows, c->width, 0);
    OP(be, lk_linear_loss_trained(be, nll, NULL, &dx.t, &x.t, head, &(lk_head_part){.dw = whole}, in.labels, 0.25f, 0));
    lk_head_part some = {.dw = rows, .ids = in.ids, .n_ids = in.n_ids};
    OP(be, lk_linear_loss_trained(be, nll, NULL, &dx.t, &x.t, head, &some, in.labels, 0.25f, 0));
    for (int i = 0; i < MOST_IDS; i++) check_close("a row", rows + i * c->width, whole + in.ids[i] * c->width, c->width, 1e-6, 1e-5);
    guarded_free(&x);
    guarded_free(&dx);
    free(whole);
    free(rows);
    lk_matrix_destroy(be, head);
    head_free(&in);
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sums),        cmocka_unit_test(test_sum_values),
                                       cmocka_unit_test(test_chosen_rows), cmocka_unit_test(test_rows_of_a_matrix),
                                       cmocka_unit_test(test_head_tiers),  cmocka_unit_test(test_head_differences)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
