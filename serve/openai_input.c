#include "serve/openai_input.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

lk_status lk_openai_no_memory(lk_api_error *e) { return lk_api_fail(e, 503, NULL, "out of memory while reading the request"); }

static const char *keep(lk_openai_request *request, const char *text) { return lk_arena_strdup(&request->arena, text); }

/* ------------------------------------------------------------------------------------------------ messages */

/* Text parts only; the chat template gets them, or their text. */
static lk_status check_parts(const cJSON *parts, const char *where, lk_api_error *e)
{
    char param[128];
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
    }
    return i ? LK_OK : lk_api_fail(e, 400, where, "%s must not be an empty array", where);
}

static lk_status check_role(const cJSON *message, const char *where, lk_api_error *e)
{
    static const char *const roles[] = {"system", "developer", "user", "assistant", "tool"};
    const cJSON *item = lk_json_get(message, "role");
    char param[128];
    snprintf(param, sizeof param, "%s.role", where);
    if (!cJSON_IsString(item))
        return lk_api_fail(e, 400, param, "%s must be \"system\", \"developer\", \"user\", \"assistant\" or \"tool\"", param);
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (!strcmp(item->valuestring, roles[i])) return LK_OK;
    return lk_api_fail(e, 400, param, "%s: \"%.40s\" is not supported; use \"system\", \"developer\", \"user\", \"assistant\" or \"tool\"",
                       param, item->valuestring);
}

/* A tool call has a function with a name; its arguments are JSON text, as OpenAI has it, or an object. */
static lk_status check_calls(const cJSON *calls, const char *where, lk_api_error *e)
{
    char param[128];
    int i = 0;
    snprintf(param, sizeof param, "%s.tool_calls", where);
    if (!cJSON_IsArray(calls)) return lk_api_fail(e, 400, param, "%s must be an array", param);
    for (const cJSON *call = calls->child; call; call = call->next, i++) {
        const cJSON *function = lk_json_get(call, "function"), *arguments = lk_json_get(function, "arguments");
        snprintf(param, sizeof param, "%s.tool_calls[%d]", where, i);
        if (!cJSON_IsObject(call) || !cJSON_IsObject(function) || !cJSON_IsString(lk_json_get(function, "name")))
            return lk_api_fail(e, 400, param, "%s must be an object with a function and its name", param);
        if (arguments && !cJSON_IsString(arguments) && !cJSON_IsObject(arguments))
            return lk_api_fail(e, 400, param, "%s.function.arguments must be a string", param);
    }
    return LK_OK;
}

/* Shapes only: what else a message carries goes to the chat template as it is. */
static lk_status check_message(const cJSON *item, int index, lk_api_error *e)
{
    char where[64], param[128];
    snprintf(where, sizeof where, "messages[%d]", index);
    if (!cJSON_IsObject(item)) return lk_api_fail(e, 400, where, "%s must be an object", where);
    lk_status status = check_role(item, where, e);
    if (status) return status;
    const cJSON *content = lk_json_get(item, "content"), *calls = lk_json_get(item, "tool_calls");
    bool has_calls = calls && !cJSON_IsNull(calls) && !(cJSON_IsArray(calls) && !calls->child);
    if (has_calls && (status = check_calls(calls, where, e))) return status;
    snprintf(param, sizeof param, "%s.content", where);
    if (cJSON_IsArray(content)) return check_parts(content, param, e);
    if (cJSON_IsString(content) || (has_calls && (!content || cJSON_IsNull(content)))) return LK_OK;
    return lk_api_fail(e, 400, param, "%s must be a string or an array of text parts", param);
}

lk_status lk_openai_check_messages(const cJSON *item, lk_api_error *e)
{
    if (!cJSON_IsArray(item) || !item->child) return lk_api_fail(e, 400, "messages", "messages must be an array with at least one message");
    int n = cJSON_GetArraySize(item), i = 0;
    if (n > LK_OPENAI_MAX_MESSAGES)
        return lk_api_fail(e, 400, "messages", "messages has %d entries; at most %d are accepted", n, LK_OPENAI_MAX_MESSAGES);
    for (const cJSON *message = item->child; message; message = message->next, i++) {
        lk_status status = check_message(message, i, e);
        if (status) return status;
    }
    return LK_OK;
}

lk_status lk_openai_check_tools(const cJSON *item, lk_api_error *e)
{
    char param[64];
    int i = 0;
    if (!cJSON_IsArray(item)) return lk_api_fail(e, 400, "tools", "tools must be an array");
    for (const cJSON *tool = item->child; tool; tool = tool->next, i++) {
        const cJSON *type = lk_json_get(tool, "type");
        snprintf(param, sizeof param, "tools[%d]", i);
        if (!cJSON_IsObject(tool) || !cJSON_IsString(type) || strcmp(type->valuestring, "function"))
            return lk_api_fail(e, 400, param, "%s must be an object of \"type\": \"function\"", param);
        if (!cJSON_IsString(lk_json_get(lk_json_get(tool, "function"), "name")))
            return lk_api_fail(e, 400, param, "%s.function must be an object with a name", param);
    }
    return LK_OK;
}

lk_status lk_openai_check_documents(const cJSON *item, lk_api_error *e)
{
    int i = 0;
    if (!cJSON_IsArray(item)) return lk_api_fail(e, 400, "documents", "documents must be an array");
    for (const cJSON *one = item->child; one; one = one->next, i++)
        if (!cJSON_IsObject(one)) return lk_api_fail(e, 400, "documents", "documents[%d] must be an object", i);
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
