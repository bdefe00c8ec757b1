/* Messages as people and clients write them, made what templates expect. What transformers itself does (reasoning under several names) is
 * done as there; the rest is what vLLM does before it renders, so that one template serves both kinds of clients. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "data/chat/internal.h"

static lk_status no_memory(lk_error *err) { return lk_fail(err, LK_ERR_MEMORY, "chat: no memory for the messages"); }

/* Replaces or adds; takes value over. */
static lk_status set(cJSON *object, const char *key, cJSON *value, lk_error *err)
{
    bool there = lk_json_get(object, key) != NULL;
    if (value && (there ? cJSON_ReplaceItemInObjectCaseSensitive(object, key, value) : cJSON_AddItemToObject(object, key, value)))
        return LK_OK;
    cJSON_Delete(value);
    return no_memory(err);
}

/* [{"type":"text","text":"..."}, ...]: checked, and joined by newlines where the template wants text. */
static lk_status prepare_parts(const lk_chat *chat, cJSON *message, const cJSON *parts, const char *where, lk_error *err)
{
    size_t total = 1;
    int i = 0;
    for (const cJSON *part = parts->child; part; part = part->next, i++) {
        const cJSON *type = lk_json_get(part, "type"), *text = lk_json_get(part, "text");
        if (!cJSON_IsObject(part) || !cJSON_IsString(type))
            return lk_fail(err, LK_ERR_ARGUMENT, "%s.content[%d] must be an object with a \"type\"", where, i);
        if (strcmp(type->valuestring, "text"))
            return lk_fail(err, LK_ERR_UNSUPPORTED, "%s.content[%d]: content of type \"%.40s\" is not supported; this model reads text",
                           where, i, type->valuestring);
        if (!cJSON_IsString(text)) return lk_fail(err, LK_ERR_ARGUMENT, "%s.content[%d].text must be a string", where, i);
        total += strlen(text->valuestring) + 1;
    }
    if (i == 0) return lk_fail(err, LK_ERR_ARGUMENT, "%s.content must not be an empty array", where);
    if (chat->takes_parts) return LK_OK;
    char *joined = malloc(total), *at = joined;
    if (!joined) return no_memory(err);
    for (const cJSON *part = parts->child; part; part = part->next) {
        const char *text = lk_json_get(part, "text")->valuestring;
        size_t size = strlen(text);
        if (part != parts->child) *at++ = '\n';
        memcpy(at, text, size);
        at += size;
    }
    *at = 0;
    lk_status status = set(message, "content", cJSON_CreateString(joined), err);
    free(joined);
    return status;
}

/* OpenAI's clients send arguments as JSON text; templates write them with tojson. */
static lk_status prepare_calls(const cJSON *calls, const char *where, lk_error *err)
{
    int i = 0;
    if (!cJSON_IsArray(calls)) return lk_fail(err, LK_ERR_ARGUMENT, "%s.tool_calls must be a list", where);
    for (cJSON *call = calls->child; call; call = call->next, i++) {
        if (!cJSON_IsObject(call)) return lk_fail(err, LK_ERR_ARGUMENT, "%s.tool_calls[%d] must be an object", where, i);
        cJSON *function = lk_json_get(call, "function"), *holder = cJSON_IsObject(function) ? function : call;
        const cJSON *arguments = lk_json_get(holder, "arguments");
        if (!cJSON_IsString(arguments)) continue;
        cJSON *parsed;
        const char *text = arguments->valuestring;
        if (!*text) text = "{}";
        if (lk_json_parse(&parsed, text, strlen(text), "arguments", NULL)) continue;
        if (!cJSON_IsObject(parsed) || lk_json_keep_numbers(parsed, text, strlen(text), NULL)) {
            cJSON_Delete(parsed);
            continue;
        }
        LK_TRY(set(holder, "arguments", parsed, err));
    }
    return LK_OK;
}

/* reasoning_content, thinking, reasoning: the first that is there stands under the first two names, as in transformers; "thinking" comes
 * first in the message, where it is new. */
static lk_status alias_reasoning(cJSON *message, lk_error *err)
{
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    const cJSON *found = NULL;
    for (size_t i = 0; i < 3 && !found; i++) found = lk_json_get(message, names[i]);
    if (!found) return LK_OK;
    cJSON *copy = cJSON_Duplicate(found, true), *first = copy ? cJSON_Duplicate(copy, true) : NULL,
          *there = lk_json_get(message, "thinking");
    if (there) {
        cJSON_Delete(first);
        first = cJSON_DetachItemViaPointer(message, there);
    }
    cJSON *second = message->child;
    if (!first || !cJSON_AddItemToObject(message, "thinking", first)) {
        cJSON_Delete(first);
        cJSON_Delete(copy);
        return no_memory(err);
    }
    if (second && second != first) { /* to the front: cJSON keeps the last one in the first one's prev */
        cJSON *item = cJSON_DetachItemViaPointer(message, first);
        cJSON_InsertItemInArray(message, 0, item);
    }
    return set(message, "reasoning_content", copy, err);
}

/* What is null, and lists that are empty, say nothing: clients send whole replies back. content is looked at apart. */
static void drop_blanks(cJSON *message)
{
    for (cJSON *field = message->child, *next; field; field = next) {
        next = field->next;
        bool blank = cJSON_IsNull(field) || (cJSON_IsArray(field) && !field->child);
        if (blank && strcmp(field->string, "content")) cJSON_Delete(cJSON_DetachItemViaPointer(message, field));
    }
}

static lk_status prepare_content(const lk_chat *chat, cJSON *message, const char *where, lk_error *err)
{
    const cJSON *content = lk_json_get(message, "content");
    bool calls = lk_json_get(message, "tool_calls") || lk_json_get(message, "function_call");
    if (cJSON_IsArray(content)) return prepare_parts(chat, message, content, where, err);
    if (!content || cJSON_IsNull(content))
        return calls ? set(message, "content", cJSON_CreateString(""), err) : lk_fail(err, LK_ERR_ARGUMENT, "%s: has no content", where);
    if (cJSON_IsString(content) || cJSON_IsObject(content)) return LK_OK;
    return lk_fail(err, LK_ERR_ARGUMENT, "%s.content must be a string or an array of text parts", where);
}

static lk_status prepare_message(const lk_chat *chat, cJSON *message, const char *where, lk_error *err)
{
    if (!cJSON_IsObject(message)) return lk_fail(err, LK_ERR_ARGUMENT, "%s must be an object", where);
    const cJSON *role = lk_json_get(message, "role");
    if (!cJSON_IsString(role) || !*role->valuestring) return lk_fail(err, LK_ERR_ARGUMENT, "%s.role must be a string", where);
    if (!strcmp(role->valuestring, "developer") && !chat->knows_developer) LK_TRY(set(message, "role", cJSON_CreateString("system"), err));
    drop_blanks(message);
    LK_TRY(prepare_content(chat, message, where, err));
    if (lk_json_get(message, "tool_calls")) LK_TRY(prepare_calls(lk_json_get(message, "tool_calls"), where, err));
    return alias_reasoning(message, err);
}

lk_status lk_chat_prepare(const lk_chat *chat, const cJSON *messages, cJSON **prepared, lk_error *err)
{
    cJSON *copy = cJSON_Duplicate(messages, true);
    lk_status status = LK_OK;
    int i = 0;
    *prepared = NULL;
    if (!copy) return no_memory(err);
    for (cJSON *message = copy->child; message && !status; message = message->next) {
        char where[40];
        snprintf(where, sizeof where, "messages[%d]", i++);
        status = prepare_message(chat, message, where, err);
    }
    if (status)
        cJSON_Delete(copy);
    else
        *prepared = copy;
    return status;
}
