/* One table says for every known parameter where it may stand, what it must be and where it goes; a walk over the body's members looks
 * each up, so an unknown one cannot slip through. Rules between parameters come after. */
#include "serve/openai.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "serve/openai_input.h"

typedef struct reader {
    lk_openai_request *request;
    const lk_openai_limits *limits;
    lk_api_error *e;
    cJSON *root; /* the body, of which trees are taken */
    bool no_tools;
    int64_t max_completion_tokens, top_logprobs; /* -1: not given */
    int64_t n_tokens_asked;                      /* max_tokens; -1: not given */
    int64_t best_of;
} reader;

/* ------------------------------------------------------------------------------------------------ parameters with their own shape */

static lk_status take_model(reader *r, const cJSON *item)
{
    if (!cJSON_IsString(item) || !item->valuestring[0]) return lk_api_fail(r->e, 400, "model", "model must be a name");
    if (strlen(item->valuestring) > 512) return lk_api_fail(r->e, 400, "model", "model is longer than 512 bytes");
    r->request->model = lk_arena_strdup(&r->request->arena, item->valuestring);
    return r->request->model ? LK_OK : lk_openai_no_memory(r->e);
}

/* A part of the body, kept. */
static cJSON *keep(reader *r, const cJSON *item) { return cJSON_DetachItemViaPointer(r->root, (cJSON *)(uintptr_t)item); }

static lk_status take_messages(reader *r, const cJSON *item)
{
    lk_status status = lk_openai_check_messages(item, r->e);
    if (!status) r->request->messages = keep(r, item);
    return status;
}

static lk_status take_documents(reader *r, const cJSON *item)
{
    lk_status status = lk_openai_check_documents(item, r->e);
    if (!status && item->child) r->request->documents = keep(r, item);
    return status;
}

static lk_status take_variables(reader *r, const cJSON *item)
{
    if (!cJSON_IsObject(item)) return lk_api_fail(r->e, 400, item->string, "%s must be an object", item->string);
    r->request->variables = keep(r, item);
    return LK_OK;
}

static lk_status take_prompt(reader *r, const cJSON *item) { return lk_openai_take_prompt(r->request, item, r->limits->vocab, r->e); }

static lk_status take_tokens(reader *r, const cJSON *item)
{
    lk_openai_request *q = r->request;
    q->prompts = lk_arena_alloc(&q->arena, sizeof *q->prompts);
    if (!q->prompts) return lk_openai_no_memory(r->e);
    q->n_prompts = 1;
    return lk_openai_take_ids(q, item, "tokens", r->limits->vocab, &q->prompts[0].ids, &q->prompts[0].n_ids, r->e);
}

static lk_status take_stop(reader *r, const cJSON *item)
{
    lk_openai_request *q = r->request;
    if (!cJSON_IsString(item) && !cJSON_IsArray(item))
        return lk_api_fail(r->e, 400, "stop", "stop must be a string or an array of strings");
    for (const cJSON *one = cJSON_IsString(item) ? item : item->child; one; one = cJSON_IsString(item) ? NULL : one->next) {
        if (!cJSON_IsString(one)) return lk_api_fail(r->e, 400, "stop", "stop must be a string or an array of strings");
        size_t size = strlen(one->valuestring);
        if (size == 0) return lk_api_fail(r->e, 400, "stop", "stop must not contain an empty string");
        if (size > LK_OPENAI_MAX_STOP_BYTES)
            return lk_api_fail(r->e, 400, "stop", "a stop string has %zu bytes; at most %d are accepted", size, LK_OPENAI_MAX_STOP_BYTES);
        if (q->n_stops == LK_MAX_STOPS) return lk_api_fail(r->e, 400, "stop", "at most %d stop strings are accepted", LK_MAX_STOPS);
        const char *copy = lk_arena_strndup(&q->arena, one->valuestring, size);
        if (!copy) return lk_openai_no_memory(r->e);
        q->stops[q->n_stops++] = copy;
    }
    return LK_OK;
}

static lk_status take_stop_ids(reader *r, const cJSON *item)
{
    int32_t *ids = NULL;
    int64_t n = 0;
    lk_status status = lk_openai_take_ids(r->request, item, "stop_token_ids", r->limits->vocab, &ids, &n, r->e);
    if (status) return status;
    /* One place is kept for the chat's end-of-turn token. */
    if (n > LK_MAX_STOPS - 1) return lk_api_fail(r->e, 400, "stop_token_ids", "at most %d stop token ids are accepted", LK_MAX_STOPS - 1);
    r->request->sampling.stop_ids = ids;
    r->request->sampling.n_stop_ids = (int32_t)n;
    return LK_OK;
}

static lk_status take_bias(reader *r, const cJSON *item)
{
    lk_openai_request *q = r->request;
    if (!cJSON_IsObject(item)) return lk_api_fail(r->e, 400, "logit_bias", "logit_bias must be an object of token id to bias");
    int n = cJSON_GetArraySize(item), i = 0;
    if (n > LK_MAX_BIAS) return lk_api_fail(r->e, 400, "logit_bias", "logit_bias has %d entries; at most %d are accepted", n, LK_MAX_BIAS);
    int32_t *ids = lk_arena_alloc(&q->arena, (size_t)n * sizeof *ids);
    float *bias = lk_arena_alloc(&q->arena, (size_t)n * sizeof *bias);
    if (!ids || !bias) return lk_openai_no_memory(r->e);
    for (const cJSON *one = item->child; one; one = one->next, i++) {
        char *end;
        long id = one->string[0] >= '0' && one->string[0] <= '9' ? strtol(one->string, &end, 10) : -1;
        if (id < 0 || *end || id >= r->limits->vocab)
            return lk_api_fail(r->e, 400, "logit_bias", "logit_bias: \"%.40s\" is not a token id from 0 to %lld", one->string,
                               (long long)r->limits->vocab - 1);
        if (!cJSON_IsNumber(one) || !(one->valuedouble >= -100 && one->valuedouble <= 100))
            return lk_api_fail(r->e, 400, "logit_bias", "logit_bias[\"%ld\"] must be a number from -100 to 100", id);
        ids[i] = (int32_t)id;
        bias[i] = (float)one->valuedouble;
    }
    q->sampling.bias_ids = ids;
    q->sampling.bias = bias;
    q->sampling.n_bias = n;
    return LK_OK;
}

static lk_status take_seed(reader *r, const cJSON *item)
{
    double limit = 9007199254740992.0; /* 2^53: a JSON number is a double, beyond it neighbours become the same seed */
    if (!cJSON_IsNumber(item) || item->valuedouble != floor(item->valuedouble) || fabs(item->valuedouble) > limit)
        return lk_api_fail(r->e, 400, "seed", "seed must be a whole number from -2^53 to 2^53");
    r->request->sampling.seed = (uint64_t)(int64_t)item->valuedouble;
    r->request->has_seed = true;
    return LK_OK;
}

static lk_status take_stream_options(reader *r, const cJSON *item)
{
    if (!cJSON_IsObject(item)) return lk_api_fail(r->e, 400, "stream_options", "stream_options must be an object");
    for (const cJSON *one = item->child; one; one = one->next) {
        bool known = !strcmp(one->string, "include_usage");
        /* include_obfuscation asks for padding against traffic analysis; a client that turns it off gets what it wants. */
        if (!known && !strcmp(one->string, "include_obfuscation") && (cJSON_IsFalse(one) || cJSON_IsNull(one))) continue;
        if (!known) return lk_api_fail(r->e, 400, "stream_options", "stream_options.%.60s is not supported", one->string);
        if (cJSON_IsNull(one)) continue;
        if (!cJSON_IsBool(one)) return lk_api_fail(r->e, 400, "stream_options", "stream_options.include_usage must be true or false");
        r->request->include_usage = cJSON_IsTrue(one);
    }
    return LK_OK;
}

static lk_status take_response_format(reader *r, const cJSON *item)
{
    const cJSON *type = lk_json_get(item, "type");
    if (cJSON_IsString(type) && !strcmp(type->valuestring, "text")) return LK_OK;
    return lk_api_fail(r->e, 400, "response_format", "response_format other than {\"type\":\"text\"} is not supported");
}

static lk_status take_tools(reader *r, const cJSON *item)
{
    lk_status status = lk_openai_check_tools(item, r->e);
    if (!status && item->child) r->request->tools = keep(r, item);
    return status;
}

static lk_status refuse_list(reader *r, const cJSON *item)
{
    if (cJSON_IsArray(item) && !item->child) return LK_OK;
    return lk_api_fail(r->e, 400, item->string, "%s is not supported; use tools", item->string);
}

/* The tools are shown to the model, and what it writes comes back as text or as calls (tool_calls.h): nothing here could enforce a call. */
static lk_status take_tool_choice(reader *r, const cJSON *item)
{
    bool none = cJSON_IsString(item) && !strcmp(item->valuestring, "none");
    if (!none && !(cJSON_IsString(item) && !strcmp(item->valuestring, "auto")))
        return lk_api_fail(r->e, 400, item->string, "%s: a call cannot be forced: not supported; only \"none\" and \"auto\" are",
                           item->string);
    r->no_tools |= none && !strcmp(item->string, "tool_choice");
    return LK_OK;
}

static lk_status take_parallel_calls(reader *r, const cJSON *item)
{
    if (!cJSON_IsBool(item)) return lk_api_fail(r->e, 400, item->string, "%s must be true or false", item->string);
    r->request->one_tool_call = cJSON_IsFalse(item);
    return LK_OK;
}

static lk_status take_modalities(reader *r, const cJSON *item)
{
    if (cJSON_GetArraySize(item) == 1 && cJSON_IsString(item->child) && !strcmp(item->child->valuestring, "text")) return LK_OK;
    return lk_api_fail(r->e, 400, "modalities", "modalities other than [\"text\"] are not supported");
}

static lk_status take_suffix(reader *r, const cJSON *item)
{
    if (cJSON_IsString(item) && !item->valuestring[0]) return LK_OK;
    return lk_api_fail(r->e, 400, "suffix", "suffix is not supported: this server completes, it does not insert");
}

static lk_status refuse_true(reader *r, const cJSON *item)
{
    if (cJSON_IsFalse(item)) return LK_OK;
    return lk_api_fail(r->e, 400, item->string, "%s is not supported; leave it out or send false", item->string);
}

static lk_status refuse(reader *r, const cJSON *item) { return lk_api_fail(r->e, 400, item->string, "%s is not supported", item->string); }

static lk_status ignore(reader *r, const cJSON *item)
{
    (void)r, (void)item;
    return LK_OK;
}

static lk_status take_logprobs_flag(reader *r, const cJSON *item)
{
    if (!cJSON_IsBool(item)) return lk_api_fail(r->e, 400, "logprobs", "logprobs must be true or false");
    r->request->logprobs = cJSON_IsTrue(item);
    return LK_OK;
}

static lk_status take_logprobs_count(reader *r, const cJSON *item)
{
    double value = cJSON_IsNumber(item) ? item->valuedouble : -1;
    if (!(value >= 0 && value <= LK_MAX_LOGPROBS) || value != floor(value))
        return lk_api_fail(r->e, 400, "logprobs", "logprobs must be a whole number from 0 to %d", LK_MAX_LOGPROBS);
    r->request->logprobs = true;
    r->top_logprobs = (int64_t)value;
    return LK_OK;
}

/* ------------------------------------------------------------------------------------------------ the table */

enum { CHAT = 1 << LK_OPENAI_CHAT, TEXT = 1 << LK_OPENAI_COMPLETION, TOK = 1 << LK_OPENAI_TOKENIZE, DETOK = 1 << LK_OPENAI_DETOKENIZE };
enum { GEN = CHAT | TEXT, ANY = CHAT | TEXT | TOK | DETOK };

typedef enum target_type { TO_TAKER, TO_FLOAT, TO_INT32, TO_INT64, TO_BOOL, TO_READER_INT64 } target_type;

typedef struct parameter {
    const char *name;
    int where;
    target_type type;
    size_t offset; /* in lk_openai_request; TO_READER_INT64: in reader */
    double min, max;
    lk_status (*take)(reader *r, const cJSON *item);
} parameter;

#define FIELD(member) offsetof(lk_openai_request, member)
#define HERE(member)  offsetof(reader, member)

static const parameter parameters[] = {
    {"model", ANY, .take = take_model},
    {"messages", CHAT | TOK, .take = take_messages},
    {"prompt", TEXT | TOK, .take = take_prompt},
    {"tokens", DETOK, .take = take_tokens},
    {"max_tokens", GEN, TO_READER_INT64, HERE(n_tokens_asked), 1, 1 << 30},
    {"max_completion_tokens", CHAT, TO_READER_INT64, HERE(max_completion_tokens), 1, 1 << 30},
    {"min_tokens", GEN, TO_INT64, FIELD(sampling.min_tokens), 0, 1 << 30},
    {"temperature", GEN, TO_FLOAT, FIELD(sampling.temperature), 0, 2},
    {"top_p", GEN, TO_FLOAT, FIELD(sampling.top_p), 0, 1},
    {"min_p", GEN, TO_FLOAT, FIELD(sampling.min_p), 0, 1},
    {"top_k", GEN, TO_INT32, FIELD(sampling.top_k), -1, 1 << 30},
    {"repetition_penalty", GEN, TO_FLOAT, FIELD(sampling.repetition_penalty), 0.01, 100},
    {"presence_penalty", GEN, TO_FLOAT, FIELD(sampling.presence_penalty), -2, 2},
    {"frequency_penalty", GEN, TO_FLOAT, FIELD(sampling.frequency_penalty), -2, 2},
    {"seed", GEN, .take = take_seed},
    {"n", GEN, TO_INT32, FIELD(n), 1, LK_OPENAI_MAX_N},
    {"stop", GEN, .take = take_stop},
    {"stop_token_ids", GEN, .take = take_stop_ids},
    {"ignore_eos", GEN, TO_BOOL, FIELD(sampling.ignore_eos)},
    {"logit_bias", GEN, .take = take_bias},
    {"stream", GEN, TO_BOOL, FIELD(stream)},
    {"stream_options", GEN, .take = take_stream_options},
    {"logprobs", CHAT, .take = take_logprobs_flag},
    {"top_logprobs", CHAT, TO_READER_INT64, HERE(top_logprobs), 0, LK_MAX_LOGPROBS},
    {"logprobs", TEXT, .take = take_logprobs_count},
    {"skip_special_tokens", GEN, TO_BOOL, FIELD(skip_special_tokens)},
    {"add_special_tokens", TEXT | TOK, TO_BOOL, FIELD(add_special_tokens)},
    {"add_generation_prompt", TOK, TO_BOOL, FIELD(generation_prompt)},
    {"return_token_strs", TOK, TO_BOOL, FIELD(token_strings)},
    {"response_format", GEN, .take = take_response_format},
    {"tools", CHAT | TOK, .take = take_tools},
    {"documents", CHAT | TOK, .take = take_documents},
    {"chat_template_kwargs", CHAT | TOK, .take = take_variables},
    {"functions", CHAT, .take = refuse_list},
    {"tool_choice", CHAT, .take = take_tool_choice},
    {"function_call", CHAT, .take = take_tool_choice},
    {"modalities", CHAT, .take = take_modalities},
    {"suffix", TEXT, .take = take_suffix},
    {"echo", GEN, .take = refuse_true},
    {"best_of", TEXT, TO_READER_INT64, HERE(best_of), 1, 1 << 30},
    {"include_stop_str_in_output", GEN, .take = refuse_true},
    {"use_beam_search", GEN, .take = refuse_true},
    {"prompt_logprobs", GEN, .take = refuse},
    {"reasoning_effort", CHAT, .take = refuse},
    {"audio", CHAT, .take = refuse},
    {"user", GEN, .take = ignore},
    {"metadata", GEN, .take = ignore},
    {"store", GEN, .take = ignore},
    {"service_tier", GEN, .take = ignore},
    {"safety_identifier", GEN, .take = ignore},
    {"prompt_cache_key", GEN, .take = ignore},
    {"prompt_cache_retention", GEN, .take = ignore},
    {"parallel_tool_calls", GEN, .take = take_parallel_calls},
    {"request_id", GEN, .take = ignore},
};

static const parameter *find(const char *name, lk_openai_kind kind)
{
    for (size_t i = 0; i < sizeof parameters / sizeof *parameters; i++)
        if ((parameters[i].where & 1 << kind) && !strcmp(parameters[i].name, name)) return &parameters[i];
    return NULL;
}

static lk_status take_number(reader *r, const parameter *p, const cJSON *item)
{
    bool whole = p->type != TO_FLOAT;
    double value = item->valuedouble;
    if (!cJSON_IsNumber(item) || (whole && value != floor(value)))
        return lk_api_fail(r->e, 400, p->name, "%s must be a %snumber", p->name, whole ? "whole " : "");
    if (!(value >= p->min && value <= p->max))
        return lk_api_fail(r->e, 400, p->name, "%s must be from %.10g to %.10g, not %.10g", p->name, p->min, p->max, value);
    char *base = p->type == TO_READER_INT64 ? (char *)r : (char *)r->request;
    if (p->type == TO_FLOAT)
        *(float *)(void *)(base + p->offset) = (float)value;
    else if (p->type == TO_INT32)
        *(int32_t *)(void *)(base + p->offset) = (int32_t)value;
    else
        *(int64_t *)(void *)(base + p->offset) = (int64_t)value;
    return LK_OK;
}

static lk_status take(reader *r, const cJSON *item)
{
    if (cJSON_IsNull(item)) return LK_OK;
    const parameter *p = find(item->string, r->request->kind);
    if (!p) return lk_api_fail(r->e, 400, item->string, "%.100s is not a parameter this server knows here; leave it out", item->string);
    if (p->type == TO_TAKER) return p->take(r, item);
    if (p->type != TO_BOOL) return take_number(r, p, item);
    if (!cJSON_IsBool(item)) return lk_api_fail(r->e, 400, p->name, "%s must be true or false", p->name);
    *(bool *)(void *)((char *)r->request + p->offset) = cJSON_IsTrue(item);
    return LK_OK;
}

/* ------------------------------------------------------------------------------------------------ rules between parameters */

static lk_status check_lengths(reader *r)
{
    lk_openai_request *q = r->request;
    if (r->n_tokens_asked >= 0 && r->max_completion_tokens >= 0 && r->n_tokens_asked != r->max_completion_tokens)
        return lk_api_fail(r->e, 400, "max_tokens", "max_tokens and max_completion_tokens differ; give one of them");
    int64_t asked = r->n_tokens_asked >= 0 ? r->n_tokens_asked : r->max_completion_tokens;
    if (asked < 0) asked = q->kind == LK_OPENAI_COMPLETION ? 16 : 0; /* OpenAI's defaults */
    q->sampling.max_tokens = asked;
    if (asked > 0 && q->sampling.min_tokens > asked)
        return lk_api_fail(r->e, 400, "min_tokens", "min_tokens (%lld) is larger than max_tokens (%lld)", (long long)q->sampling.min_tokens,
                           (long long)asked);
    return LK_OK;
}

static lk_status check_generation(reader *r)
{
    lk_openai_request *q = r->request;
    lk_status status = check_lengths(r);
    if (status) return status;
    if (q->kind == LK_OPENAI_CHAT && r->top_logprobs > 0 && !q->logprobs)
        return lk_api_fail(r->e, 400, "top_logprobs", "top_logprobs needs \"logprobs\": true");
    q->sampling.n_logprobs = !q->logprobs ? -1 : r->top_logprobs > 0 ? (int32_t)r->top_logprobs : 0;
    if (q->sampling.top_k < 0) q->sampling.top_k = 0; /* vLLM's and llama.cpp's two ways to say "all" */
    if (r->best_of > 0 && r->best_of != q->n)
        return lk_api_fail(r->e, 400, "best_of", "best_of is not supported; leave it out or make it equal to n");
    if (q->include_usage && !q->stream) return lk_api_fail(r->e, 400, "stream_options", "stream_options needs \"stream\": true");
    if (q->n_prompts * q->n > LK_OPENAI_MAX_CHOICES)
        return lk_api_fail(r->e, 400, "n", "%lld prompts times n = %d are more than %d choices", (long long)q->n_prompts, q->n,
                           LK_OPENAI_MAX_CHOICES);
    return LK_OK;
}

static lk_status check(reader *r)
{
    lk_openai_request *q = r->request;
    bool generates = q->kind == LK_OPENAI_CHAT || q->kind == LK_OPENAI_COMPLETION;
    if (generates && !q->model) return lk_api_fail(r->e, 400, "model", "model is missing: the name of the base or of an adapter");
    if (q->kind == LK_OPENAI_CHAT && !q->messages) return lk_api_fail(r->e, 400, "messages", "messages is missing");
    if (q->kind == LK_OPENAI_COMPLETION && !q->n_prompts) return lk_api_fail(r->e, 400, "prompt", "prompt is missing");
    if (q->kind == LK_OPENAI_DETOKENIZE && !q->n_prompts) return lk_api_fail(r->e, 400, "tokens", "tokens is missing");
    if (q->kind == LK_OPENAI_TOKENIZE) {
        if (!q->n_prompts == !q->messages) return lk_api_fail(r->e, 400, "prompt", "give either prompt or messages");
        if (q->n_prompts > 1) return lk_api_fail(r->e, 400, "prompt", "prompt must be one string");
        if (q->n_prompts && !q->prompts[0].text) return lk_api_fail(r->e, 400, "prompt", "prompt must be a string");
    }
    return generates ? check_generation(r) : LK_OK;
}

/* Every value but the first of an array or object follows a comma or an opening bracket, so counting these bounds the size of the tree
 * before it is built. */
static bool too_many_values(const char *body, size_t size)
{
    int64_t n = 0;
    bool in_string = false;
    for (size_t i = 0; i < size; i++) {
        if (in_string && body[i] == '\\')
            i++;
        else if (body[i] == '"')
            in_string = !in_string;
        else if (!in_string && (body[i] == ',' || body[i] == '[' || body[i] == '{'))
            n++;
    }
    return n > LK_OPENAI_MAX_VALUES;
}

static void set_defaults(lk_openai_request *q, lk_openai_kind kind)
{
    *q = (lk_openai_request){.kind = kind, .n = 1, .add_special_tokens = true, .skip_special_tokens = true, .generation_prompt = true};
    q->sampling = (lk_request_spec){.temperature = 1.0f, .top_p = 1.0f, .repetition_penalty = 1.0f, .n_logprobs = -1};
}

lk_status lk_openai_parse(lk_openai_request *request, lk_openai_kind kind, const char *body, size_t size, const lk_openai_limits *limits,
                          lk_api_error *e)
{
    set_defaults(request, kind);
    if (size == 0) return lk_api_fail(e, 400, NULL, "the request body is empty; JSON expected");
    if (too_many_values(body, size)) return lk_api_fail(e, 400, NULL, "the request body holds more than %d values", LK_OPENAI_MAX_VALUES);
    lk_error err = {0};
    cJSON *root;
    if (lk_json_parse(&root, body, size, "request body", &err)) return lk_api_fail_from(e, &err, NULL);
    reader r = {request, limits, e, root, false, -1, -1, -1, -1};
    lk_status status = cJSON_IsObject(root) ? LK_OK : lk_api_fail(e, 400, NULL, "request body: must be a JSON object");
    if (!status && lk_json_keep_numbers(root, body, size, &err)) status = lk_api_fail_from(e, &err, NULL);
    for (const cJSON *item = root->child, *next; item && !status; item = next) {
        next = item->next; /* item may be taken out */
        status = take(&r, item);
    }
    if (!status) status = check(&r);
    if (!status && r.no_tools) {
        cJSON_Delete(request->tools);
        request->tools = NULL;
    }
    cJSON_Delete(root);
    if (status) lk_openai_request_free(request);
    return status;
}

void lk_openai_request_free(lk_openai_request *request)
{
    cJSON_Delete(request->messages);
    cJSON_Delete(request->tools);
    cJSON_Delete(request->documents);
    cJSON_Delete(request->variables);
    lk_arena_free(&request->arena);
    *request = (lk_openai_request){.kind = request->kind};
}
