/* label: slow */
/* Attention within documents on the CUDA backend, through cuDNN's layer and on the module's own kernels: the cases of the CPU paths
 * against the fp32 reference, and each document alone against the same document among others, bit for bit. */
#include "tests/cuda/cuda_check.h"
#include "tests/kernels/attention_cases.h"

typedef struct part {
    const attention_case *c;
    int64_t first, docs; /* documents [first, first + docs) as a batch of their own */
    /* What backward gets, or NULL: what forward made. Every backend gets the same, since dout.v - dout.o is a small difference of
     * large numbers where the softmax is sharp: an o rounded the other way is worth 5 parts in 100 of a dq, and says nothing of backward.
     */
    const float *o, *lse;
} part;

/* q, k and v are what the reference reads, too. What is left: o, p and ds rounded to 8 bits where a tensor core wants them, one part in
 * 256 of each term at most, and gradients rounded once more. lse is F32 from fp32 scores. */
static const double out_tolerance = 1e-2, lse_tolerance = 1e-4, gradient_tolerance = 2.5e-2;

/* With a window of 1 nothing depends on scores: dq and dk are 0, by differences of equal numbers. */
static void add_gradient(outcome *out, const attention_case *c, const char *name, device_tensor *d)
{
    if (c->window != 1) {
        outcome_add(out, name, d, gradient_tolerance);
        return;
    }
    float *values = device_values(name, d);
    for (int64_t i = 0; i < d->t.rows * d->t.cols; i++) assert_true(fabsf(values[i]) < 1e-4f);
    free(values);
    device_free(d);
}

static void run(lk_backend *be, const void *the_case, outcome *out)
{
    const part *p = the_case;
    const attention_case *c = p->c;
    int64_t wide = c->heads * c->head_dim, narrow = c->kv_heads * c->head_dim, begin = c->starts[p->first],
            rows = c->starts[p->first + p->docs] - begin;
    float *in[4];
    int32_t starts[9];
    inputs(c, in);
    for (int64_t d = 0; d <= p->docs; d++) starts[d] = c->starts[p->first + d] - (int32_t)begin;
    lk_batch batch = {.n_tokens = rows, .n_docs = p->docs, .doc_starts = starts};
    lk_attention_shape shape = {c->heads, c->kv_heads, c->head_dim, 1.0f / sqrtf((float)c->head_dim), c->window, c->cap};
    lk_dtype act = lk_backend_act(be);
    device_tensor q = device_from(be, act, rows, wide, c->gap, in[0] + begin * wide);
    device_tensor k = device_from(be, act, rows, narrow, c->gap, in[1] + begin * narrow);
    device_tensor v = device_from(be, act, rows, narrow, 0, in[2] + begin * narrow);
    device_tensor dout = device_from(be, act, rows, wide, c->gap, in[3] + begin * wide);
    device_tensor o = device_make(be, act, rows, wide, c->gap), again = device_make(be, act, rows, wide, c->gap);
    device_tensor lse = device_make(be, LK_F32, rows, c->heads, 0), kept_o, kept_lse, dq = device_make(be, act, rows, wide, 0);
    device_tensor dk = device_make(be, act, rows, narrow, c->gap), dv = device_make(be, act, rows, narrow, c->gap);
    OP(be, lk_batch_begin(be, &batch));
    OP(be, lk_attention(be, &batch, &shape, &o.t, device_f32(&lse), &q.t, &k.t, &v.t));
    OP(be, lk_attention(be, &batch, &shape, &again.t, NULL, &q.t, &k.t, &v.t));
    float *with = device_values("o", &o), *without = device_values("o without lse", &again), *with_lse = device_values("lse", &lse);
    kept_o = device_from(be, act, rows, wide, c->gap, p->o ? p->o : with);
    kept_lse = device_exact(be, rows, c->heads, p->lse ? p->lse : with_lse);
    OP(be, lk_attention_backward(be, &batch, &shape, &dq.t, &dk.t, &dv.t, &dout.t, &kept_o.t, device_f32(&kept_lse), &q.t, &k.t, &v.t));
    check_same_bits("attention with and without lse", without, with, (size_t)(rows * wide) * sizeof(float));
    free(with);
    free(without);
    free(with_lse);
    outcome_add(out, "o", &o, out_tolerance);
    outcome_add(out, "lse", &lse, lse_tolerance);
    add_gradient(out, c, "dq", &dq);
    add_gradient(out, c, "dk", &dk);
    outcome_add(out, "dv", &dv, gradient_tolerance);
    device_tensor *rest[] = {&again, &q, &k, &v, &dout, &kept_o, &kept_lse};
    for (int i = 0; i < 7; i++) device_free(rest[i]);
    for (int i = 0; i < 4; i++) free(in[i]);
}

static void check_cases(void)
{
    lk_backend *reference = open_tier("reference", 1, LK_F32);
    for (int i = 0; i < N_ATTENTION_CASES; i++) {
        const attention_case *c = &attention_cases[i];
        outcome forward = {0};
        run(reference, &(part){.c = c, .docs = c->docs}, &forward);
        check_on_cuda("attention", run, &(part){c, 0, c->docs, forward.parts[0].values, forward.parts[1].values});
        outcome_clear(&forward);
    }
    lk_backend_close(reference);
}

/* Each document in a batch of its own gives the bits it gives packed with others. */
static void check_packing(void)
{
    lk_backend *be = open_cuda(&test_limits);
    for (int i = 0; i < N_ATTENTION_CASES; i++) {
        const attention_case *c = &attention_cases[i];
        if (c->docs == 1) continue;
        outcome packed = {0};
        run(be, &(part){.c = c, .docs = c->docs}, &packed);
        for (int64_t d = 0; d < c->docs; d++) {
            int64_t begin = c->starts[d], rows = c->starts[d + 1] - begin;
            outcome alone = {0};
            if (rows == 0) continue;
            run(be, &(part){.c = c, .first = d, .docs = 1}, &alone);
            for (int j = 0; j < alone.n; j++) {
                int64_t width = alone.parts[j].n / rows;
                check_same_bits(alone.parts[j].name, alone.parts[j].values, packed.parts[j].values + begin * width,
                                (size_t)alone.parts[j].n * sizeof(float));
            }
            outcome_clear(&alone);
        }
        outcome_clear(&packed);
    }
    lk_backend_close(be);
}

/* More documents than one launch takes: tiles come in several. */
static void check_many_documents(void)
{
    enum { DOCS = 4500 };
    attention_case c = {{0, 1}, 1, 2, 1, 8, 0, 0, 1.0f};
    lk_limits limits = test_limits;
    limits.tokens = DOCS;
    lk_backend *be = open_cuda(&limits);
    int64_t wide = c.heads * c.head_dim, narrow = c.kv_heads * c.head_dim;
    float *values = random_floats(7, DOCS * wide, 1.0f);
    int32_t *starts = malloc((DOCS + 1) * sizeof *starts);
    for (int32_t d = 0; d <= DOCS; d++) starts[d] = d;
    lk_batch batch = {.n_tokens = DOCS, .n_docs = DOCS, .doc_starts = starts};
    lk_attention_shape shape = {c.heads, c.kv_heads, c.head_dim, 1.0f, 0};
    device_tensor q = device_from(be, LK_BF16, DOCS, wide, 0, values), v = device_from(be, LK_BF16, DOCS, narrow, 0, values);
    device_tensor o = device_make(be, LK_BF16, DOCS, wide, 0);
    OP(be, lk_attention(be, &batch, &shape, &o.t, NULL, &q.t, &v.t, &v.t));
    float *got = device_values("o", &o), *want = device_values("v", &v);
    for (int64_t t = 0; t < DOCS; t++) /* one token sees itself alone */
        for (int64_t h = 0; h < c.heads; h++)
            check_same_bits("a document of one token", got + t * wide + h * c.head_dim, want + t * narrow,
                            (size_t)c.head_dim * sizeof(float));
    free(got);
    free(want);
    free(values);
    free(starts);
    device_free(&q);
    device_free(&v);
    device_free(&o);
    lk_backend_close(be);
}

static void choose(const char *attention)
{
    if (attention)
        setenv("LK_CUDA_ATTENTION", attention, 1);
    else
        unsetenv("LK_CUDA_ATTENTION");
}

static void test_own(void **state)
{
    (void)state;
    choose("own");
    check_cases();
}

static void test_own_packing(void **state)
{
    (void)state;
    choose("own");
    check_packing();
    check_many_documents();
}

static void test_chosen(void **state)
{
    (void)state;
    choose(NULL);
    check_cases();
}

static void test_chosen_packing(void **state)
{
    (void)state;
    choose(NULL);
    check_packing();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_own), cmocka_unit_test(test_own_packing), cmocka_unit_test(test_chosen),
                                       cmocka_unit_test(test_chosen_packing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
