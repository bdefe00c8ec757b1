/* The serving engine: one thread that owns the model, the KV pages and the adapters, and answers typed requests.
 *
 *     lk_engine *engine;
 *     LK_TRY(lk_engine_start(&engine, model, &options, err));
 *     lk_request *r;                                            -- any thread
 *     LK_TRY(lk_engine_submit(engine, &spec, &r, err));         -- LK_ERR_BUSY when the queue is full, LK_ERR_NOT_FOUND: no such adapter
 *     while (lk_request_next(r, timeout_ms, &event)) ...        -- blocks until the engine has something
 *     lk_request_release(r);                                    -- also cancels a request that has not ended
 *     lk_engine_stop(engine);                                   -- finishes nothing: cancels what runs, joins the thread
 *
 * JSON never comes here: the HTTP side parses, validates, renders and tokenises, then submits. A request is pinned at submission to
 * one version of its adapter: loading a new version under the same name never disturbs it. The engine iterates: take commands and
 * arrivals; choose tokens under the budget (running decodes first, then prefill chunks, fair between adapters); get pages, preempt
 * when they run out (the youngest running request gives its pages back and is recomputed later); one forward over the mixed batch with
 * tokens grouped by adapter; sample per request; hand out tokens. */
#ifndef LK_SERVE_ENGINE_H
#define LK_SERVE_ENGINE_H

#include "model/adapter.h"
#include "model/model.h"
#include "model/transformer.h"

typedef struct lk_engine lk_engine;
typedef struct lk_request lk_request;

typedef struct lk_engine_options {
    int64_t max_model_len; /* prompt and output together; 0: the model's max_positions, at most 8192 */
    /* Memory for keys, values and adapters together: the pool. 0: what max_running requests of max_model_len and max_resident_adapters of
     * max_rank on all linear layers can use at most, but of a device's memory no more than memory_share of what is free beside weights and
     * activations, and of a host's 1 GiB for the requests and for the adapters 4 GiB or a quarter of the machine. */
    size_t kv_bytes;
    double memory_share;        /* 0.9 */
    int64_t adapter_host_bytes; /* pinned host memory for adapters outside the pool; -1: on a device 4 GiB or what they can use, else 0 */
    int32_t page_tokens;        /* 16 */
    bool kv_8bit;               /* keys and values in 8 bits (lk_kv_shape): twice the context in the same memory */
    int32_t max_running;        /* requests in one batch */
    int32_t max_waiting;        /* queue length; more are refused with LK_ERR_BUSY */
    int32_t token_budget;       /* tokens of one forward */
    int32_t max_resident_adapters; /* versions in memory at once; loading one more puts an idle one out (it stays known, and its next
                                      request brings it back), else LK_ERR_BUSY */
    int32_t max_rank;              /* adapters of a larger rank are refused at load */
    bool eager;                    /* steps of decoding are never recorded (CUDA graphs) */
    const struct lk_bundle_keys *trusted_keys; /* only bundles that these signed are loaded; NULL: anything. Borrowed until stop */
} lk_engine_options;

void lk_engine_options_default(lk_engine_options *options);
/* What lk_engine_start will allocate beside the weights, in bytes. Adapters lie in the pool, with keys and values. */
typedef struct lk_engine_memory {
    size_t pool, activations;
    size_t host; /* pinned, for adapters */
} lk_engine_memory;
lk_status lk_engine_plan(const lk_model *model, const lk_engine_options *options, lk_engine_memory *memory, lk_error *err);

lk_status lk_engine_start(lk_engine **engine, lk_model *model, const lk_engine_options *options, lk_error *err);
void lk_engine_stop(lk_engine *engine); /* NULL is fine */

/* Before the first request, once the adapters that are known are loaded: where the backend records steps, the first of each size would cost
 * its request some milliseconds; this computes them beforehand, for the base and for the adapters in memory, bounded in number and time
 * (serve/warm.c). Takes nothing that stays. Does nothing on other backends. Returns when it is done. Adapters loaded from then on are
 * warmed up whenever the engine has nothing else to do. */
lk_status lk_engine_warm_up(lk_engine *engine, lk_error *err);

/* ------------------------------------------------------------------------------------------------ adapters */

/* Reads the folder in the calling thread, prepares it, then flips the alias name -> new version atomically between two iterations. The old
 * version stays until its last request has ended. replace false: LK_ERR_CONFLICT when the name is loaded. A name equal to the base's,
 * empty, or with '@', '/', control characters is LK_ERR_ARGUMENT. On any failure nothing changes. version (may be NULL): 1, 2, ... per
 * name. */
lk_status lk_engine_load_adapter(lk_engine *engine, const char *name, const char *path, bool replace, int64_t *version, lk_error *err);
lk_status lk_engine_unload_adapter(lk_engine *engine, const char *name, lk_error *err); /* requests in flight finish first */

typedef struct lk_adapter_info {
    char name[256], path[4096], digest[65];
    int64_t version;
    int32_t max_rank;
    int64_t bytes;            /* all of it: factors, gains, biases, tables */
    int64_t running, waiting; /* requests of this version */
    bool current;             /* the alias points here; false: an old version draining */
    bool resident;            /* in memory; false: put out to make room, its next request brings it back */
    bool in_host;             /* its bytes are in host memory: bringing it back is one upload */
    double loaded_unix;
} lk_adapter_info;
/* A copy of the registry in order of loading: current versions and old ones that still have requests; free(*list). */
lk_status lk_engine_list_adapters(lk_engine *engine, lk_adapter_info **list, int64_t *n, lk_error *err);

/* ------------------------------------------------------------------------------------------------ requests */

enum { LK_MAX_STOPS = 16, LK_MAX_BIAS = 300 };

typedef struct lk_request_spec {
    const char *adapter;   /* name, "name@version", or NULL: the base alone */
    const int32_t *prompt; /* tokens, copied */
    int64_t n_prompt;
    int64_t max_tokens; /* <= 0: as many as fit max_model_len */
    int64_t min_tokens;
    float temperature, top_p, min_p;
    int32_t top_k;
    float repetition_penalty, presence_penalty, frequency_penalty;
    uint64_t seed;      /* the whole randomness of the request */
    int32_t n_logprobs; /* -1: none, 0..20 alternatives */
    bool ignore_eos;
    const int32_t *stop_ids; /* besides the model's eos; copied */
    int32_t n_stop_ids;
    const int32_t *bias_ids;
    const float *bias;
    int32_t n_bias;
} lk_request_spec;

typedef enum lk_finish { LK_FINISH_NONE, LK_FINISH_STOP, LK_FINISH_LENGTH, LK_FINISH_CANCELLED, LK_FINISH_ERROR } lk_finish;

/* One generated token (finish NONE), or the end (token -1 and a finish): never both in one event. The stop token itself is not
 * reported as a token. */
typedef struct lk_event {
    int32_t token; /* -1: no token in this event */
    float logprob;
    int32_t n_top;
    int32_t top_ids[LK_MAX_LOGPROBS];
    float top_logprobs[LK_MAX_LOGPROBS];
    lk_finish finish; /* NONE: more to come */
    lk_error error;   /* finish ERROR */
} lk_event;

/* No adapter, greedy, every penalty off, no logprobs; prompt and max_tokens are yours to set. */
void lk_request_spec_default(lk_request_spec *spec);

lk_status lk_engine_submit(lk_engine *engine, const lk_request_spec *spec, lk_request **request, lk_error *err);
/* Waits up to timeout_ms (-1: for ever) for the next event. false: timed out, nothing in *event. After an event with a finish no more come.
 */
bool lk_request_next(lk_request *request, int timeout_ms, lk_event *event);
/* The caller met a stop string: the engine ends the request as soon as it can (it may deliver a few tokens more; ignore them). */
void lk_request_cancel(lk_request *request);
void lk_request_release(lk_request *request);

typedef struct lk_request_facts {
    char adapter[256]; /* "" for the base */
    int64_t adapter_version;
    char adapter_digest[65];                 /* of the weights that answer */
    double queued_s, first_token_s, total_s; /* durations so far */
    int64_t n_prompt, n_output, n_preempted; /* n_output counts the stop token too, as vLLM's usage does */
} lk_request_facts;
void lk_request_get_facts(const lk_request *request, lk_request_facts *facts);

/* ------------------------------------------------------------------------------------------------ observation */

enum { LK_HISTOGRAM_BUCKETS = 14 };
typedef struct lk_histogram {
    int64_t counts[LK_HISTOGRAM_BUCKETS + 1]; /* not cumulative; bounds from lk_histogram_bounds; the last is +Inf */
    double sum;
} lk_histogram;
extern const double lk_histogram_bounds[LK_HISTOGRAM_BUCKETS]; /* seconds: 0.001 .. 60 */

/* A snapshot the engine publishes after every iteration; reading it takes no engine lock beyond a short copy. */
typedef struct lk_engine_stats {
    int64_t running, waiting;
    int32_t pages_total, pages_used, page_tokens; /* used: by sequences */
    int32_t pages_adapters;                       /* pages that hold adapters ... */
    int32_t pages_adapters_in_use;                /* ... and how many of them must stay, since requests use them */
    int64_t pages_moved;                          /* to make room for an adapter, ever */
    int64_t prompt_tokens, generated_tokens, preemptions, iterations;
    int64_t largest_batch; /* most requests that were ever in one forward */
    int64_t finished_stop, finished_length, finished_cancelled, finished_error, refused;
    int64_t adapter_loads, adapter_evictions;
    lk_histogram first_token, inter_token, end_to_end, queue;
} lk_engine_stats;
void lk_engine_get_stats(lk_engine *engine, lk_engine_stats *stats);
const lk_engine_options *lk_engine_get_options(const lk_engine *engine); /* with defaults resolved */
const lk_model *lk_engine_model(const lk_engine *engine);

#endif
