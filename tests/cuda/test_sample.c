/* Sampling on the CUDA backend: the cases of the CPU paths; large rows against the CPU, with every cut, ties by the thousand and lists; a
 * row alone and in company; tokens that are pending; samplings in groups, and two under way. */
#include "tests/cuda/cuda_check.h"
#include "tests/kernels/sample_cases.h"

static const lk_limits limits = {.tokens = 320, .width = 64, .vocab = 20000, .context = 64, .serving = true};

/* ---- the shared cases */

static void test_shared(void **state)
{
    (void)state;
    lk_backend *be = open_cuda(&limits);
    set_schedule(1);
    check_greedy(be);
    check_seeds(be);
    check_logprobs(be);
    check_broken(be);
    lk_backend_close(be);
}

/* The trials of one vocabulary are the rows of one sampling. */
static void test_against_naive(void **state)
{
    (void)state;
    enum { ROWS = SAMPLE_TRIALS / SAMPLE_VOCABS };
    static naive want[ROWS];
    sample_case c[ROWS];
    lk_sample_request q[ROWS];
    lk_sample_result r[ROWS];
    lk_backend *be = open_cuda(&limits);
    int compared = 0;
    for (int v = 0; v < SAMPLE_VOCABS; v++) {
        int64_t vocab = sample_vocabs[v];
        float *logits = malloc((size_t)(ROWS * vocab) * sizeof(float));
        for (int i = 0; i < ROWS; i++) {
            sample_case_make(&c[i], i * SAMPLE_VOCABS + v);
            q[i] = c[i].q; /* its lists lie in c[i] */
            memcpy(logits + i * vocab, c[i].logits, (size_t)vocab * sizeof(float));
            naive_sample(&want[i], c[i].logits, vocab, &q[i]);
        }
        for (uint64_t seed = 0; seed < N_SCHEDULES; seed++) {
            bool more = set_schedule(seed);
            OP(be, sample_rows(be, logits, ROWS, vocab, q, r));
            for (int i = 0; i < ROWS; i++) {
                if (want[i].edge <= 1e-5) continue; /* nearer than fp32 probabilities can tell, either answer is right */
                if (r[i].token != want[i].token)
                    fail_msg("trial %d, schedule %d: token %d, the naive sampler draws %d", i * SAMPLE_VOCABS + v, (int)seed, r[i].token,
                             want[i].token);
                compared += seed == 0;
            }
            if (!more) break;
        }
        for (int i = 0; i < ROWS; i++) free(c[i].logits);
        free(logits);
    }
    assert_true(compared > 150);
    lk_backend_close(be);
}

/* ---- large rows, against the CPU */

enum { VOCAB = 20000 - 2, GAP = 1, LARGE = 15, LISTED = 700 };

typedef struct large_case {
    const char *what;
    float scale; /* of the random logits; 0: all are equal */
    float temperature;
    int32_t top_k;
    float top_p, min_p;
    int32_t n_logprobs;
    bool lists; /* penalties, bias and bans */
} large_case;

static const large_case large_cases[LARGE] = {
    {"greedy", 3.0f, 0.0f, 0, 1.0f, 0.0f, 20, false},
    {"plain", 3.0f, 0.9f, 0, 1.0f, 0.0f, 0, false},
    {"min-p", 3.0f, 1.0f, 0, 1.0f, 0.01f, -1, false},
    {"top-k", 3.0f, 1.0f, 50, 1.0f, 0.0f, 5, false},
    {"top-k, many", 3.0f, 1.0f, 6000, 1.0f, 0.0f, -1, false},
    {"top-k, all", 3.0f, 1.0f, VOCAB, 1.0f, 0.0f, -1, false},
    {"top-p", 3.0f, 0.7f, 0, 0.9f, 0.0f, -1, false},
    {"top-p, nearly flat", 0.01f, 1.0f, 0, 0.6f, 0.0f, -1, false}, /* thousands in one step of the tally */
    {"top-k and top-p", 2.0f, 1.0f, 300, 0.8f, 0.02f, -1, false},
    {"equal, top-k", 0.0f, 1.0f, 700, 1.0f, 0.0f, -1, false}, /* the first 700 ids */
    {"equal, top-p", 0.0f, 1.0f, 0, 0.31f, 0.0f, 3, false},
    {"cold", 3.0f, 1e-3f, 0, 0.99f, 0.0f, -1, false},
    {"hot", 3.0f, 100.0f, 0, 1.0f, 0.0f, -1, false},
    {"greedy, lists", 3.0f, 0.0f, 0, 1.0f, 0.0f, 20, true},
    {"top-p, lists", 3.0f, 1.0f, 0, 0.5f, 0.0f, 2, true},
};

typedef struct lists {
    int32_t seen[LISTED], counts[LISTED], bias_ids[20], banned[3];
    float bias[20];
} lists;

/* Lists that touch the likeliest tokens; some ids are in several, one bias comes twice. */
static void lists_make(lists *l, const float *row)
{
    int32_t best = 0;
    for (int32_t i = 0; i < VOCAB; i++)
        if (row[i] > row[best]) best = i;
    for (int32_t i = 0; i < LISTED; i++) {
        l->seen[i] = (best + i * 28) % VOCAB;
        l->counts[i] = i % 4;
    }
    for (int32_t i = 0; i < 20; i++) {
        l->bias_ids[i] = (best + i / 2 * 28 + 28) % VOCAB;
        l->bias[i] = 4.0f - 0.37f * (float)i;
    }
    l->banned[0] = l->banned[2] = best;
    l->banned[1] = (best + 28) % VOCAB;
}

static float *large_logits(lk_sample_request *q, lists *l)
{
    float *logits = malloc((size_t)LARGE * VOCAB * sizeof(float));
    assert_non_null(logits);
    for (int i = 0; i < LARGE; i++) {
        float *row = logits + i * VOCAB, *random = random_floats((uint64_t)(i + 40), VOCAB, 1.0f);
        for (int64_t j = 0; j < VOCAB; j++) row[j] = 5.0f + large_cases[i].scale * random[j];
        free(random);
        row[77] = NAN;
        const large_case *c = &large_cases[i];
        q[i] = (lk_sample_request){.temperature = c->temperature,
                                   .top_k = c->top_k,
                                   .top_p = c->top_p,
                                   .min_p = c->min_p,
                                   .repetition_penalty = 1.0f,
                                   .n_logprobs = c->n_logprobs,
                                   .key = lk_philox_key_make(9, LK_STREAM_SAMPLE),
                                   .counter = (uint64_t)i};
        if (!c->lists) continue;
        q[i].repetition_penalty = 1.7f;
        q[i].presence_penalty = 0.5f;
        q[i].frequency_penalty = 0.1f;
        lists_make(&l[i], row);
        q[i].seen = l[i].seen;
        q[i].seen_counts = l[i].counts;
        q[i].n_seen = LISTED;
        q[i].bias_ids = l[i].bias_ids;
        q[i].bias = l[i].bias;
        q[i].n_bias = 20;
        q[i].banned = l[i].banned;
        q[i].n_banned = 3;
    }
    return logits;
}

static void check_like_the_cpu(const lk_sample_result *got, const lk_sample_result *want, const char *what)
{
    if (got->token != want->token) fail_msg("%s: token %d, the CPU draws %d", what, got->token, want->token);
    if (!(fabsf(got->logprob - want->logprob) < 1e-5f)) fail_msg("%s: logprob %.8g, on the CPU %.8g", what, got->logprob, want->logprob);
    assert_int_equal(got->n_top, want->n_top);
    for (int i = 0; i < got->n_top; i++) {
        if (got->top_ids[i] != want->top_ids[i]) fail_msg("%s: alternative %d is %d, not %d", what, i, got->top_ids[i], want->top_ids[i]);
        if (!(fabsf(got->top_logprobs[i] - want->top_logprobs[i]) < 1e-5f)) fail_msg("%s: logprob of alternative %d", what, i);
    }
}

static void check_same_result(const lk_sample_result *got, const lk_sample_result *want, const char *what)
{
    if (got->token != want->token || got->n_top != want->n_top) fail_msg("%s: not what it gets otherwise", what);
    check_same_bits(what, &got->logprob, &want->logprob, sizeof got->logprob);
    check_same_bits(what, got->top_ids, want->top_ids, (size_t)want->n_top * sizeof *want->top_ids);
    check_same_bits(what, got->top_logprobs, want->top_logprobs, (size_t)want->n_top * sizeof *want->top_logprobs);
}

static void test_large(void **state)
{
    (void)state;
    static lists l[LARGE];
    lk_sample_request q[LARGE];
    lk_sample_result want[LARGE], first[LARGE], got[LARGE], alone;
    float *logits = large_logits(q, l);
    lk_backend *cpu = open_tier("reference", 1, LK_F32), *be = open_cuda(&limits);
    OP(cpu, lk_reserve(cpu, &limits));
    OP(cpu, sample_rows(cpu, logits, LARGE, VOCAB, q, want));
    for (uint64_t seed = 0; seed < N_SCHEDULES; seed++) {
        bool more = set_schedule(seed);
        device_tensor t = device_make(be, LK_F32, LARGE, VOCAB, seed == 1 ? GAP : 0); /* rows begin where they like */
        device_write(&t, logits);
        OP(be, lk_sample(be, &t.t, q, got));
        device_free(&t);
        for (int i = 0; i < LARGE; i++) {
            if (seed == 0)
                check_like_the_cpu(&got[i], &want[i], large_cases[i].what);
            else
                check_same_result(&got[i], &first[i], large_cases[i].what);
        }
        if (seed == 0) memcpy(first, got, sizeof first);
        if (!more) break;
    }
    for (int i = 1; i < LARGE; i += 2) {
        alone = sample_one(be, logits + i * VOCAB, VOCAB, &q[i]);
        check_same_result(&alone, &first[i], large_cases[i].what);
    }
    lk_backend_close(be);
    lk_backend_close(cpu);
    free(logits);
}

/* ---- pending tokens, groups, two under way */

enum { ROWS = 300, SMALL = 40 };

typedef struct pending_case {
    lk_sample_request q[ROWS], told[ROWS]; /* with a pending token; with that token among the seen ones */
    int32_t seen[ROWS][SMALL], counts[ROWS][SMALL], told_seen[ROWS][SMALL], told_counts[ROWS][SMALL];
} pending_case;

/* Row i awaits the token of row rows-1-i; whether it has seen it before depends on the row. */
static void pending_make(pending_case *p, const lk_sample_result *drawn, int32_t rows)
{
    for (int32_t i = 0; i < rows; i++) {
        int32_t from = rows - 1 - i, token = drawn[from].token, n = 0;
        lk_sample_request *q = &p->q[i], *told = &p->told[i];
        for (int32_t id = i % 2; id < SMALL; id += 1 + i % 3) {
            p->seen[i][n] = p->told_seen[i][n] = id;
            p->counts[i][n] = id % 3;
            p->told_counts[i][n++] = id % 3 + (id == token);
        }
        *q = plain;
        q->temperature = i % 4 ? 0.0f : 1.0f;
        q->frequency_penalty = 0.9f;
        q->presence_penalty = 0.3f;
        q->repetition_penalty = 1.1f;
        q->n_logprobs = 1;
        q->counter = (uint64_t)i;
        *told = *q;
        q->pending = 1 + from;
        q->seen = p->seen[i];
        q->seen_counts = p->counts[i];
        told->seen = p->told_seen[i];
        told->seen_counts = p->told_counts[i];
        q->n_seen = told->n_seen = n;
        int32_t at = 0;
        while (at < n && p->seen[i][at] != token) at++;
        if (at == n) {
            p->told_seen[i][n] = token;
            p->told_counts[i][n] = 1;
            told->n_seen++;
        }
    }
}

/* Two samplings under way, the second with the tokens of the first pending. Rows may be more than the kernels take at once, and their
 * lists more than the room for them. */
static void run_pending(lk_backend *be, const float *logits, int32_t rows)
{
    static pending_case p;
    static lk_sample_result want[ROWS], got[ROWS], again[ROWS];
    static lk_sample_request q[ROWS];
    for (int i = 0; i < rows; i++) {
        q[i] = plain;
        q[i].counter = (uint64_t)i;
        q[i].top_k = i % 5 ? 0 : 7;
    }
    device_tensor t = device_exact(be, rows, SMALL, logits);
    OP(be, lk_sample(be, &t.t, q, want));
    pending_make(&p, want, rows);
    OP(be, lk_sample_begin(be, &t.t, q));
    OP(be, lk_sample_begin(be, &t.t, p.q));
    CHECK_FAILS(lk_sample_begin(be, &t.t, q), LK_ERR_INTERNAL, "two samplings", lk_backend_error(be));
    OP(be, lk_sample_end(be, got));
    OP(be, lk_sample_end(be, again));
    CHECK_FAILS(lk_sample_end(be, got), LK_ERR_INTERNAL, "no sampling", lk_backend_error(be));
    CHECK_FAILS(lk_sample_begin(be, &t.t, p.q), LK_ERR_INTERNAL, "not under way", lk_backend_error(be));
    for (int i = 0; i < rows; i++) check_same_result(&got[i], &want[i], "the first of two");
    OP(be, lk_sample(be, &t.t, p.told, want));
    for (int i = 0; i < rows; i++) check_same_result(&again[i], &want[i], "a token that was pending");
    device_free(&t);
}

static void test_pending(void **state)
{
    (void)state;
    static const int64_t contexts[] = {SMALL, 1}; /* room for all lists; for a few rows' */
    float *logits = random_floats(77, ROWS * SMALL, 2.0f);
    for (int c = 0; c < 2; c++) {
        lk_limits small = limits;
        small.vocab = SMALL;
        small.context = contexts[c];
        lk_backend *be = open_cuda(&small);
        size_t planned = lk_scratch_bytes(be, &small);
        assert_int_equal(lk_allocated(be), planned);
        set_schedule((uint64_t)c + 1);
        run_pending(be, logits, c ? 60 : ROWS);
        assert_int_equal(lk_allocated(be), planned);
        lk_backend_close(be);
    }
    free(logits);
}

/* What the last sampling drew is what lk_embed reads for lk_drawn. */
static void test_embed(void **state)
{
    (void)state;
    enum { N = 12, WIDTH = 24 };
    lk_backend *be = open_cuda(&limits);
    float *table = random_floats(5, SMALL * WIDTH, 1.0f), *logits = random_floats(6, N * SMALL, 1.0f);
    lk_sample_request q[N];
    lk_sample_result r[N];
    int32_t ids[N], known[N];
    lk_matrix *w;
    for (int i = 0; i < N; i++) {
        q[i] = plain;
        q[i].counter = (uint64_t)i;
        ids[i] = i % 3 ? lk_drawn(N - 1 - i) : i;
    }
    OP(be, lk_matrix_create(be, &w, &(lk_matrix_source){LK_F32, SMALL, WIDTH, table, NULL}));
    device_tensor t = device_exact(be, N, SMALL, logits), y = device_make(be, LK_BF16, N, WIDTH, 0),
                  z = device_make(be, LK_BF16, N, WIDTH, 0);
    OP(be, lk_sample_begin(be, &t.t, q));
    OP(be, lk_embed(be, &y.t, w, ids));
    OP(be, lk_sample_end(be, r));
    for (int i = 0; i < N; i++) known[i] = i % 3 ? r[N - 1 - i].token : i;
    OP(be, lk_embed(be, &z.t, w, known));
    float *got = device_values("embedded behind the host's back", &y), *want = device_values("embedded", &z);
    check_same_bits("embedded behind the host's back", got, want, N * WIDTH * sizeof(float));
    free(got);
    free(want);
    device_tensor *all[] = {&t, &y, &z};
    for (int i = 0; i < 3; i++) device_free(all[i]);
    lk_matrix_destroy(be, w);
    lk_backend_close(be);
    free(table);
    free(logits);
}

static void test_refused(void **state)
{
    (void)state;
    lk_limits none = limits;
    none.serving = false;
    lk_backend *be = open_cuda(&none);
    float logits[3] = {1, 2, 3};
    lk_sample_result r;
    CHECK_FAILS(sample_rows(be, logits, 1, 3, &plain, &r), LK_ERR_INTERNAL, "limits.serving", lk_backend_error(be));
    OP(be, lk_backend_use(be));
    assert_true(lk_backend_serves(be) && lk_backend_ahead(be));
    OP(be, lk_reserve(be, &limits));
    lk_sample_request greedy = plain;
    greedy.temperature = 0.0f;
    int64_t at = kernels_launched();
    assert_true(sample_one(be, logits, 3, &plain).token >= 0);
    if (at) assert_int_equal(kernels_launched() - at, 3);
    at = kernels_launched();
    assert_int_equal(sample_one(be, logits, 3, &greedy).token, 2);
    if (at) assert_int_equal(kernels_launched() - at, 2);
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shared), cmocka_unit_test(test_against_naive),
                                       cmocka_unit_test(test_large),  cmocka_unit_test(test_pending),
                                       cmocka_unit_test(test_embed),  cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
