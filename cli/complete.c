#include "cli/complete.h"

#include <stdlib.h>
#include <string.h>

#include "cli/stop.h"

static const char adapter_name[] = "adapter";

lk_status cli_engine_start(lk_engine **engine, const cli_session *s, const char *adapter, lk_error *err)
{
    lk_engine_options options;
    lk_engine_options_default(&options);
    options.max_running = 1;
    options.max_resident_adapters = 1;
    options.adapter_host_bytes = 0; /* it stays */
    options.max_rank = 512;
    LK_TRY(lk_engine_start(engine, s->model, &options, err));
    if (!adapter) return LK_OK;
    lk_status status = lk_engine_load_adapter(*engine, adapter_name, adapter, false, NULL, err);
    if (status) {
        lk_engine_stop(*engine);
        *engine = NULL;
    }
    return status;
}

typedef struct collector {
    cli_completion *out;
    size_t text_size, text_room;
    int64_t ids_room;
    cli_text_sink *sink;
    void *context;
} collector;

static lk_status add_text(collector *c, const char *text, size_t size, lk_error *err)
{
    if (c->text_size + size + 1 > c->text_room) {
        size_t room = (c->text_room + size + 64) * 2;
        char *grown = realloc(c->out->text, room);
        if (!grown) return lk_fail(err, LK_ERR_MEMORY, "no memory for the generated text");
        c->out->text = grown;
        c->text_room = room;
    }
    if (size) memcpy(c->out->text + c->text_size, text, size);
    c->text_size += size;
    c->out->text[c->text_size] = 0;
    if (c->sink && size) c->sink(c->context, text, size);
    return LK_OK;
}

static lk_status add_id(collector *c, int32_t id, lk_error *err)
{
    if (c->out->n_ids == c->ids_room) {
        int64_t room = c->ids_room * 2 + 64;
        int32_t *grown = realloc(c->out->ids, (size_t)room * sizeof *grown);
        if (!grown) return lk_fail(err, LK_ERR_MEMORY, "no memory for the generated tokens");
        c->out->ids = grown;
        c->ids_room = room;
    }
    c->out->ids[c->out->n_ids++] = id;
    return LK_OK;
}

static lk_status collect(collector *c, lk_request *request, lk_detokenizer *detokenizer, lk_error *err)
{
    for (;;) {
        lk_event event;
        if (cli_stop) lk_request_cancel(request);
        if (!lk_request_next(request, 200, &event)) continue;
        if (event.token >= 0) {
            LK_TRY(add_id(c, event.token, err));
            const char *text = "";
            size_t size = 0;
            if (detokenizer) LK_TRY(lk_detokenizer_push(detokenizer, event.token, &text, &size, err));
            LK_TRY(add_text(c, text, size, err));
        }
        if (event.finish == LK_FINISH_NONE) continue;
        c->out->finish = event.finish;
        if (event.finish == LK_FINISH_ERROR) return lk_fail(err, event.error.code, "%s", event.error.message);
        const char *rest = "";
        size_t size = 0;
        if (detokenizer) LK_TRY(lk_detokenizer_finish(detokenizer, &rest, &size, err));
        return add_text(c, rest, size, err);
    }
}

lk_status cli_complete(cli_completion *out, lk_engine *engine, const cli_session *s, lk_request_spec spec, bool with_adapter,
                       cli_text_sink *sink, void *context, lk_error *err)
{
    memset(out, 0, sizeof *out);
    collector c = {.out = out, .sink = sink, .context = context};
    lk_request *request = NULL;
    lk_detokenizer *detokenizer = NULL;
    spec.adapter = with_adapter ? adapter_name : NULL;
    out->n_prompt = spec.n_prompt;
    int32_t end = s->chat ? lk_chat_end_of_turn(s->chat) : -1;
    if (end >= 0 && !spec.n_stop_ids) {
        spec.stop_ids = &end;
        spec.n_stop_ids = 1;
    }
    lk_status status = add_text(&c, "", 0, err);
    if (!status && s->tk) status = lk_detokenizer_create(&detokenizer, s->tk, true, err);
    if (!status) status = lk_engine_submit(engine, &spec, &request, err);
    if (!status) status = collect(&c, request, detokenizer, err);
    if (request) {
        lk_request_facts facts;
        lk_request_get_facts(request, &facts);
        memcpy(out->adapter_digest, facts.adapter_digest, sizeof out->adapter_digest);
        lk_request_release(request);
    }
    lk_detokenizer_destroy(detokenizer);
    if (status) cli_completion_free(out);
    return status;
}

void cli_completion_free(cli_completion *c)
{
    free(c->text);
    free(c->ids);
    memset(c, 0, sizeof *c);
}

const char *cli_finish_name(lk_finish finish)
{
    switch (finish) {
    case LK_FINISH_STOP: return "stop";
    case LK_FINISH_LENGTH: return "length";
    case LK_FINISH_CANCELLED: return "cancelled";
    default: return "error";
    }
}

lk_status cli_encode_messages(const cli_session *s, const lk_chat_input *input, int32_t **ids, int64_t *n_ids, lk_error *err)
{
    lk_chat_tokens tokens;
    lk_chat_input in = *input;
    in.generation_prompt = true;
    LK_TRY(lk_chat_encode(s->chat, &in, &tokens, err));
    *ids = tokens.ids;
    *n_ids = tokens.n;
    tokens.ids = NULL;
    lk_chat_tokens_free(&tokens);
    return LK_OK;
}
