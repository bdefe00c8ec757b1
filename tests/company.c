#include "tests/company.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "tests/queued.h"

enum { N = 16, ADAPTERS = CHECK_ADAPTERS };

static const int32_t RANKS[ADAPTERS] = {1, 2, 3, 5, 8, 16, 17, 32};

typedef struct asked {
    lk_request_spec spec;
    char adapter[32];
    int32_t prompt[128];
    int32_t bias_ids[2];
    float bias[2];
    int32_t stops[LK_MAX_STOPS];
} asked;

/* Two requests for each of six adapters, one each for the other two, two for the base. */
static void make_requests(asked q[N], int64_t vocab, int shrink)
{
    check_random r = {20240229};
    for (int i = 0; i < N; i++) {
        lk_request_spec *s = &q[i].spec;
        lk_request_spec_default(s);
        s->n_prompt = 1 + (int64_t)(check_random_u64(&r) % (uint64_t)(100 / shrink));
        for (int64_t t = 0; t < s->n_prompt; t++) q[i].prompt[t] = (int32_t)(check_random_u64(&r) % (uint64_t)vocab);
        s->prompt = q[i].prompt;
        s->max_tokens = 20 / shrink + (int64_t)(check_random_u64(&r) % (uint64_t)(60 / shrink));
        s->ignore_eos = i % 4 != 0;
        s->seed = 1000 + (uint64_t)i;
        s->n_logprobs = i % 5 == 0 ? -1 : i % 5 * 5;
        if (i % 3) {
            s->temperature = 0.7f + 0.1f * (float)i;
            s->top_p = i % 2 ? 0.9f : 1.0f;
            s->top_k = i % 4 == 1 ? 30 : 0;
            s->min_p = i % 4 == 2 ? 0.02f : 0.0f;
        }
        if (i % 4 == 3) {
            s->repetition_penalty = 1.2f;
            s->presence_penalty = 0.3f;
            s->frequency_penalty = 0.2f;
        }
        if (i % 6 == 5) {
            q[i].bias_ids[0] = 7;
            q[i].bias_ids[1] = 11;
            q[i].bias[0] = 3.0f;
            q[i].bias[1] = -100.0f;
            s->bias_ids = q[i].bias_ids;
            s->bias = q[i].bias;
            s->n_bias = 2;
        }
        if (i % 4 == 1) { /* one token in ten ends it */
            for (int k = 0; k < LK_MAX_STOPS; k++) q[i].stops[k] = (int32_t)((i + 10 * k) % vocab);
            s->stop_ids = q[i].stops;
            s->n_stop_ids = LK_MAX_STOPS;
        }
        if (i >= 14) continue;
        snprintf(q[i].adapter, sizeof q[i].adapter, "a%d", i % ADAPTERS);
        s->adapter = q[i].adapter;
    }
}

static int32_t rank_of(const check_crowd *c, int a) { return c->most_rank && RANKS[a] > c->most_rank ? c->most_rank : RANKS[a]; }

/* Some adapters leave layers out and take less. */
static size_t pool_bytes(const lk_model *model, const check_crowd *c, const check_scene *s, size_t page)
{
    lk_error err = {0};
    lk_adapter_spec spec = {.alpha = 1, .targets = {true, true, true, true, true, true, true}};
    size_t pages = (size_t)s->n_pages;
    for (int a = ADAPTERS - s->n_adapters; a < ADAPTERS; a++) {
        lk_adapter_sizes sizes;
        spec.rank = rank_of(c, a);
        CHECK_OK(lk_adapter_sizes_of(&sizes, model->be, &model->config, &spec, &err), &err);
        pages += ((size_t)sizes.n_params * (size_t)lk_dtype_size(lk_backend_compute(model->be)) + page - 1) / page;
    }
    return pages * page;
}

/* Where adapter a lies; free(). */
static char *adapter_path(const check_crowd *c, const char *folder, int a)
{
    char *path = malloc(4200);
    int given = a - (ADAPTERS - c->n_given);
    if (given < 0) {
        snprintf(path, 4200, "%s/a%d", folder, a);
        return path;
    }
    snprintf(path, 4200, "options/%s", c->given[given]);
    char *golden = check_golden(path);
    free(path);
    return golden;
}

static lk_engine *start(lk_model *model, const check_scene *s, const check_crowd *c, const char *folder, int n_adapters)
{
    lk_error err = {0};
    lk_engine_options o;
    lk_engine_options_default(&o);
    lk_kv_shape page = lk_infer_kv_shape(model, 16, 1);
    o.kv_8bit = c->kv_8bit;
    if (o.kv_8bit) page.type = LK_I8;
    o.token_budget = s->token_budget;
    o.kv_bytes = pool_bytes(model, c, s, lk_kv_page_bytes(model->be, &page));
    o.max_running = s->max_running;
    o.max_resident_adapters = s->max_resident;
    lk_engine *engine;
    CHECK_OK(lk_engine_start(&engine, model, &o, &err), &err);
    for (int a = 0; a < n_adapters; a++) {
        char name[32], *path = adapter_path(c, folder, a);
        snprintf(name, sizeof name, "a%d", a);
        CHECK_OK(lk_engine_load_adapter(engine, name, path, false, NULL, &err), &err);
        free(path);
    }
    return engine;
}

static void run_scene(lk_model *model, const check_scene *s, const check_crowd *c, const char *folder, const asked q[N],
                      check_answer *alone[N], const check_answer *swapped, lk_engine_stats *sum)
{
    lk_error err = {0};
    lk_engine *engine = start(model, s, c, folder, ADAPTERS);
    lk_request *requests[N];
    for (int i = 0; i < N; i++) CHECK_OK(lk_engine_submit(engine, &q[i].spec, &requests[i], &err), &err);
    if (s->reload) { /* once some of them run */
        lk_engine_stats now = {0};
        char *path = adapter_path(c, folder, 3);
        while (now.generated_tokens < N) lk_engine_get_stats(engine, &now);
        CHECK_OK(lk_engine_load_adapter(engine, "a2", path, true, NULL, &err), &err);
        free(path);
        check_answer *after = check_ask(engine, &q[2].spec);
        check_same_answer("asked after the reload", after, swapped);
        assert_int_equal(after->facts.adapter_version, 2);
        free(after);
    }
    int64_t tokens = 0, preempted = 0, stopped = 0;
    for (int i = 0; i < N; i++) {
        check_answer *together = check_collect(requests[i]);
        char what[100];
        snprintf(what, sizeof what, "%s, request %d", s->name, i);
        check_same_answer(what, together, alone[i]);
        tokens += together->n;
        preempted += together->facts.n_preempted;
        stopped += alone[i]->finish == LK_FINISH_STOP;
        free(together);
    }
    check_engine_idle(engine);
    lk_engine_stats stats;
    lk_engine_get_stats(engine, &stats);
    assert_int_equal(stats.finished_stop + stats.finished_length, N + s->reload);
    assert_int_equal(stats.finished_stop, stopped + (s->reload && swapped->finish == LK_FINISH_STOP));
    assert_true(stats.iterations < tokens); /* they did keep each other company */
    assert_int_equal(stats.preemptions, preempted);
    if (!s->tight) assert_int_equal(preempted + stats.pages_moved, 0);
    sum->preemptions += preempted;
    sum->pages_moved += stats.pages_moved;
    if (s->max_resident < ADAPTERS) assert_true(stats.adapter_evictions > ADAPTERS - s->max_resident);
    if (s->n_adapters < ADAPTERS) assert_true(stats.adapter_loads > ADAPTERS);
    assert_int_equal(stats.pages_adapters_in_use, 0);
    lk_engine_stop(engine);
}

static char *model_folder(const char *model)
{
    if (strncmp(model, "family ", 7)) return check_golden(model);
    lk_safetensors *st;
    cJSON *json = check_families(&st);
    const cJSON *each, *found = NULL;
    cJSON_ArrayForEach(each, lk_json_get(json, "cases")) if (!strcmp(lk_json_get(each, "name")->valuestring, model + 7)) found = each;
    char *folder = check_family_folder(found);
    cJSON_Delete(json);
    lk_safetensors_close(st);
    return folder;
}

void check_company(const check_crowd *c)
{
    lk_log_set_level(LK_LOG_WARN);
    char *golden = model_folder(c->model), *folder = check_temporary(strcmp(c->backend.device, "cpu") ? "company_device" : "company");
    lk_error err = {0};
    check_model m = {0};
    CHECK_OK(lk_backend_open(&m.be, &c->backend, &err), &err);
    CHECK_OK(lk_model_open(&m.model, m.be, golden, &(lk_model_options){.quant = c->quant, .nf4_head = c->nf4_head}, &err), &err);
    lk_backend_options on_cpu = {.device = "cpu", .threads = 1, .compute = LK_F32};
    check_model cpu = check_model_open_on(golden, c->quant, &on_cpu); /* writes the adapters, whatever they are served on */
    for (int a = 0; a < ADAPTERS - c->n_given; a++) {
        char path[4200];
        snprintf(path, sizeof path, "%s/a%d", folder, a);
        check_adapter_write(cpu.model, path, rank_of(c, a), (uint64_t)a + 1, 0.05f);
    }
    check_model_close(&cpu);
    asked *q = calloc(N, sizeof *q);
    make_requests(q, m.model->config.vocab, c->shrink);
    check_answer *alone[N];
    lk_engine *engine = start(m.model, &(check_scene){"alone", 512, 64, ADAPTERS, 4, 8, false}, c, folder, ADAPTERS);
    for (int i = 0; i < N; i++) alone[i] = check_ask(engine, &q[i].spec);
    if (c->shrink == 1) assert_true(alone[1]->finish == LK_FINISH_STOP || alone[5]->finish == LK_FINISH_STOP);
    /* An adapter must make a difference, or the comparison would mean little. */
    lk_request_spec base = q[1].spec;
    base.adapter = NULL;
    check_answer *without = check_ask(engine, &base);
    assert_true(memcmp(without->logprobs, alone[1]->logprobs, sizeof without->logprobs) != 0);
    free(without);
    lk_request_spec other = q[2].spec;
    other.adapter = "a3";
    check_answer *swapped = check_ask(engine, &other);
    assert_true(memcmp(swapped->logprobs, alone[2]->logprobs, sizeof swapped->logprobs) != 0);
    lk_engine_stop(engine);

    check_queued queued;
    lk_engine_stats sum = {0};
    bool tight = false;
    for (int s = 0; s < c->n_scenes; s++) tight |= c->scenes[s].tight;
    if (c->queued) check_queued_make(&queued, m.be);
    for (int s = 0; s < c->n_scenes; s++) run_scene(m.model, &c->scenes[s], c, folder, q, alone, swapped, &sum);
    if (tight && sum.preemptions + sum.pages_moved == 0) fail_msg("memory was never short");
    if (c->queued) {
        assert_int_equal(queued.most_under_way, 2);
        assert_int_equal(queued.begun, queued.ended);
        check_queued_free(&queued);
    }
    for (int i = 0; i < N; i++) free(alone[i]);
    free(swapped);
    free(q);
    check_model_close(&m);
    free(folder);
    free(golden);
}
