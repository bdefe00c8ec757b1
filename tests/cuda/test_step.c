/* Recorded steps on the CUDA backend: a model decodes over pages with recordings and without, and every logit has the same bits, while
 * batches grow and shrink within a bucket, sequences grow over pages and splits, adapters change and are loaded anew. On the emulation it
 * is also counted what is recorded, repeated and sent. */
#include "tests/cuda/cuda_check.h"
#include "tests/cuda_emu/counts.h"
#include "tests/model.h"

enum { SEQUENCES = 12, PAGES = 24, PAGE_TOKENS = 16, PROMPT = 40, CONTEXT = 320, ADAPTERS = 5 };

typedef struct world {
    check_model m;
    lk_infer *infer;
    lk_kv *kv;
    lk_adapter *adapters[ADAPTERS];
    lk_lora *table;
    int32_t pages[SEQUENCES][PAGES];
    int64_t lengths[SEQUENCES];
} world;

static lk_emu_counts counts(void)
{
    void (*get)(lk_emu_counts *);
    lk_emu_counts c = {0};
    void *symbol = emulation_symbol("lk_emu_get_counts");
    memcpy(&get, &symbol, sizeof symbol);
    if (get) get(&c);
    return c;
}

/* On the emulation. */
static bool counted(void)
{
    bool is = emulation_symbol("lk_emu_schedule") != NULL;
    if (is) assert_non_null(emulation_symbol("lk_emu_get_counts"));
    return is;
}

static void set_late(bool late)
{
    void (*set)(bool);
    void *symbol = emulation_symbol("lk_emu_set_late");
    memcpy(&set, &symbol, sizeof symbol);
    if (set) set(late);
}

/* B is zero in a fresh adapter: values for both. */
static lk_adapter *make_adapter(const lk_model *model, int32_t rank, uint64_t seed, bool experts)
{
    lk_error err = {0};
    lk_adapter *a;
    lk_adapter_spec spec = {.rank = rank, .alpha = 2.0 * rank};
    for (int i = 0; i < LK_N_MODULES; i++) spec.targets[i] = experts || i <= LK_O;
    CHECK_OK(lk_adapter_create(&a, model, &spec, seed, &err), &err);
    float *values = random_floats(seed, a->n_params, 0.1f);
    OP(model->be, lk_upload(model->be, a->weights, values, (size_t)a->n_params * sizeof *values));
    free(values);
    return a;
}

static char *mixture_folder(void)
{
    lk_safetensors *st;
    cJSON *json = check_families(&st);
    const cJSON *each, *found = NULL;
    cJSON_ArrayForEach(each, lk_json_get(json, "cases")) if (!strcmp(lk_json_get(each, "name")->valuestring, "qwen3_moe")) found = each;
    char *folder = check_family_folder(found);
    cJSON_Delete(json);
    lk_safetensors_close(st);
    return folder;
}

/* mixture: of experts, whose adapters but the last leave the experts alone. */
static world world_open_of(bool recorded, bool mixture)
{
    static const int32_t ranks[ADAPTERS] = {8, 16, 3, 12, 20};
    lk_error err = {0};
    world w = {0};
    char *folder = mixture ? mixture_folder() : check_golden("models/llama-tiny");
    setenv("LK_CUDA_GRAPHS", recorded ? "1" : "0", 1);
    w.m = check_model_open_on(folder, LK_QUANT_NF4, &(lk_backend_options){.device = "cuda", .compute = LK_BF16});
    free(folder);
    lk_infer_options options = {.max_tokens = 64, .max_rows = SEQUENCES, .max_context = CONTEXT, .max_rank = 32};
    CHECK_OK(lk_infer_create(&w.infer, w.m.model, &options, &err), &err);
    lk_kv_shape shape = lk_infer_kv_shape(w.m.model, PAGE_TOKENS, SEQUENCES * PAGES);
    OP(w.m.be, lk_kv_create(w.m.be, &w.kv, &shape));
    for (int s = 0; s < SEQUENCES; s++)
        for (int p = 0; p < PAGES; p++)
            w.pages[s][p] = (int32_t)((s * PAGES + p) * 7 % (SEQUENCES * PAGES)); /* all of them, out of order */
    for (int i = 0; i < ADAPTERS; i++)
        w.adapters[i] = make_adapter(w.m.model, mixture && i == 4 ? 16 : ranks[i], (uint64_t)(i + 1), !mixture || i == 4);
    w.table = calloc((size_t)w.adapters[0]->n_sites * ADAPTERS, sizeof *w.table);
    assert_non_null(w.table);
    return w;
}

static world world_open(bool recorded) { return world_open_of(recorded, false); }

static void world_close(world *w)
{
    for (int i = 0; i < ADAPTERS; i++) lk_adapter_destroy(w->adapters[i]);
    free(w->table);
    lk_infer_destroy(w->infer);
    lk_kv_destroy(w->m.be, w->kv);
    check_model_close(&w->m);
}

/* `each` tokens of every one of n sequences from `first` on. adapters[i] of sequence i, -1 the base, in groups; NULL: none at all. Returns
 * the logits of their last tokens; free(). */
static float *run_step(world *w, int first, int n, int64_t each, const int *adapters)
{
    int32_t ids[64], positions[64], rows[SEQUENCES], row = 0;
    lk_sequence sequences[SEQUENCES];
    lk_segment segments[SEQUENCES];
    const lk_adapter *used[SEQUENCES];
    int32_t n_used = 0;
    assert_true(n * each <= 64);
    for (int i = 0; i < n; i++) {
        int s = first + i;
        for (int64_t t = 0; t < each; t++, row++) {
            int64_t at = w->lengths[s] + t;
            ids[row] = (int32_t)((at * 31 + s * 17 + 5) % w->m.model->config.vocab);
            positions[row] = (int32_t)at;
        }
        w->lengths[s] += each;
        sequences[i] = (lk_sequence){row - each, each, w->lengths[s], w->pages[s]};
        rows[i] = row - 1;
        if (!adapters) continue;
        if (adapters[i] >= 0 && (i == 0 || adapters[i] != adapters[i - 1])) used[n_used++] = w->adapters[adapters[i]];
        segments[i] = (lk_segment){row - each, row, adapters[i] < 0 ? -1 : n_used - 1};
    }
    lk_batch batch = {.n_tokens = row, .ids = ids, .positions = positions, .n_sequences = n, .sequences = sequences};
    if (n_used) {
        lk_adapter_table(w->table, used, n_used, NULL);
        batch.n_segments = n;
        batch.segments = segments;
        batch.n_sites = w->adapters[0]->n_sites;
        batch.n_adapters = n_used;
        batch.lora = w->table;
    }
    lk_error err = {0};
    lk_tensor logits;
    CHECK_OK(lk_infer_forward(w->infer, &batch, w->kv, rows, n, &logits, &err), &err);
    assert_int_equal(logits.rows, n);
    size_t bytes = (size_t)(logits.rows * logits.cols) * sizeof(float);
    float *out = malloc(bytes);
    assert_non_null(out);
    OP(w->m.be, lk_download(w->m.be, out, logits.data, bytes));
    return out;
}

static void prompts(world *w)
{
    for (int s = 0; s < SEQUENCES; s++) free(run_step(w, s, 1, PROMPT + s % 3, NULL));
}

/* A step of both; what it cost the one that records. */
static lk_emu_counts step_both(world *recorded, world *plain, int first, int n, const int *adapters)
{
    lk_emu_counts before = counts();
    float *got = run_step(recorded, first, n, 1, adapters);
    lk_emu_counts after = counts();
    float *want = run_step(plain, first, n, 1, adapters);
    check_same_bits("logits of a recorded step", got, want, (size_t)(n * recorded->m.model->config.vocab) * sizeof(float));
    free(got);
    free(want);
    return (lk_emu_counts){.kernels = after.kernels - before.kernels,
                           .host_copies = after.host_copies - before.host_copies,
                           .host_bytes = after.host_bytes - before.host_bytes,
                           .recordings = after.recordings - before.recordings,
                           .replays = after.replays - before.replays};
}

static void check_counts(const char *what, const lk_emu_counts *c, int64_t recordings, int64_t host_copies)
{
    if (!counted()) return;
    if (c->recordings != recordings || c->host_copies != host_copies || c->replays != 1)
        fail_msg("%s: %lld recordings, %lld repeated, %lld copies from the host; wanted %lld, 1, %lld", what, (long long)c->recordings,
                 (long long)c->replays, (long long)c->host_copies, (long long)recordings, (long long)host_copies);
}

typedef struct step_row {
    const char *what;
    int first, n, recordings, host_copies;
    int adapters[SEQUENCES];
    bool adapted;
} step_row;

/* Adapters 0, 1, 2 and 3 are of the class of rank 16, adapter 4 is not. */
static const step_row rows[] = {
    {"the first step of three", 0, 3, 1, 1, {0}, false},
    {"the second", 0, 3, 0, 1, {0}, false},
    {"another joins, within four rows", 0, 4, 0, 1, {0}, false},
    {"others altogether", 4, 3, 0, 1, {0}, false},
    {"one alone", 2, 1, 1, 1, {0}, false},
    {"seven, padded to eight", 0, 7, 1, 1, {0}, false},
    {"twelve, which is all there is room for", 0, 12, 1, 1, {0}, false},
    {"adapters: their table is sent", 0, 4, 1, 2, {0, 0, 1, -1}, true},
    {"the same again: nothing but the step's own tables", 0, 4, 0, 1, {0, 0, 1, -1}, true},
    {"two others of the same class", 0, 4, 0, 2, {2, 3, 3, -1}, true},
    {"the same two for other rows", 3, 4, 0, 1, {2, 2, 3, -1}, true},
    {"three of them", 0, 4, 0, 2, {0, 1, 1, 3}, true},
    {"fewer tiles", 0, 4, 1, 2, {-1, -1, 1, 1}, true},
    {"three others", 0, 3, 0, 2, {1, 2, 3}, true},
    {"a larger rank", 0, 3, 1, 2, {1, 4, 3}, true},
    {"the base alone again", 0, 3, 0, 1, {0}, false},
};

static void test_steps(void **state)
{
    (void)state;
    world recorded = world_open(true), plain = world_open(false);
    prompts(&recorded);
    prompts(&plain);
    int64_t kernels = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const step_row *r = &rows[i];
        for (uint64_t seed = 0; seed < 2; seed++) {
            set_schedule(seed);
            lk_emu_counts c = step_both(&recorded, &plain, r->first, r->n, r->adapted ? r->adapters : NULL);
            check_counts(r->what, &c, seed ? 0 : r->recordings, seed ? 1 : r->host_copies);
            if (i == 0) kernels = c.kernels;
        }
    }
    /* What step.c says a step of few rows takes: of two layers here. */
    if (counted()) assert_int_equal(kernels, 10 * 2 + 5);

    /* An adapter loaded anew, while its place in the table stays. */
    const int two[] = {0, 1, 1};
    lk_emu_counts c = step_both(&recorded, &plain, 0, 3, two);
    world *both[] = {&recorded, &plain};
    for (int i = 0; i < 2; i++) {
        lk_adapter *anew = make_adapter(both[i]->m.model, 16, 77, true);
        lk_adapter_destroy(both[i]->adapters[1]);
        both[i]->adapters[1] = anew;
    }
    c = step_both(&recorded, &plain, 0, 3, two);
    check_counts("an adapter loaded anew", &c, 0, 2);
    world_close(&recorded);
    world_close(&plain);
}

/* One sequence over the end of its first split: two splits are another class. The emulated stream is as late here as it may be. */
static void test_growing(void **state)
{
    (void)state;
    set_late(true);
    world recorded = world_open(true), plain = world_open(false);
    world *both[] = {&recorded, &plain};
    for (int i = 0; i < 2; i++)
        for (int turn = 0; turn < 4; turn++) free(run_step(both[i], 0, 1, 63, NULL)); /* 252 */
    for (int turn = 0; turn < 8; turn++) {
        lk_emu_counts c = step_both(&recorded, &plain, 0, 1, NULL);
        check_counts(turn < 4 ? "within a split" : "over its end", &c, turn == 0 || turn == 4, 1);
    }
    world_close(&recorded);
    world_close(&plain);
    set_late(false);
}

/* Whoever goes to which expert, a step is the same one; with an adapter on experts the host has a say, and nothing is recorded. */
static void test_mixture(void **state)
{
    (void)state;
    static const step_row steps[] = {
        {"the first step of three", 0, 3, 1, 1, {0}, false},
        {"others", 4, 3, 0, 1, {0}, false},
        {"adapters on attention", 0, 4, 1, 2, {0, 0, 1, -1}, true},
        {"others for others", 2, 4, 0, 2, {2, 3, 3, -1}, true},
    };
    world recorded = world_open_of(true, true), plain = world_open_of(false, true);
    prompts(&recorded);
    prompts(&plain);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        const step_row *r = &steps[i];
        lk_emu_counts c = step_both(&recorded, &plain, r->first, r->n, r->adapted ? r->adapters : NULL);
        check_counts(r->what, &c, r->recordings, r->host_copies);
    }
    static const int on_experts[] = {4, 4, 0, -1};
    lk_emu_counts c = step_both(&recorded, &plain, 0, 4, on_experts);
    if (counted()) assert_true(c.recordings == 0 && c.replays == 0);
    world_close(&recorded);
    world_close(&plain);
}

/* ---- the operations themselves */

typedef struct small {
    lk_backend *be;
    lk_kv *kv;
    lk_tensor x, y;
    lk_batch batch;
    lk_sequence sequence;
    int32_t page, ids[2];
    lk_matrix *table;
} small;

static const lk_limits small_limits = {
    .tokens = 4, .width = 64, .matrix = 64 * 64, .heads = 1, .kv_heads = 1, .head_dim = 16, .context = 64, .serving = true};

static void small_open(small *s)
{
    *s = (small){.be = open_cuda(&small_limits), .ids = {1, 2}};
    lk_kv_shape shape = {1, 1, 16, 16, 1, LK_BF16};
    OP(s->be, lk_kv_create(s->be, &s->kv, &shape));
    void *p;
    OP(s->be, lk_alloc(s->be, 2 * 64 * 2, &p));
    s->x = lk_tensor_make(p, LK_BF16, 1, 64);
    s->y = lk_tensor_make((uint16_t *)p + 64, LK_BF16, 1, 64);
    float *values = random_floats(1, 3 * 64, 1.0f);
    OP(s->be, lk_matrix_create(s->be, &s->table, &(lk_matrix_source){.type = LK_F32, .n = 3, .k = 64, .data = values}));
    free(values);
    s->sequence = (lk_sequence){0, 1, 1, &s->page};
    s->batch = (lk_batch){.n_tokens = 1, .ids = s->ids, .n_sequences = 1, .sequences = &s->sequence};
}

static void small_close(small *s)
{
    lk_matrix_destroy(s->be, s->table);
    lk_free(s->be, s->x.data);
    lk_kv_destroy(s->be, s->kv);
    lk_backend_close(s->be);
}

/* Whether it was a repetition. */
static bool add_once(small *s, uint64_t key)
{
    bool queued;
    OP(s->be, lk_batch_begin(s->be, &s->batch));
    OP(s->be, lk_step_begin(s->be, key, &queued));
    if (queued) return true;
    OP(s->be, lk_add(s->be, &s->y, &s->x));
    OP(s->be, lk_step_end(s->be));
    return false;
}

/* More kinds of steps than are kept: those least used go. */
static void test_many(void **state)
{
    (void)state;
    enum { KEPT = 64 };
    small s;
    setenv("LK_CUDA_GRAPHS", "1", 1);
    small_open(&s);
    for (uint64_t key = 0; key < KEPT; key++) assert_false(add_once(&s, key));
    for (uint64_t key = 0; key < KEPT; key++) assert_true(add_once(&s, key));
    assert_true(add_once(&s, 0));
    assert_false(add_once(&s, KEPT)); /* in the place of 1 */
    assert_true(add_once(&s, 0));
    assert_false(add_once(&s, 1));
    assert_true(add_once(&s, KEPT));
    lk_step_forget(s.be);
    assert_false(add_once(&s, 0));
    small_close(&s);
}

/* A failure between the two: it is reported, nothing is kept, and the backend goes on. */
static void test_failure(void **state)
{
    (void)state;
    small s;
    bool queued;
    setenv("LK_CUDA_GRAPHS", "1", 1);
    small_open(&s);
    for (int turn = 0; turn < 2; turn++) {
        OP(s.be, lk_batch_begin(s.be, &s.batch));
        OP(s.be, lk_step_begin(s.be, 5, &queued));
        assert_false(queued);
        OP(s.be, lk_embed(s.be, &s.y, s.table, s.ids)); /* the batch's own */
        int32_t other = 2;
        assert_int_equal(turn ? lk_embed(s.be, &s.y, s.table, &other) : lk_add(s.be, &s.y, &(lk_tensor){0}), LK_ERR_INTERNAL);
        assert_int_equal(lk_step_end(s.be), LK_ERR_INTERNAL);
        assert_non_null(strstr(lk_backend_error(s.be)->message, turn ? "that lk_batch_begin was not given" : "add: "));
    }
    assert_false(add_once(&s, 5));
    assert_true(add_once(&s, 5));
    OP(s.be, lk_sync(s.be));
    small_close(&s);
}

/* With two caches a batch does not say which is its own: such steps are not recorded. */
static void test_two_caches(void **state)
{
    (void)state;
    small s;
    lk_kv *other;
    setenv("LK_CUDA_GRAPHS", "1", 1);
    small_open(&s);
    lk_kv_shape shape = {1, 1, 16, 32, 1, LK_BF16};
    OP(s.be, lk_kv_create(s.be, &other, &shape));
    assert_false(add_once(&s, 1));
    assert_false(add_once(&s, 1));
    lk_kv_destroy(s.be, other);
    small_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_steps), cmocka_unit_test(test_growing), cmocka_unit_test(test_mixture),
                                       cmocka_unit_test(test_many),  cmocka_unit_test(test_failure), cmocka_unit_test(test_two_caches)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
