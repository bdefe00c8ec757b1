#include "cli/exact.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "cli/complete.h"
#include "cli/stop.h"

enum { AT_ONCE = 16 };

/* A question under way. */
typedef struct question {
    lk_request *request;
    char *reference;
    int32_t *ids;
    int64_t n, room;
} question;

typedef struct asker {
    const cli_session *s;
    lk_engine *engine;
    bool adapter;
    int64_t max_tokens;
    question open[AT_ONCE];
    int n_open;
    cli_exact *result;
} asker;

static bool same_trimmed(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b);
    while (n && isspace((unsigned char)*a)) a++, n--;
    while (m && isspace((unsigned char)*b)) b++, m--;
    while (n && isspace((unsigned char)a[n - 1])) n--;
    while (m && isspace((unsigned char)b[m - 1])) m--;
    return n == m && !memcmp(a, b, n);
}

static void close_question(question *q)
{
    if (q->request) lk_request_release(q->request);
    free(q->reference);
    free(q->ids);
    *q = (question){0};
}

static lk_status read_answer(asker *a, question *q, lk_error *err)
{
    lk_event event = {0};
    while (event.finish == LK_FINISH_NONE) {
        if (!lk_request_next(q->request, 200, &event)) {
            if (cli_stop) return lk_fail(err, LK_ERR_INTERRUPTED, "interrupted");
            event.finish = LK_FINISH_NONE;
            continue;
        }
        if (event.token < 0) continue;
        if (q->n == q->room) {
            int64_t room = q->room * 2 + 64;
            int32_t *grown = realloc(q->ids, (size_t)room * sizeof *grown);
            if (!grown) return lk_fail(err, LK_ERR_MEMORY, "no memory for an answer");
            q->ids = grown;
            q->room = room;
        }
        q->ids[q->n++] = event.token;
    }
    if (event.finish == LK_FINISH_ERROR) return lk_fail(err, event.error.code, "%s", event.error.message);
    char *text;
    size_t size;
    LK_TRY(lk_tokenizer_decode(a->s->tk, q->ids, q->n, true, &text, &size, err));
    a->result->asked++;
    a->result->matched += same_trimmed(text, q->reference);
    free(text);
    return LK_OK;
}

/* Reads the answers of all that are open, unless something has failed already, and closes them. */
static lk_status finish_all(asker *a, lk_status status, lk_error *err)
{
    for (int i = 0; i < a->n_open; i++) {
        if (!status) status = read_answer(a, &a->open[i], err);
        close_question(&a->open[i]);
    }
    a->n_open = 0;
    return status;
}

static lk_status ask(asker *a, const int32_t *ids, int64_t n, const char *reference, lk_error *err)
{
    if (a->n_open == AT_ONCE) LK_TRY(finish_all(a, LK_OK, err));
    question *q = &a->open[a->n_open];
    int32_t end = a->s->chat ? lk_chat_end_of_turn(a->s->chat) : -1;
    lk_request_spec spec = {.adapter = a->adapter ? "adapter" : NULL,
                            .prompt = ids,
                            .n_prompt = n,
                            .max_tokens = a->max_tokens,
                            .top_p = 1.0f,
                            .repetition_penalty = 1.0f,
                            .n_logprobs = -1,
                            .stop_ids = &end,
                            .n_stop_ids = end >= 0};
    lk_request *request;
    LK_TRY(lk_engine_submit(a->engine, &spec, &request, err));
    a->n_open++;
    *q = (question){.request = request, .reference = strdup(reference)};
    return q->reference ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "no memory for a reference");
}

/* The conversation without its last message, where that is an assistant's text: the reference. */
static lk_status ask_conversation(asker *a, const lk_example *ex, const char **reference, int32_t **ids, int64_t *n, lk_error *err)
{
    int count = cJSON_GetArraySize(ex->messages);
    const cJSON *last = cJSON_GetArrayItem(ex->messages, count - 1);
    const char *role = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(last, "role"));
    const char *content = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(last, "content"));
    if (count < 2 || !content || !role || strcmp(role, "assistant")) return LK_OK;
    cJSON *before = cJSON_Duplicate(ex->messages, true);
    if (!before) return lk_fail(err, LK_ERR_MEMORY, "no memory for a question");
    cJSON_DeleteItemFromArray(before, count - 1);
    lk_chat_input in = {.messages = before, .tools = ex->tools, .documents = ex->documents, .variables = ex->variables};
    lk_status status = cli_encode_messages(a->s, &in, ids, n, err);
    if (!status) *reference = content;
    cJSON_Delete(before);
    return status;
}

static lk_status ask_example(asker *a, const lk_example *ex, lk_error *err)
{
    int32_t *ids = NULL;
    int64_t n = 0;
    const char *reference = NULL;
    if (ex->kind == LK_EXAMPLE_COMPLETION) {
        reference = ex->completion;
        LK_TRY(lk_tokenizer_encode(a->s->tk, ex->prompt, strlen(ex->prompt), LK_TK_SPECIALS, &ids, &n, err));
    } else if (ex->kind == LK_EXAMPLE_MESSAGES) {
        LK_TRY(ask_conversation(a, ex, &reference, &ids, &n, err));
    }
    if (!reference) {
        a->result->skipped++;
        return LK_OK;
    }
    lk_status status = ask(a, ids, n, reference, err);
    free(ids);
    return status;
}

lk_status cli_exact_match(cli_exact *result, const cli_session *s, const char *adapter, const lk_source *source, int64_t max_tokens,
                          int64_t limit, lk_error *err)
{
    memset(result, 0, sizeof *result);
    lk_engine *engine = NULL;
    lk_reader *reader = NULL;
    lk_engine_options options;
    lk_engine_options_default(&options);
    options.max_running = AT_ONCE;
    options.max_resident_adapters = 1;
    options.adapter_host_bytes = 0; /* it stays */
    options.max_rank = 512;
    lk_status status = lk_engine_start(&engine, s->model, &options, err);
    if (!status && adapter) status = lk_engine_load_adapter(engine, "adapter", adapter, false, NULL, err);
    if (!status) status = lk_reader_open(&reader, source, err);
    asker a = {.s = s, .engine = engine, .adapter = adapter != NULL, .max_tokens = max_tokens, .result = result};
    while (!status && (limit == 0 || result->asked + a.n_open < limit)) {
        lk_example ex;
        if ((status = lk_reader_next(reader, &ex, err)) || ex.kind == LK_EXAMPLE_END) break;
        status = ask_example(&a, &ex, err);
    }
    status = finish_all(&a, status, err);
    lk_reader_close(reader);
    lk_engine_stop(engine);
    return status;
}
