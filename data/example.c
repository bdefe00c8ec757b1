/* One line of a dataset to an example: the shapes that people's files have, and errors that name the field.
 *
 * Fields that a format does not know are ignored (datasets carry ids, sources, tags), except the few that would change what the model
 * should learn: functions, a history. Alpaca and ShareGPT become messages here, so that the rest of the program knows three kinds only. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "data/reader.h"

/* A copy in the arena of a string field. Missing fields are an error unless optional, which gives NULL. */
static lk_status copy_string(const cJSON *object, const char *key, bool optional, lk_arena *arena, const char **out, const char *where,
                             lk_error *err)
{
    const char *text = NULL;
    *out = NULL;
    if (optional)
        LK_TRY(lk_json_opt_string(object, key, &text, where, err));
    else
        LK_TRY(lk_json_string(object, key, &text, where, err));
    if (!text) return LK_OK;
    *out = lk_arena_strdup(arena, text);
    return *out ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
}

static lk_status refuse_set(const cJSON *object, const char *key, const char *where, lk_error *err)
{
    const cJSON *item = lk_json_get(object, key);
    if (!item || cJSON_IsNull(item) || ((cJSON_IsArray(item) || cJSON_IsObject(item)) && !item->child)) return LK_OK;
    return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: %s is not supported", where, key);
}

/* ---- messages ---- */

static lk_status no_memory(const char *where, lk_error *err) { return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where); }

/* The role's usual name. */
static lk_status parse_role(const char *word, const char **role, const char *where, lk_error *err)
{
    static const struct {
        const char *word, *role;
    } known[] = {{"system", "system"},       {"user", "user"},         {"assistant", "assistant"}, {"tool", "tool"},
                 {"human", "user"},          {"gpt", "assistant"},     {"chatgpt", "assistant"},   {"observation", "tool"},
                 {"developer", "developer"}, {"function", "function"}, {"ipython", "ipython"},     {"document", "document"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i].word, word)) continue;
        *role = known[i].role;
        return LK_OK;
    }
    return lk_fail(err, LK_ERR_FORMAT, "%s: the role \"%.40s\" is not one of system, user, assistant, tool", where, word);
}

/* A string; a list of parts; nothing beside tool calls. What exactly a list holds is checked where it is rendered. */
static lk_status check_content(const cJSON *message, const char *key, const char *where, lk_error *err)
{
    const cJSON *content = lk_json_get(message, key), *calls = lk_json_get(message, "tool_calls");
    const char *text;
    if (cJSON_IsArray(content) && content->child && cJSON_IsObject(content->child)) return LK_OK;
    if ((!content || cJSON_IsNull(content)) && cJSON_IsArray(calls) && calls->child) return LK_OK;
    return lk_json_string(message, key, &text, where, err);
}

/* Checks a message and gives it the names that templates know. */
static lk_status parse_message(cJSON *message, bool sharegpt, const char *where, lk_error *err)
{
    const char *word, *role = NULL;
    double weight = 1;
    if (!cJSON_IsObject(message)) return lk_fail(err, LK_ERR_FORMAT, "%s: must be an object", where);
    LK_TRY(lk_json_string(message, sharegpt ? "from" : "role", &word, where, err));
    LK_TRY(parse_role(word, &role, where, err));
    LK_TRY(check_content(message, sharegpt ? "value" : "content", where, err));
    LK_TRY(lk_json_opt_number(message, "weight", 0, 1, &weight, where, err));
    if (weight != 0 && weight != 1) return lk_fail(err, LK_ERR_FORMAT, "%s: weight must be 0 or 1", where);
    if (sharegpt) {
        cJSON *content = cJSON_DetachItemFromObjectCaseSensitive(message, "value");
        cJSON_DeleteItemFromObjectCaseSensitive(message, "content");
        cJSON_DeleteItemFromObjectCaseSensitive(message, "role");
        if (!cJSON_AddStringToObject(message, "role", role) || !cJSON_AddItemToObject(message, "content", content)) {
            cJSON_Delete(content);
            return no_memory(where, err);
        }
        cJSON_DeleteItemFromObjectCaseSensitive(message, "from");
    } else if (strcmp(word, role)) {
        cJSON *fresh = cJSON_CreateString(role);
        if (!fresh || !cJSON_ReplaceItemInObjectCaseSensitive(message, "role", fresh)) {
            cJSON_Delete(fresh);
            return no_memory(where, err);
        }
    }
    return LK_OK;
}

/* A list of objects, or its JSON text (tables of columns cannot hold the former). *out is NULL when there is none. */
static lk_status take_list(cJSON *root, const char *key, const cJSON **out, const char *where, lk_error *err)
{
    cJSON *item = lk_json_get(root, key), *parsed;
    *out = NULL;
    if (!item || cJSON_IsNull(item)) return LK_OK;
    if (cJSON_IsString(item)) {
        const char *text = item->valuestring;
        if (!*text) return LK_OK;
        if (lk_json_parse(&parsed, text, strlen(text), key, err)) return lk_error_prefix(err, LK_ERR_FORMAT, "%s", where);
        lk_status status = lk_json_keep_numbers(parsed, text, strlen(text), err);
        if (status || !cJSON_ReplaceItemInObjectCaseSensitive(root, key, parsed)) {
            cJSON_Delete(parsed);
            return no_memory(where, err);
        }
        item = parsed;
    }
    if (!cJSON_IsArray(item)) return lk_fail(err, LK_ERR_FORMAT, "%s: %s must be a list", where, key);
    for (const cJSON *one = item->child; one; one = one->next)
        if (!cJSON_IsObject(one)) return lk_fail(err, LK_ERR_FORMAT, "%s: %s must be a list of objects", where, key);
    if (item->child) *out = item;
    return LK_OK;
}

/* With a system text of its own, that becomes the first message. Takes root over on success. */
static lk_status parse_messages(lk_example *ex, cJSON *root, bool sharegpt, const char *where, lk_error *err)
{
    const char *field = sharegpt ? "conversations" : "messages", *system = NULL;
    cJSON *list = lk_json_get(root, field);
    if (!cJSON_IsArray(list))
        return lk_fail(err, LK_ERR_FORMAT, "%s: %s %s (a list of turns expected)", where, field, list ? "is not a list" : "is missing");
    if (!list->child) return lk_fail(err, LK_ERR_FORMAT, "%s: %s is empty", where, field);
    LK_TRY(refuse_set(root, "functions", where, err));
    LK_TRY(take_list(root, "tools", &ex->tools, where, err));
    LK_TRY(take_list(root, "documents", &ex->documents, where, err));
    ex->variables = lk_json_get(root, "chat_template_kwargs");
    if (cJSON_IsNull(ex->variables)) ex->variables = NULL;
    if (ex->variables && !cJSON_IsObject(ex->variables))
        return lk_fail(err, LK_ERR_FORMAT, "%s: chat_template_kwargs must be an object", where);
    int index = 0;
    for (cJSON *item = list->child; item; item = item->next) {
        char place[600];
        snprintf(place, sizeof place, "%.500s: %s[%d]", where, field, index++);
        LK_TRY(parse_message(item, sharegpt, place, err));
    }
    if (sharegpt) LK_TRY(lk_json_opt_string(root, "system", &system, where, err));
    if (system && *system) {
        LK_TRY(lk_chat_add(list, "system", system, err));
        cJSON *last = list->child->prev; /* cJSON's first entry knows the last */
        if (last != list->child) cJSON_InsertItemInArray(list, 0, cJSON_DetachItemViaPointer(list, last));
    }
    ex->kind = LK_EXAMPLE_MESSAGES;
    ex->messages = list;
    ex->tree = root;
    return LK_OK;
}

static lk_status parse_alpaca(lk_example *ex, const cJSON *root, lk_arena *arena, const char *where, lk_error *err)
{
    const char *instruction, *input, *output, *system;
    LK_TRY(refuse_set(root, "history", where, err));
    LK_TRY(copy_string(root, "instruction", false, arena, &instruction, where, err));
    LK_TRY(copy_string(root, "input", true, arena, &input, where, err));
    LK_TRY(copy_string(root, "output", false, arena, &output, where, err));
    LK_TRY(copy_string(root, "system", true, arena, &system, where, err));
    const char *user = instruction;
    if (input && *input) {
        size_t size = strlen(instruction) + strlen(input) + 3;
        char *both = lk_arena_alloc(arena, size);
        if (!both) return no_memory(where, err);
        snprintf(both, size, "%s\n\n%s", instruction, input);
        user = both;
    }
    cJSON *list = cJSON_CreateArray();
    lk_status status = list ? LK_OK : no_memory(where, err);
    if (!status && system && *system) status = lk_chat_add(list, "system", system, err);
    if (!status) status = lk_chat_add(list, "user", user, err);
    if (!status) status = lk_chat_add(list, "assistant", output, err);
    if (status) {
        cJSON_Delete(list);
        return status;
    }
    ex->kind = LK_EXAMPLE_MESSAGES;
    ex->messages = ex->tree = list;
    return LK_OK;
}

static lk_status parse_object(lk_example *ex, const lk_source *source, cJSON *root, lk_arena *arena, const char *where, lk_error *err)
{
    if (!cJSON_IsObject(root)) return lk_fail(err, LK_ERR_FORMAT, "%s: an example must be a JSON object", where);
    switch (source->format) {
    case LK_DATA_MESSAGES: return parse_messages(ex, root, false, where, err);
    case LK_DATA_SHAREGPT: return parse_messages(ex, root, true, where, err);
    case LK_DATA_ALPACA: return parse_alpaca(ex, root, arena, where, err);
    case LK_DATA_COMPLETION:
        ex->kind = LK_EXAMPLE_COMPLETION;
        LK_TRY(copy_string(root, source->prompt_field ? source->prompt_field : "prompt", false, arena, &ex->prompt, where, err));
        return copy_string(root, source->completion_field ? source->completion_field : "completion", false, arena, &ex->completion, where,
                           err);
    case LK_DATA_TEXT: ex->kind = LK_EXAMPLE_TEXT; return copy_string(root, "text", false, arena, &ex->text, where, err);
    }
    return lk_fail(err, LK_ERR_ARGUMENT, "%s: unknown data format %d", where, (int)source->format);
}

/* The parser counts lines from where its text starts: "a.jsonl:12: line 1: ..." would send people to the wrong place. */
static void drop_line_one(lk_error *err, const char *where)
{
    static const char part[] = "line 1: ";
    size_t n = strlen(where) + 2;
    if (!err || strlen(err->message) < n || strncmp(err->message + n, part, sizeof part - 1)) return;
    char *at = err->message + n;
    memmove(at, at + sizeof part - 1, strlen(at + sizeof part - 1) + 1);
}

lk_status lk_example_parse(lk_example *example, lk_arena *arena, const lk_source *source, const char *line, size_t size, const char *where,
                           lk_error *err)
{
    cJSON *root;
    int64_t number = example->line;
    *example = (lk_example){.line = number};
    lk_status status = lk_json_parse(&root, line, size, where, err);
    if (status) {
        drop_line_one(err, where);
        return status;
    }
    status = lk_json_keep_numbers(root, line, size, err);
    if (!status) status = parse_object(example, source, root, arena, where, err);
    if (status) *example = (lk_example){.line = number};
    if (example->tree != root) cJSON_Delete(root);
    return status;
}

void lk_example_free(lk_example *example)
{
    cJSON_Delete(example->tree);
    *example = (lk_example){0};
}
