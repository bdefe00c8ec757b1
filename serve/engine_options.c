/* All sizes follow from the options and the model before anything is allocated: lk_engine_plan prints them, lk_engine_start takes them. */
#include "serve/engine_options.h"

#include <unistd.h>

enum { DEFAULT_MODEL_LEN = 8192 };
/* Most of a host's memory that is taken without being asked for. What is never written to stays the system's. */
static const size_t MOST_KV_BYTES = (size_t)1 << 30, MOST_ADAPTER_BYTES = (size_t)4 << 30;
/* Pinned memory for adapters outside the pool: so many for each that may be in it, and no more than this. */
enum { HOST_COPIES = 4 };
static const size_t MOST_HOST_BYTES = (size_t)4 << 30;

void lk_engine_options_default(lk_engine_options *options)
{
    *options = (lk_engine_options){
        .memory_share = 0.9,
        .adapter_host_bytes = -1,
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

static size_t at_most(size_t a, size_t b) { return a < b ? a : b; }

/* Of an adapter of this rank on all linear layers. */
static size_t largest_adapter(const lk_model *model, int32_t rank)
{
    const lk_config *config = &model->config;
    int64_t n = 0;
    for (int32_t s = 0; s < lk_sites(config); s++) {
        lk_site site = lk_site_at(config, s);
        int64_t most = site.n < site.k ? site.n : site.k;
        n += lk_adapter_factor(rank < most ? rank : most, site.k) + lk_adapter_factor(rank < most ? rank : most, site.n);
    }
    return (size_t)n * (size_t)lk_dtype_size(lk_backend_compute(model->be));
}

/* requests: bytes that as many as may run can use at most; adapters: the same. */
static size_t default_pool(const lk_engine_options *o, const lk_model *model, size_t requests, size_t adapters)
{
    size_t device = lk_device_memory(model->be);
    if (!device) {
        size_t machine = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
        return at_most(requests, MOST_KV_BYTES) + at_most(adapters, at_most(MOST_ADAPTER_BYTES, machine / 4));
    }
    lk_infer_options infer = lk_engine_infer_options(o);
    size_t activations = lk_infer_bytes(model->be, &model->config, &infer);
    size_t share = device > activations ? (size_t)(o->memory_share * (double)(device - activations)) : 0;
    return at_most(requests + adapters, share);
}

lk_status lk_engine_options_resolve(lk_engine_options *o, const lk_model *model, lk_kv_shape *shape, lk_error *err)
{
    const lk_config *config = &model->config;
    if (o->max_model_len == 0) o->max_model_len = config->max_positions < DEFAULT_MODEL_LEN ? config->max_positions : DEFAULT_MODEL_LEN;
    if (!lk_backend_serves(model->be))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "the backend %s trains and evaluates; it cannot generate: use --device cpu",
                       lk_backend_name(model->be));
    LK_TRY(check("max_model_len", o->max_model_len, 2, lk_config_longest(config), err));
    LK_TRY(check("page_tokens", o->page_tokens, 16, 256, err));
    if (o->page_tokens & (o->page_tokens - 1))
        return lk_fail(err, LK_ERR_ARGUMENT, "page_tokens is %d; it must be a power of two", o->page_tokens);
    LK_TRY(check("max_running", o->max_running, 1, 4096, err));
    LK_TRY(check("max_waiting", o->max_waiting, 1, 1 << 20, err));
    LK_TRY(check("token_budget", o->token_budget, 1, 1 << 20, err));
    LK_TRY(check("max_resident_adapters", o->max_resident_adapters, 1, 1 << 20, err));
    LK_TRY(check("max_rank", o->max_rank, 1, 1 << 16, err));
    if (!(o->memory_share > 0 && o->memory_share <= 1))
        return lk_fail(err, LK_ERR_ARGUMENT, "memory_share is %g; it must be above 0 and at most 1", o->memory_share);
    if (o->max_running > o->token_budget) o->max_running = o->token_budget; /* every decode must fit */

    *shape = lk_infer_kv_shape(model, o->page_tokens, 1);
    if (o->kv_8bit) shape->type = LK_I8;
    size_t page = lk_kv_page_bytes(model->be, shape);
    int64_t useful = o->max_running * ((o->max_model_len + o->page_tokens - 1) / o->page_tokens);
    size_t largest = (largest_adapter(model, o->max_rank) + page - 1) / page * page, places = (size_t)o->max_resident_adapters;
    if (o->kv_bytes == 0) o->kv_bytes = default_pool(o, model, (size_t)useful * page, largest * places);
    if (o->adapter_host_bytes < 0)
        o->adapter_host_bytes = lk_device_memory(model->be) ? (int64_t)at_most(MOST_HOST_BYTES, largest * places * HOST_COPIES) : 0;
    size_t n_pages = at_most(o->kv_bytes / page, (size_t)(INT32_MAX / o->page_tokens));
    if (n_pages < 1)
        return lk_fail(err, LK_ERR_ARGUMENT,
                       "the memory for keys, values and adapters, %zu bytes, is less than one page of %d tokens, %zu bytes", o->kv_bytes,
                       o->page_tokens, page);
    shape->n_pages = (int32_t)n_pages;
    return LK_OK;
}

lk_infer_options lk_engine_infer_options(const lk_engine_options *o)
{
    return (lk_infer_options){.max_tokens = o->token_budget,
                              .max_rows = o->max_running,
                              .max_context = o->max_model_len,
                              .max_rank = o->max_rank,
                              .eager = o->eager};
}

lk_status lk_engine_plan(const lk_model *model, const lk_engine_options *options, lk_engine_memory *memory, lk_error *err)
{
    lk_engine_options o = *options;
    lk_kv_shape shape;
    LK_TRY(lk_engine_options_resolve(&o, model, &shape, err));
    lk_infer_options infer = lk_engine_infer_options(&o);
    memory->pool = (size_t)shape.n_pages * lk_kv_page_bytes(model->be, &shape);
    memory->activations = lk_infer_bytes(model->be, &model->config, &infer);
    memory->host = (size_t)o.adapter_host_bytes;
    return LK_OK;
}
