/* All sizes follow from the options and the model before anything is allocated: lk_engine_plan prints them, lk_engine_start takes them. */
#include "serve/engine_options.h"

enum { DEFAULT_MODEL_LEN = 8192 };
static const size_t DEFAULT_KV_BYTES = (size_t)1 << 30;

void lk_engine_options_default(lk_engine_options *options)
{
    *options = (lk_engine_options){
        .page_tokens = 16,
        .max_running = 32,
        .max_waiting = 256,
        .token_budget = 512,
        .max_resident_adapters = 32,
        .max_rank = 128, /* costs one fp32 column of the token budget each; adapters themselves take their exact rank */
    };
}

static lk_status check(const char *name, int64_t value, int64_t least, int64_t most, lk_error *err)
{
    if (value >= least && value <= most) return LK_OK;
    return lk_fail(err, LK_ERR_ARGUMENT, "%s is %lld; it must be from %lld to %lld", name, (long long)value, (long long)least,
                   (long long)most);
}

lk_status lk_engine_options_resolve(lk_engine_options *o, const lk_model *model, lk_kv_shape *shape, lk_error *err)
{
    const lk_config *config = &model->config;
    if (o->max_model_len == 0) o->max_model_len = config->max_positions < DEFAULT_MODEL_LEN ? config->max_positions : DEFAULT_MODEL_LEN;
    if (!lk_backend_serves(model->be))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "the backend %s trains and evaluates; it cannot generate: use --device cpu",
                       lk_backend_name(model->be));
    LK_TRY(check("max_model_len", o->max_model_len, 2, config->max_positions, err));
    LK_TRY(check("page_tokens", o->page_tokens, 16, 256, err));
    if (o->page_tokens & (o->page_tokens - 1))
        return lk_fail(err, LK_ERR_ARGUMENT, "page_tokens is %d; it must be a power of two", o->page_tokens);
    LK_TRY(check("max_running", o->max_running, 1, 4096, err));
    LK_TRY(check("max_waiting", o->max_waiting, 1, 1 << 20, err));
    LK_TRY(check("token_budget", o->token_budget, 1, 1 << 20, err));
    LK_TRY(check("max_resident_adapters", o->max_resident_adapters, 1, 1 << 20, err));
    LK_TRY(check("max_rank", o->max_rank, 1, 1 << 16, err));
    if (o->max_running > o->token_budget) o->max_running = o->token_budget; /* every decode must fit */

    *shape = lk_infer_kv_shape(model, o->page_tokens, 1);
    if (o->kv_8bit) shape->type = LK_I8;
    size_t page = lk_kv_page_bytes(model->be, shape);
    int64_t useful = o->max_running * ((o->max_model_len + o->page_tokens - 1) / o->page_tokens);
    if (o->kv_bytes == 0) {
        o->kv_bytes = (size_t)useful * page;
        if (o->kv_bytes > DEFAULT_KV_BYTES) o->kv_bytes = DEFAULT_KV_BYTES;
    }
    size_t n_pages = o->kv_bytes / page;
    if (n_pages < 1)
        return lk_fail(err, LK_ERR_ARGUMENT, "the memory for the KV cache, %zu bytes, is less than one page of %d tokens, %zu bytes",
                       o->kv_bytes, o->page_tokens, page);
    if (n_pages > INT32_MAX) n_pages = INT32_MAX;
    shape->n_pages = (int32_t)n_pages;
    return LK_OK;
}

lk_infer_options lk_engine_infer_options(const lk_engine_options *o)
{
    return (lk_infer_options){
        .max_tokens = o->token_budget, .max_rows = o->max_running, .max_context = o->max_model_len, .max_rank = o->max_rank};
}

lk_status lk_engine_plan(const lk_model *model, const lk_engine_options *options, size_t *kv, size_t *activations, lk_error *err)
{
    lk_engine_options o = *options;
    lk_kv_shape shape;
    LK_TRY(lk_engine_options_resolve(&o, model, &shape, err));
    lk_infer_options infer = lk_engine_infer_options(&o);
    *kv = (size_t)shape.n_pages * lk_kv_page_bytes(model->be, &shape);
    *activations = lk_infer_bytes(model->be, &model->config, &infer);
    return LK_OK;
}
