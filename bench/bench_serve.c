/* Decode and prefill through the serving engine on a random model: tokens per second alone, with 16 requests on the base, and with 16
 * requests on 16 adapters.
 *
 *     bench_serve [SHAPE [NEW_TOKENS [PROMPT_TOKENS [THREADS]]]]       defaults: 100m 64 32 0
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "bench/shape.h"
#include "serve/engine.h"

enum { REQUESTS = 16 };

typedef struct bench {
    lk_backend *be;
    lk_model *model;
    lk_engine *engine;
    int64_t new_tokens, prompt_tokens;
    int32_t *prompt;
} bench;

/* An adapter folder with random factors: B is random too, so that it does something. */
static lk_status make_adapter(const bench *b, const char *path, uint64_t seed, lk_error *err)
{
    lk_adapter_spec spec = {.rank = 16, .alpha = 16};
    for (int m = 0; m < LK_N_MODULES; m++) spec.targets[m] = true;
    lk_adapter *a;
    LK_TRY(lk_adapter_create(&a, b->model, &spec, seed, err));
    float *w = malloc(lk_adapter_bytes(a));
    lk_status status = w ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "no memory");
    if (!status) {
        lk_download(b->be, w, a->weights, lk_adapter_bytes(a));
        lk_philox_key key = lk_philox_key_make(seed, 99);
        uint32_t word[4];
        for (int32_t s = 0; s < a->n_sites; s++) {
            for (int64_t i = 0; i < a->sites[s].rank * a->sites[s].n; i++) {
                lk_philox(key, (uint64_t)s, (uint64_t)i, word);
                w[a->sites[s].b + i] = 0.02f * (lk_philox_uniform(word[0]) - 0.5f);
            }
        }
        lk_upload(b->be, a->weights, w, lk_adapter_bytes(a));
        status = lk_adapter_save(a, path, err);
    }
    free(w);
    lk_adapter_destroy(a);
    return status;
}

/* Seconds from submission to the last token of n requests of new_tokens each. */
static lk_status round_of(bench *b, int n, bool adapters, int64_t new_tokens, double *seconds, lk_error *err)
{
    lk_request *requests[REQUESTS];
    double start = lk_clock_seconds();
    for (int i = 0; i < n; i++) {
        char name[32];
        snprintf(name, sizeof name, "a%d", i);
        lk_request_spec spec = {.adapter = adapters ? name : NULL,
                                .prompt = b->prompt,
                                .n_prompt = b->prompt_tokens,
                                .max_tokens = new_tokens,
                                .top_p = 1.0f,
                                .repetition_penalty = 1.0f,
                                .n_logprobs = -1,
                                .ignore_eos = true};
        LK_TRY(lk_engine_submit(b->engine, &spec, &requests[i], err));
    }
    for (int i = 0; i < n; i++) {
        lk_event event = {0};
        while (event.finish == LK_FINISH_NONE) lk_request_next(requests[i], -1, &event);
        lk_request_release(requests[i]);
        if (event.finish == LK_FINISH_ERROR) return lk_fail(err, event.error.code, "%s", event.error.message);
    }
    *seconds = lk_clock_seconds() - start;
    return LK_OK;
}

/* The best of three: prefill is a round of one token each, decoding what more tokens add to it. */
static lk_status measure(bench *b, const char *what, int n, bool adapters, lk_error *err)
{
    double first = 1e9, all = 1e9;
    for (int i = 0; i < 3; i++) {
        double seconds;
        LK_TRY(round_of(b, n, adapters, 1, &seconds, err));
        if (seconds < first) first = seconds;
        LK_TRY(round_of(b, n, adapters, b->new_tokens + 1, &seconds, err));
        if (seconds < all) all = seconds;
    }
    printf("{\"what\": \"%s\", \"requests\": %d, \"prompt\": %lld, \"new\": %lld, \"prefill_tokens_per_s\": %.1f, \"decode_tokens_per_s\": "
           "%.1f}\n",
           what, n, (long long)b->prompt_tokens, (long long)b->new_tokens, (double)(n * b->prompt_tokens) / first,
           (double)(n * b->new_tokens) / (all - first));
    fflush(stdout);
    return LK_OK;
}

static lk_status run(bench *b, const char *shape, int threads, lk_error *err)
{
    char folder[4096];
    LK_TRY(bench_shape_folder(folder, sizeof folder, shape, err));
    LK_TRY(lk_backend_open(&b->be, &(lk_backend_options){.device = "cpu", .threads = threads, .compute = LK_BF16}, err));
    LK_TRY(lk_model_open(&b->model, b->be, folder, &(lk_model_options){.quant = LK_QUANT_NF4}, err));
    for (int i = 0; i < REQUESTS; i++) {
        char path[4200];
        snprintf(path, sizeof path, "%s-adapters/a%d", folder, i);
        if (!lk_path_exists(path)) LK_TRY(make_adapter(b, path, (uint64_t)i + 1, err));
    }
    lk_engine_options options;
    lk_engine_options_default(&options);
    options.max_running = REQUESTS;
    options.max_resident_adapters = REQUESTS;
    options.token_budget = 512;
    options.max_model_len = b->prompt_tokens + b->new_tokens + 1;
    LK_TRY(lk_engine_start(&b->engine, b->model, &options, err));
    for (int i = 0; i < REQUESTS; i++) {
        char name[32], path[4200];
        snprintf(name, sizeof name, "a%d", i);
        snprintf(path, sizeof path, "%s-adapters/%s", folder, name);
        LK_TRY(lk_engine_load_adapter(b->engine, name, path, false, NULL, err));
    }
    printf("{\"device\": \"%s\", \"threads\": %d, \"shape\": \"%s\"}\n", lk_backend_name(b->be), lk_backend_threads(b->be), shape);
    LK_TRY(measure(b, "base alone", 1, false, err));
    LK_TRY(measure(b, "one adapter alone", 1, true, err));
    LK_TRY(measure(b, "base x 16", REQUESTS, false, err));
    return measure(b, "16 adapters x 16", REQUESTS, true, err);
}

int main(int argc, char **argv)
{
    bench b = {.new_tokens = argc > 2 ? atoll(argv[2]) : 64, .prompt_tokens = argc > 3 ? atoll(argv[3]) : 32};
    lk_error err = {0};
    if (b.new_tokens < 1 || b.prompt_tokens < 1)
        return fprintf(stderr, "usage: bench_serve [SHAPE [NEW_TOKENS [PROMPT_TOKENS [THREADS]]]]\n"), 2;
    b.prompt = malloc((size_t)b.prompt_tokens * 4);
    if (!b.prompt) return 1;
    for (int64_t i = 0; i < b.prompt_tokens; i++) b.prompt[i] = (int32_t)((i * 7919 + 13) % 2000);
    lk_status status = run(&b, argc > 1 ? argv[1] : "100m", argc > 4 ? atoi(argv[4]) : 0, &err);
    lk_engine_stop(b.engine);
    lk_model_close(b.model);
    lk_backend_close(b.be);
    free(b.prompt);
    if (status) fprintf(stderr, "bench_serve: %s\n", err.message);
    return status ? 1 : 0;
}
