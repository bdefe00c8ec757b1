#include "serve/openai_input.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

lk_status lk_openai_no_memory(lk_api_error *e) { return lk_api_fail(e, 503, NULL, "out of memory while reading the request"); }

static const char *keep(lk_openai_request *request, const char *text) { return lk_arena_strdup(&request->arena, text); }

/* ------------------------------------------------------------------------------------------------ messages */

/* [{"type":"text","text":"..."}, ...] joined by newlines, as vLLM does for templates that take text. */
static lk_status join_parts(lk_openai_request *request, const cJSON *parts, const char *where, const char **out, lk_api_error *e)
{
    char param[128];
    size_t total = 1;
    int i = 0;
    for (const cJSON *part = parts->child; part; part = part->next, i++) {
        const cJSON *type = lk_json_get(part, "type"), *text = lk_json_get(part, "text");
        snprintf(param, sizeof param, "%s[%d]", where, i);
        if (!cJSON_IsObject(part) || !cJSON_IsString(type))
            return lk_api_fail(e, 400, param, "%s must be an object with a \"type\"", param);
        if (strcmp(type->valuestring, "text"))
            return lk_api_fail(e, 400, param, "%s: content of type \"%.40s\" is not supported; this model reads text", param,
                               type->valuestring);
        if (!cJSON_IsString(text)) return lk_api_fail(e, 400, param, "%s.text must be a string", param);
        total += strlen(text->valuestring) + 1;
    }
    if (i == 0) return lk_api_fail(e, 400, where, "%s must not be an empty array", where);
    char *joined = lk_arena_alloc(&request->arena, total), *at = joined;
    if (!joined) return lk_openai_no_memory(e);
    for (const cJSON *part = parts->child; part; part = part->next) {
        const char *text = lk_json_get(part, "text")->valuestring;
        size_t size = strlen(text);
        if (at != joined) *at++ = '\n';
        memcpy(at, text, size);
        at += size;
    }
    *at = 0;
    *out = joined;
    return LK_OK;
}

static bool is_blank(const cJSON *item) { return cJSON_IsNull(item) || (cJSON_IsArray(item) && !item->child); }

/* role and content count. Clients send a whole reply back as a message, so its empty fields are welcome; name, which no known
 * template renders, and annotations are ignored. */
static lk_status take_role(const cJSON *message, const char *where, const char **role, lk_api_error *e)
{
    char param[128];
    for (const cJSON *field = message->child; field; field = field->next) {
        const char *key = field->string;
        if (!strcmp(key, "role") || !strcmp(key, "content") || !strcmp(key, "name") || !strcmp(key, "annotations") || is_blank(field))
            continue;
        snprintf(param, sizeof param, "%s.%.60s", where, key);
        return lk_api_fail(e, 400, param, "%s is not supported: a message has a role and a text content", param);
    }
    const cJSON *item = lk_json_get(message, "role");
    snprintf(param, sizeof param, "%s.role", where);
    if (!cJSON_IsString(item)) return lk_api_fail(e, 400, param, "%s must be \"system\", \"user\" or \"assistant\"", param);
    const char *text = item->valuestring;
    if (!strcmp(text, "system") || !strcmp(text, "developer"))
        *role = "system"; /* OpenAI's newer word for it */
    else if (!strcmp(text, "user"))
        *role = "user";
    else if (!strcmp(text, "assistant"))
        *role = "assistant";
    else
        return lk_api_fail(e, 400, param, "%s: \"%.40s\" is not supported; use \"system\", \"user\" or \"assistant\"", param, text);
    return LK_OK;
}

static lk_status take_message(lk_openai_request *request, const cJSON *item, int index, lk_chat_message *message, lk_api_error *e)
{
    char where[64], param[128];
    snprintf(where, sizeof where, "messages[%d]", index);
    if (!cJSON_IsObject(item)) return lk_api_fail(e, 400, where, "%s must be an object", where);
    lk_status status = take_role(item, where, &message->role, e);
    if (status) return status;
    const cJSON *content = lk_json_get(item, "content");
    snprintf(param, sizeof param, "%s.content", where);
    if (cJSON_IsArray(content)) return join_parts(request, content, param, &message->content, e);
    if (!cJSON_IsString(content)) return lk_api_fail(e, 400, param, "%s must be a string or an array of text parts", param);
    message->content = keep(request, content->valuestring);
    return message->content ? LK_OK : lk_openai_no_memory(e);
}

lk_status lk_openai_take_messages(lk_openai_request *request, const cJSON *item, lk_api_error *e)
{
    if (!cJSON_IsArray(item) || !item->child) return lk_api_fail(e, 400, "messages", "messages must be an array with at least one message");
    int n = cJSON_GetArraySize(item), i = 0;
    if (n > LK_OPENAI_MAX_MESSAGES)
        return lk_api_fail(e, 400, "messages", "messages has %d entries; at most %d are accepted", n, LK_OPENAI_MAX_MESSAGES);
    request->messages = lk_arena_alloc(&request->arena, (size_t)n * sizeof *request->messages);
    if (!request->messages) return lk_openai_no_memory(e);
    for (const cJSON *message = item->child; message; message = message->next, i++) {
        lk_status status = take_message(request, message, i, &request->messages[i], e);
        if (status) return status;
    }
    request->n_messages = n;
    return LK_OK;
}

/* ------------------------------------------------------------------------------------------------ prompts */

lk_status lk_openai_take_ids(lk_openai_request *request, const cJSON *array, const char *param, int64_t vocab, int32_t **ids, int64_t *n,
                             lk_api_error *e)
{
    if (!cJSON_IsArray(array)) return lk_api_fail(e, 400, param, "%s must be an array of token ids", param);
    int64_t count = cJSON_GetArraySize(array), i = 0;
    int32_t *out = lk_arena_alloc(&request->arena, (size_t)count * sizeof *out);
    if (!out) return lk_openai_no_memory(e);
    for (const cJSON *item = array->child; item; item = item->next, i++) {
        double value = cJSON_IsNumber(item) ? item->valuedouble : -1.0;
        if (!(value >= 0 && value < (double)vocab) || value != floor(value))
            return lk_api_fail(e, 400, param, "%s[%lld] must be a token id from 0 to %lld", param, (long long)i, (long long)vocab - 1);
        out[i] = (int32_t)value;
    }
    *ids = out;
    *n = count;
    return LK_OK;
}

static lk_status take_one(lk_openai_request *request, const cJSON *item, const char *param, int64_t vocab, lk_openai_prompt *prompt,
                          lk_api_error *e)
{
    if (!cJSON_IsString(item)) {
        lk_status status = lk_openai_take_ids(request, item, param, vocab, &prompt->ids, &prompt->n_ids, e);
        if (!status && prompt->n_ids == 0) status = lk_api_fail(e, 400, param, "%s is an empty array", param);
        return status;
    }
    prompt->size = strlen(item->valuestring);
    prompt->text = keep(request, item->valuestring);
    return prompt->text ? LK_OK : lk_openai_no_memory(e);
}

lk_status lk_openai_take_prompt(lk_openai_request *request, const cJSON *item, int64_t vocab, lk_api_error *e)
{
    static const char shape[] = "prompt must be a string, an array of strings, an array of token ids or an array of such arrays";
    const cJSON *first = cJSON_IsArray(item) ? item->child : NULL;
    if (!cJSON_IsString(item) && !first) return lk_api_fail(e, 400, "prompt", "%s", shape);
    bool many = cJSON_IsString(first) || cJSON_IsArray(first);
    int n = many ? cJSON_GetArraySize(item) : 1, i = 0;
    if (n > LK_OPENAI_MAX_CHOICES)
        return lk_api_fail(e, 400, "prompt", "prompt has %d entries; at most %d are accepted", n, LK_OPENAI_MAX_CHOICES);
    request->prompts = lk_arena_alloc(&request->arena, (size_t)n * sizeof *request->prompts);
    if (!request->prompts) return lk_openai_no_memory(e);
    request->n_prompts = n;
    if (!many) return take_one(request, item, "prompt", vocab, &request->prompts[0], e);
    for (const cJSON *one = first; one; one = one->next, i++) {
        char param[64];
        snprintf(param, sizeof param, "prompt[%d]", i);
        if (one->type != first->type && (!cJSON_IsString(one) || !cJSON_IsString(first))) return lk_api_fail(e, 400, param, "%s", shape);
        lk_status status = take_one(request, one, param, vocab, &request->prompts[i], e);
        if (status) return status;
    }
    return LK_OK;
}
