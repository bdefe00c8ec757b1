/* Refusing early is kinder than failing late: a request that passes here can always be finished, if need be alone. */
#include "serve/request_check.h"

#include <math.h>

static lk_status check_ids(const char *what, const int32_t *ids, int64_t n, int64_t vocab, lk_error *err)
{
    if (n > 0 && !ids) return lk_fail(err, LK_ERR_ARGUMENT, "%s: %lld ids announced, none given", what, (long long)n);
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return lk_fail(err, LK_ERR_ARGUMENT, "%s[%lld] is token %d; this model has tokens 0 to %lld", what, (long long)i, ids[i],
                           (long long)vocab - 1);
    return LK_OK;
}

/* Written so that NaN fails too. */
static lk_status check_range(const char *what, double value, double least, double most, lk_error *err)
{
    if (value >= least && value <= most) return LK_OK;
    return lk_fail(err, LK_ERR_ARGUMENT, "%s is %g; it must be from %g to %g", what, value, least, most);
}

static lk_status check_lists(const lk_request_spec *spec, int64_t vocab, lk_error *err)
{
    if (spec->n_stop_ids < 0 || spec->n_stop_ids > LK_MAX_STOPS)
        return lk_fail(err, LK_ERR_ARGUMENT, "%d stop tokens; at most %d", spec->n_stop_ids, LK_MAX_STOPS);
    if (spec->n_bias < 0 || spec->n_bias > LK_MAX_BIAS)
        return lk_fail(err, LK_ERR_ARGUMENT, "a logit bias for %d tokens; at most %d", spec->n_bias, LK_MAX_BIAS);
    if (spec->n_bias && !spec->bias) return lk_fail(err, LK_ERR_ARGUMENT, "logit bias: ids without values");
    LK_TRY(check_ids("stop token", spec->stop_ids, spec->n_stop_ids, vocab, err));
    LK_TRY(check_ids("logit bias", spec->bias_ids, spec->n_bias, vocab, err));
    for (int i = 0; i < spec->n_bias; i++) LK_TRY(check_range("logit bias", spec->bias[i], -100, 100, err));
    return LK_OK;
}

static lk_status check_sampling(const lk_request_spec *spec, lk_error *err)
{
    LK_TRY(check_range("temperature", spec->temperature, 0, 100, err));
    LK_TRY(check_range("top_p", spec->top_p, 0, 1, err));
    LK_TRY(check_range("min_p", spec->min_p, 0, 1, err));
    LK_TRY(check_range("top_k", spec->top_k, 0, INT32_MAX, err));
    LK_TRY(check_range("repetition_penalty", spec->repetition_penalty, 0.01, 100, err));
    LK_TRY(check_range("presence_penalty", spec->presence_penalty, -100, 100, err));
    LK_TRY(check_range("frequency_penalty", spec->frequency_penalty, -100, 100, err));
    return check_range("logprobs", spec->n_logprobs, -1, LK_MAX_LOGPROBS, err);
}

/* The last token generated is never fed back, so n tokens of prompt and output take n - 1 positions of the cache. */
static lk_status check_length(const lk_request_spec *spec, const lk_request_limits *limits, int64_t *max_tokens, lk_error *err)
{
    int64_t n_prompt = spec->n_prompt, limit = limits->max_model_len;
    if (n_prompt < 1) return lk_fail(err, LK_ERR_ARGUMENT, "the prompt is empty; it needs at least one token");
    if (n_prompt >= limit)
        return lk_fail(err, LK_ERR_ARGUMENT,
                       "the prompt has %lld tokens and max_model_len is %lld, which must hold prompt and output: shorten the prompt, or "
                       "start the server "
                       "with a larger --max-model-len",
                       (long long)n_prompt, (long long)limit);
    if (n_prompt > limits->kv_tokens)
        return lk_fail(
            err, LK_ERR_ARGUMENT,
            "the prompt has %lld tokens and the whole KV cache holds %lld: shorten the prompt, or start the server with more --kv-memory",
            (long long)n_prompt, (long long)limits->kv_tokens);
    if (spec->max_tokens <= 0) {
        int64_t fits = limit < limits->kv_tokens + 1 ? limit : limits->kv_tokens + 1;
        *max_tokens = fits - n_prompt;
        return LK_OK;
    }
    *max_tokens = spec->max_tokens;
    if (spec->max_tokens > limit - n_prompt)
        return lk_fail(err, LK_ERR_ARGUMENT,
                       "the prompt has %lld tokens and max_tokens asks for %lld, together more than max_model_len %lld: ask for at most "
                       "%lld, shorten the "
                       "prompt, or start the server with a larger --max-model-len",
                       (long long)n_prompt, (long long)spec->max_tokens, (long long)limit, (long long)(limit - n_prompt));
    if (spec->max_tokens - 1 > limits->kv_tokens - n_prompt)
        return lk_fail(err, LK_ERR_ARGUMENT,
                       "the prompt has %lld tokens and max_tokens asks for %lld, together more than the %lld positions of the whole KV "
                       "cache: ask for at "
                       "most %lld, or start the server with more --kv-memory",
                       (long long)n_prompt, (long long)spec->max_tokens, (long long)limits->kv_tokens,
                       (long long)(limits->kv_tokens - n_prompt + 1));
    return LK_OK;
}

lk_status lk_request_check(const lk_request_spec *spec, const lk_request_limits *limits, int64_t *max_tokens, lk_error *err)
{
    LK_TRY(check_length(spec, limits, max_tokens, err));
    LK_TRY(check_ids("prompt", spec->prompt, spec->n_prompt, limits->config->vocab, err));
    if (spec->min_tokens < 0 || spec->min_tokens > *max_tokens)
        return lk_fail(err, LK_ERR_ARGUMENT, "min_tokens is %lld; it must be from 0 to max_tokens, which is %lld",
                       (long long)spec->min_tokens, (long long)*max_tokens);
    LK_TRY(check_lists(spec, limits->config->vocab, err));
    return check_sampling(spec, err);
}
