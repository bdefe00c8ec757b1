/* One line of a dataset to an example: the shapes that people's files have, and errors that name the field.
 *
 * Fields that a format does not know are ignored (datasets carry ids, sources, tags), except the few that would change what the model
 * should learn: tools, tool calls, a history. Alpaca and ShareGPT become messages here, so that the rest of the program knows three kinds
 * only. */
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

static lk_status parse_role(const char *role, lk_chat_message *m, const char *where, lk_error *err)
{
    static const struct {
        const char *word, *role;
    } known[] = {{"system", "system"}, {"user", "user"},     {"assistant", "assistant"},
                 {"human", "user"},    {"gpt", "assistant"}, {"chatgpt", "assistant"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i].word, role)) continue;
        m->role = known[i].role;
        return LK_OK;
    }
    return lk_fail(err, LK_ERR_FORMAT, "%s: the role \"%.40s\" is not one of system, user, assistant", where, role);
}

static lk_status parse_message(lk_chat_message *m, const cJSON *item, bool sharegpt, lk_arena *arena, const char *where, lk_error *err)
{
    const char *role;
    double weight = 1;
    if (!cJSON_IsObject(item)) return lk_fail(err, LK_ERR_FORMAT, "%s: must be an object", where);
    LK_TRY(lk_json_string(item, sharegpt ? "from" : "role", &role, where, err));
    LK_TRY(parse_role(role, m, where, err));
    LK_TRY(refuse_set(item, "tool_calls", where, err));
    LK_TRY(copy_string(item, sharegpt ? "value" : "content", false, arena, &m->content, where, err));
    LK_TRY(lk_json_opt_number(item, "weight", 0, 1, &weight, where, err));
    if (weight != 0 && weight != 1) return lk_fail(err, LK_ERR_FORMAT, "%s: weight must be 0 or 1", where);
    m->no_loss = weight == 0;
    return LK_OK;
}

/* With a system text of its own, that becomes the first message. */
static lk_status parse_messages(lk_example *ex, const cJSON *root, bool sharegpt, lk_arena *arena, const char *where, lk_error *err)
{
    const char *field = sharegpt ? "conversations" : "messages", *system = NULL;
    const cJSON *list = lk_json_get(root, field), *item;
    if (!cJSON_IsArray(list))
        return lk_fail(err, LK_ERR_FORMAT, "%s: %s %s (a list of turns expected)", where, field, list ? "is not a list" : "is missing");
    if (!list->child) return lk_fail(err, LK_ERR_FORMAT, "%s: %s is empty", where, field);
    LK_TRY(refuse_set(root, "tools", where, err));
    LK_TRY(refuse_set(root, "functions", where, err));
    if (sharegpt) LK_TRY(copy_string(root, "system", true, arena, &system, where, err));
    lk_chat_message *messages = lk_arena_alloc(arena, ((size_t)cJSON_GetArraySize(list) + 1) * sizeof *messages);
    if (!messages) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
    int64_t n = 0;
    if (system && *system) messages[n++] = (lk_chat_message){.role = "system", .content = system};
    int index = 0;
    cJSON_ArrayForEach(item, list)
    {
        char place[600];
        snprintf(place, sizeof place, "%.500s: %s[%d]", where, field, index++);
        LK_TRY(parse_message(&messages[n++], item, sharegpt, arena, place, err));
    }
    ex->kind = LK_EXAMPLE_MESSAGES;
    ex->messages = messages;
    ex->n_messages = n;
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
    lk_chat_message *messages = lk_arena_alloc(arena, 3 * sizeof *messages);
    const char *user = instruction;
    if (input && *input) {
        size_t size = strlen(instruction) + strlen(input) + 3;
        char *both = lk_arena_alloc(arena, size);
        if (both) snprintf(both, size, "%s\n\n%s", instruction, input);
        user = both;
    }
    if (!messages || !user) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
    int64_t n = 0;
    if (system && *system) messages[n++] = (lk_chat_message){.role = "system", .content = system};
    messages[n++] = (lk_chat_message){.role = "user", .content = user};
    messages[n++] = (lk_chat_message){.role = "assistant", .content = output};
    ex->kind = LK_EXAMPLE_MESSAGES;
    ex->messages = messages;
    ex->n_messages = n;
    return LK_OK;
}

static lk_status parse_object(lk_example *ex, const lk_source *source, const cJSON *root, lk_arena *arena, const char *where, lk_error *err)
{
    if (!cJSON_IsObject(root)) return lk_fail(err, LK_ERR_FORMAT, "%s: an example must be a JSON object", where);
    switch (source->format) {
    case LK_DATA_MESSAGES: return parse_messages(ex, root, false, arena, where, err);
    case LK_DATA_SHAREGPT: return parse_messages(ex, root, true, arena, where, err);
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
    status = parse_object(example, source, root, arena, where, err);
    if (status) *example = (lk_example){.line = number};
    cJSON_Delete(root);
    return status;
}
