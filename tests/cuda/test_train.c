/* label: slow */
/* Training on the CUDA backend: a forward and backward of a whole model equal the CPU's within what bf16 allows; checkpointing, offload and
 * the order of threads change no bit; whole runs resume byte for byte with either optimizer, and take exactly the memory that was planned.
 *
 * Tolerances. The CPU in fp32 compute is the truth: the same NF4 weights, nothing else rounded. On the GPU each product's factors and each
 * activation between operations are bf16, a relative 2^-9 a rounding. Some ten roundings a layer add up like a random walk over five layers
 * forward and back: sqrt(100) * 2^-9 = 2% of a factor's gradient (in the Euclidean norm). Twice that is allowed; NLL, which only the
 * forward touches, 1%. */
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/sha256.h"
#include "tests/cuda/cuda_check.h"
#include "tests/model.h"
#include "tests/program.h"
#include "train/train.h"

enum { LAYERS = 5, TOKENS = 61, RANK = 8, DOCS = 4, WORDS = 90 /* below every model's vocabulary */ };

static const lk_config shape = {
    .hidden = 64, .layers = LAYERS, .heads = 4, .kv_heads = 2, .head_dim = 32, .intermediate = 104, .vocab = 131};

/* ---------------------------------------------------------------------------------------------- one micro-batch */

typedef struct packed {
    lk_batch batch;
    int32_t ids[TOKENS], positions[TOKENS], labels[TOKENS];
    int supervised;
} packed;

static void make_packed(packed *p)
{
    static const int32_t starts[DOCS + 1] = {0, 23, 24, 41, TOKENS};
    check_random r = {7};
    memset(p, 0, sizeof *p);
    for (int d = 0; d < DOCS; d++)
        for (int32_t t = starts[d]; t < starts[d + 1]; t++) {
            p->ids[t] = (int32_t)(check_random_uniform(&r) * WORDS);
            p->positions[t] = t - starts[d];
            p->labels[t] = check_random_uniform(&r) < 0.3 ? -1 : (int32_t)(check_random_uniform(&r) * WORDS);
            p->supervised += p->labels[t] >= 0;
        }
    p->batch = (lk_batch){.n_tokens = TOKENS, .ids = p->ids, .positions = p->positions, .n_docs = DOCS, .doc_starts = starts};
}

typedef struct setup {
    const char *device;
    lk_dtype compute;
    int64_t kept;
    bool offload;
    float dropout;
} setup;

typedef struct step_outcome {
    float nll[TOKENS];
    float *grads;
    int64_t n;
    lk_adapter_site *sites;
    int32_t n_sites;
} step_outcome;

static void free_step(step_outcome *o)
{
    free(o->grads);
    free(o->sites);
}

static void fill_adapter(lk_adapter *a)
{
    lk_error err = {0};
    check_random r = {19};
    float *host = calloc((size_t)a->n_params, 4);
    for (int32_t s = 0; s < a->n_sites; s++) { /* B too: a fresh adapter's A would get no gradient */
        check_random_fill(&r, host + a->sites[s].a, a->sites[s].rank * a->sites[s].k, 0.1f);
        check_random_fill(&r, host + a->sites[s].b, a->sites[s].rank * a->sites[s].n, 0.1f);
    }
    CHECK_OK(lk_upload(a->model->be, a->weights, host, (size_t)a->n_params * 4), &err);
    free(host);
}

/* Loss and gradients of the micro-batch. */
static step_outcome run_step(const char *folder, const setup *s)
{
    lk_error err = {0};
    lk_backend *be;
    lk_model *model;
    lk_adapter *a;
    lk_pass *pass;
    void *grads;
    packed p;
    make_packed(&p);
    CHECK_OK(lk_backend_open(&be, &(lk_backend_options){.device = s->device, .threads = 2, .compute = s->compute}, &err), &err);
    CHECK_OK(lk_model_open(&model, be, folder, &(lk_model_options){.quant = LK_QUANT_NF4}, &err), &err);
    lk_adapter_spec spec = {.rank = RANK, .alpha = 16, .targets = {true, true, true, true, true, true, true}};
    CHECK_OK(lk_adapter_create(&a, model, &spec, 3, &err), &err);
    fill_adapter(a);
    size_t bytes = (size_t)a->n_params * 4;
    CHECK_OK(lk_alloc(be, bytes, &grads), lk_backend_error(be));
    lk_lora *table = calloc((size_t)a->n_sites, sizeof *table);
    const lk_adapter *adapters[1] = {a};
    lk_adapter_table(table, adapters, 1, &(float *){grads});
    lk_segment segment = {0, TOKENS, 0};
    p.batch.n_segments = 1;
    p.batch.segments = &segment;
    p.batch.n_sites = a->n_sites;
    p.batch.n_adapters = 1;
    p.batch.lora = table;
    lk_pass_options options = {.max_tokens = TOKENS + 3, .max_rank = RANK, .kept_layers = s->kept, .offload = s->offload, .training = true};
    lk_dropout dropout = {.p = s->dropout, .key = lk_philox_key_make(5, LK_STREAM_DROPOUT), .counter = 9};
    step_outcome o = {.grads = malloc(bytes), .n = a->n_params, .n_sites = a->n_sites};
    o.sites = malloc((size_t)a->n_sites * sizeof *o.sites);
    memcpy(o.sites, a->sites, (size_t)a->n_sites * sizeof *o.sites);
    CHECK_OK(lk_pass_create(&pass, model, &options, &err), &err);
    CHECK_OK(lk_pass_gradient(pass, &p.batch, p.labels, 1.0f / (float)p.supervised, &dropout, o.nll, &err), &err);
    CHECK_OK(lk_download(be, o.grads, grads, bytes), lk_backend_error(be));
    lk_pass_destroy(pass);
    free(table);
    lk_free(be, grads);
    lk_adapter_destroy(a);
    lk_model_close(model);
    lk_backend_close(be);
    return o;
}

/* |got - want| / |want| */
static double relative(const float *got, const float *want, int64_t n)
{
    double error = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        error += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        size += (double)want[i] * (double)want[i];
    }
    return sqrt(error / (size > 0 ? size : 1e-30));
}

/* The worst factor's difference. */
static double compare(const char *what, const step_outcome *got, const step_outcome *want, double tolerance)
{
    double worst = 0;
    for (int32_t s = 0; s < want->n_sites; s++) {
        const lk_adapter_site *site = &want->sites[s];
        for (int f = 0; f < 2; f++) {
            int64_t at = f ? site->b : site->a, n = site->rank * (f ? site->n : site->k);
            double r = relative(got->grads + at, want->grads + at, n);
            if (!(r <= tolerance))
                fail_msg("%s: site %d, factor %c: off by %.3g of its norm, allowed %.3g", what, s, "AB"[f], r, tolerance);
            if (r > worst) worst = r;
        }
    }
    return worst;
}

static double mean(const float *x)
{
    double sum = 0;
    for (int t = 0; t < TOKENS; t++) sum += (double)x[t];
    return sum / TOKENS;
}

static void like_the_cpu(const char *what, const char *folder)
{
    for (int dropped = 0; dropped < 2; dropped++) {
        float p = dropped ? 0.25f : 0.0f;
        step_outcome truth = run_step(folder, &(setup){"cpu", LK_F32, LAYERS, false, p});
        step_outcome bf16 = run_step(folder, &(setup){"cpu", LK_BF16, LAYERS, false, p});
        step_outcome cuda = run_step(folder, &(setup){"cuda", LK_BF16, LAYERS, false, p});
        double nll = relative(cuda.nll, truth.nll, TOKENS), loss = fabs(mean(cuda.nll) - mean(truth.nll)) / mean(truth.nll);
        double nearest = compare("the CPU in bf16", &bf16, &truth, 0.06), got = compare(what, &cuda, &truth, 0.06);
        print_message("%s, dropout %.2f: loss %.5f, off by %.2e of it, NLL by %.2e; gradients by at most %.2e (the CPU in bf16: %.2e)\n",
                      what, (double)p, mean(truth.nll), loss, nll, got, nearest);
        assert_true(nll < 1e-2 && loss < 1e-2);
        free_step(&truth);
        free_step(&bf16);
        free_step(&cuda);
    }
}

/* Five layers of random weights; and small models with what the families differ in: biases, norms per head, scaled RoPE, a base that was
 * quantised elsewhere. */
static void test_like_the_cpu(void **state)
{
    (void)state;
    static const char *const models[] = {"llama-tiny", "mistral-tiny", "qwen2-tiny", "qwen3-tiny", "llama-tiny-bnb4"};
    char *folder = check_random_model("cuda_train_model", &shape), name[100];
    like_the_cpu("five layers", folder);
    free(folder);
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        snprintf(name, sizeof name, "models/%s", models[i]);
        folder = check_golden(name);
        like_the_cpu(models[i], folder);
        free(folder);
    }
}

/* Recomputed or kept, here or away, and whichever thread comes first: the same operations on the same numbers. */
static void test_same_bits(void **state)
{
    (void)state;
    char *folder = check_random_model("cuda_train_bits", &shape);
    static const struct {
        int64_t kept;
        bool offload;
        uint64_t schedule;
    } rows[] = {{LAYERS, false, 0}, {LAYERS, false, 1}, {LAYERS, false, 2}, {1, false, 0}, {1, true, 0},
                {1, true, 1},       {1, true, 2},       {3, false, 3},      {2, true, 4}};
    step_outcome want = {0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        set_schedule(rows[i].schedule);
        step_outcome got = run_step(folder, &(setup){"cuda", LK_BF16, rows[i].kept, rows[i].offload, 0.25f});
        if (i == 0) {
            want = got;
            continue;
        }
        check_same_bits("losses", got.nll, want.nll, sizeof want.nll);
        check_same_bits("gradients", got.grads, want.grads, (size_t)want.n * 4);
        free_step(&got);
    }
    set_schedule(0);
    free_step(&want);
    free(folder);
}

/* ---------------------------------------------------------------------------------------------- whole runs */

static void digest_of(const char *out, char hex[65])
{
    lk_error err = {0};
    char path[4200];
    snprintf(path, sizeof path, "%s/adapter/adapter_model.safetensors", out);
    CHECK_OK(lk_sha256_file(path, hex, &err), &err);
}

static char *write_recipe(const char *folder)
{
    static const char *const words[] = {"river", "bread", "ferry", "hello", "world"};
    static char path[4096];
    char text[6000] = "", *base = check_golden("models/chat-tiny");
    for (int i = 0; i < 14; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text),
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"say %s %s\"},{\"role\":\"assistant\",\"content\":\"%s it is\"}]}\n",
                 words[i % 5], words[i * 3 % 4], words[i * 2 % 5]);
    snprintf(path, sizeof path, "%s/train.jsonl", folder);
    check_write_file(path, text, strlen(text));
    snprintf(text, sizeof text,
             "{\"base\":{\"path\":\"%s\"},\"adapter\":{\"r\":4,\"alpha\":8,\"dropout\":0.1},"
             "\"data\":{\"train\":[{\"path\":\"train.jsonl\",\"format\":\"messages\"}],\"max_length\":64},\"optim\":{\"lr\":1e-2},"
             "\"batch\":{\"rows\":2,\"accumulate\":2,\"steps\":4},\"checkpoint\":{\"every\":2},\"seed\":3}",
             base);
    snprintf(path, sizeof path, "%s/r.json", folder);
    check_write_file(path, text, strlen(text));
    free(base);
    return path;
}

/* Uninterrupted, then stopped after every step and gone on with, under other settings of memory. */
static void run_and_resume(const char *optimizer)
{
    lk_error err = {0};
    char *folder = check_temporary("cuda_run"), out[4300], want[65], got[65];
    const char *recipe = write_recipe(folder);
    lk_train_result r, cpu;
    const char *sets[] = {optimizer, "memory.checkpointing=none", "memory.offload=false"};
    lk_train_options o = {.recipe = recipe, .out = out, .sets = sets, .n_sets = 3, .device = "cpu", .threads = 1, .quiet = true};
    snprintf(out, sizeof out, "%s/cpu", folder);
    CHECK_OK(lk_train_run(&cpu, &o, &err), &err);
    o.device = "cuda";
    snprintf(out, sizeof out, "%s/whole", folder);
    CHECK_OK(lk_train_run(&r, &o, &err), &err);
    assert_int_equal(r.steps, 4);
    assert_true(r.plan.own_memory);
    assert_int_equal(r.backend_peak, lk_plan_backend_bytes(&r.plan));
    print_message("%s: loss after %lld steps %.5f, on the CPU %.5f\n", optimizer, (long long)r.steps, r.loss, cpu.loss);
    assert_true(fabs(r.loss - cpu.loss) < 0.02 * cpu.loss);
    digest_of(out, want);

    /* A stop that is already there ends the run after one step. It would also end tokenising, so the token store is brought along. */
    volatile sig_atomic_t stop = 1;
    sets[1] = "memory.checkpointing=full";
    sets[2] = "memory.offload=true";
    snprintf(out, sizeof out, "%s/parts", folder);
    char from[4400], to[4400], *bytes;
    size_t size;
    snprintf(to, sizeof to, "%s/data", out);
    CHECK_OK(lk_folder_create(out, &err), &err);
    CHECK_OK(lk_folder_create(to, &err), &err);
    snprintf(from, sizeof from, "%s/whole/data/train.h5", folder);
    snprintf(to, sizeof to, "%s/data/train.h5", out);
    CHECK_OK(lk_file_read(from, 1 << 26, &bytes, &size, &err), &err);
    check_write_file(to, bytes, size);
    free(bytes);
    o.stop = &stop;
    for (int64_t i = 0; i < 4; i++) {
        o.resume = i > 0;
        lk_status status = lk_train_run(&r, &o, &err);
        if (i < 3 ? status != LK_ERR_INTERRUPTED : status != LK_OK) fail_msg("stop %lld: %s", (long long)i, err.message);
        assert_int_equal(r.first_step, i);
        assert_int_equal(r.backend_peak, lk_plan_backend_bytes(&r.plan));
        assert_int_equal(r.plan.kept_layers, 1);
    }
    digest_of(out, got);
    assert_string_equal(got, want);
    free(folder);
}

/* What only the CPU trains is refused here by name, before anything is loaded. */
static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *sets[2], *says;
        lk_status status;
    } rows[] = {
        {{"adapter.lora_bias=true"}, "lora_bias: not trained on cuda", LK_ERR_UNSUPPORTED},
        {{"adapter.modules_to_save=[\"lm_head\"]"}, "modules_to_save: not trained on cuda", LK_ERR_UNSUPPORTED},
        {{"adapter.targets=[\"q_proj\",\"lm_head\"]"}, "factors on embed_tokens and lm_head: not trained on cuda", LK_ERR_UNSUPPORTED},
        {{"adapter.trainable_token_indices=[5]"}, "trainable_token_indices: not trained on cuda", LK_ERR_UNSUPPORTED},
        {{"adapter.dora=true", "adapter.dropout=0.1"}, "a DoRA is not trained with dropout on cuda", LK_ERR_UNSUPPORTED},
        {{"adapter.init=pissa", "optim.weight_decay=0.1"}, "pissa with optim.weight_decay is not trained on cuda", LK_ERR_ARGUMENT}};
    char *folder = check_temporary("cuda_refused");
    const char *recipe = write_recipe(folder);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lk_error err = {0};
        lk_plan plan;
        lk_train_options o = {
            .recipe = recipe, .sets = rows[i].sets, .n_sets = rows[i].sets[1] ? 2 : 1, .device = "cuda", .threads = 1, .quiet = true};
        CHECK_FAILS(lk_train_plan(&plan, &o, &err), rows[i].status, rows[i].says, &err);
    }
    free(folder);
}

static void test_run_adamw(void **state) { (void)state, run_and_resume("optim.name=adamw"); }
static void test_run_adamw8(void **state) { (void)state, run_and_resume("optim.name=adamw8bit"); }

static size_t host_bytes(const lk_plan *plan, const char *name)
{
    for (int i = 0; i < plan->n_terms; i++)
        if (!plan->terms[i].backend && !strcmp(plan->terms[i].name, name)) return plan->terms[i].bytes;
    return 0;
}

/* The budget is for the device's memory, and "auto" keeps as many layers as fit it. */
static void test_plan(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_random_model("cuda_train_plan", &shape);
    lk_backend *be;
    lk_model_facts facts;
    lk_plan plan;
    lk_adapter_spec spec = {.rank = RANK, .alpha = 16, .targets = {true, true, true, true, true, true, true}};
    CHECK_OK(lk_backend_open(&be, &(lk_backend_options){.device = "cuda", .compute = LK_BF16}, &err), &err);
    CHECK_OK(lk_model_probe(&facts, folder, &err), &err);
    lk_plan_request request = {.be = be,
                               .facts = &facts,
                               .quant = LK_QUANT_NF4,
                               .adapter = &spec,
                               .rows = 1,
                               .max_length = 64,
                               .accumulate = 1,
                               .train_documents = 1,
                               .checkpointing = LK_CHECKPOINTING_AUTO};
    CHECK_OK(lk_plan_make(&plan, &request, &err), &err);
    assert_int_equal(plan.kept_layers, LAYERS);
    assert_true(plan.own_memory && strstr(plan.budget_source, "free on the device"));
    assert_int_equal(lk_plan_peak_bytes(&plan), lk_plan_backend_bytes(&plan));
    for (int64_t kept = LAYERS - 1; kept >= 1; kept--) {
        request.budget = lk_plan_backend_bytes(&plan) - 1;
        CHECK_OK(lk_plan_make(&plan, &request, &err), &err);
        assert_int_equal(plan.kept_layers, kept);
    }
    size_t full = lk_plan_backend_bytes(&plan);
    request.budget = full - 1;
    CHECK_FAILS(lk_plan_make(&plan, &request, &err), LK_ERR_MEMORY, "memory.offload to true", &err);
    request.offload = true; /* three inputs stay of the five that full recomputation keeps */
    CHECK_OK(lk_plan_make(&plan, &request, &err), &err);
    size_t input = 64 * (size_t)shape.hidden * 2;
    assert_int_equal(full - lk_plan_backend_bytes(&plan), (LAYERS - 3) * input);
    assert_int_equal(host_bytes(&plan, "offloaded layer inputs"), (LAYERS - 3) * input);
    lk_backend_close(be);
    free(folder);
}

/* The commands by name. */
static void test_program(void **state)
{
    (void)state;
    char *folder = check_temporary("cuda_program"), *base = check_golden("models/chat-tiny");
    const char *recipe = write_recipe(folder);
    check_program_says(0, "module for ", "doctor");
    check_program_says(0, "on the device", "plan %s --for cuda", recipe);
    check_program_says(1, "of the device's memory", "plan %s --for cuda --set memory.budget=1KiB", recipe);
    check_program_says(1, "computes in bf16", "plan %s --for cuda --set base.dtype=f32", recipe);
    check_program_says(0, "loss ", "eval %s --data %s/train.jsonl --no-exact-match --device cuda", base, folder);
    check_program_says(0, "logits of 3 positions", "logits %s --ids 1,2,3 -o %s/x.safetensors --device cuda", base, folder);
    check_program_says(0, "", "generate %s --prompt hello --max-tokens 2 --device cuda", base);
    free(base);
    free(folder);
}

/* Nothing of the device's is left, whatever the tests above did. */
static void test_leaves_nothing(void **state)
{
    (void)state;
    int64_t (*leaks)(void);
    void *symbol = emulation_symbol("lk_emu_leaks");
    memcpy(&leaks, &symbol, sizeof leaks);
    if (leaks) assert_int_equal(leaks(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_like_the_cpu), cmocka_unit_test(test_same_bits),
                                       cmocka_unit_test(test_plan),         cmocka_unit_test(test_run_adamw),
                                       cmocka_unit_test(test_refused),      cmocka_unit_test(test_run_adamw8),
                                       cmocka_unit_test(test_program),      cmocka_unit_test(test_leaves_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
