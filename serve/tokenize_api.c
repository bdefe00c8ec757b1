/* POST /tokenize and /detokenize as vLLM has them. */
#include <inttypes.h>
#include <stdlib.h>

#include "serve/server.h"

static lk_status parse(lk_exchange *x, lk_openai_kind kind, lk_openai_request *request, lk_api_error *e)
{
    lk_openai_limits limits = lk_server_limits(x->server);
    lk_status status = lk_openai_parse(request, kind, x->body.data, x->body.size, &limits, e);
    if (status) return status;
    if (!request->model || lk_adapters_known(x->server, request->model)) return LK_OK;
    status = lk_adapters_unknown(x->server, request->model, e);
    lk_openai_request_free(request);
    return status;
}

static void token_strings(lk_writer *out, const lk_tokenizer *tk, const int32_t *ids, int64_t n)
{
    lk_writer_string(out, "[");
    for (int64_t i = 0; i < n; i++) {
        size_t size = 0;
        const char *piece = lk_tokenizer_piece(tk, ids[i], &size);
        if (i) lk_writer_string(out, ",");
        lk_writer_json(out, piece ? piece : "", piece ? size : 0);
    }
    lk_writer_string(out, "]");
}

enum MHD_Result lk_tokenize_handle(lk_exchange *x)
{
    lk_openai_request request;
    lk_api_error e;
    int32_t *ids = NULL;
    int64_t n = 0;
    if (parse(x, LK_OPENAI_TOKENIZE, &request, &e)) return lk_exchange_fail(x, &e);
    lk_status status = lk_generation_encode(&x->server->place, &request, 0, &ids, &n, &e);
    bool strings = request.token_strings;
    lk_openai_request_free(&request);
    if (status) return lk_exchange_fail(x, &e);
    lk_writer out = {0};
    lk_writer_printf(&out, "{\"count\":%" PRId64 ",\"max_model_len\":%" PRId64 ",\"tokens\":[", n,
                     lk_engine_get_options(x->server->place.engine)->max_model_len);
    for (int64_t i = 0; i < n; i++) lk_writer_printf(&out, i ? ",%d" : "%d", ids[i]);
    lk_writer_string(&out, "],\"token_strs\":");
    if (strings)
        token_strings(&out, x->server->place.tk, ids, n);
    else
        lk_writer_string(&out, "null");
    lk_writer_string(&out, "}");
    free(ids);
    return lk_exchange_send(x, 200, "application/json", &out);
}

enum MHD_Result lk_detokenize_handle(lk_exchange *x)
{
    lk_openai_request request;
    lk_api_error e;
    lk_error err = {0};
    char *text = NULL;
    size_t size = 0;
    if (parse(x, LK_OPENAI_DETOKENIZE, &request, &e)) return lk_exchange_fail(x, &e);
    const lk_openai_prompt *tokens = &request.prompts[0];
    lk_status status = lk_tokenizer_decode(x->server->place.tk, tokens->ids, tokens->n_ids, false, &text, &size, &err);
    lk_openai_request_free(&request);
    if (status) {
        lk_api_fail_from(&e, &err, "tokens");
        return lk_exchange_fail(x, &e);
    }
    lk_writer out = {0};
    lk_writer_string(&out, "{\"prompt\":");
    lk_writer_json(&out, text, size);
    lk_writer_string(&out, "}");
    free(text);
    return lk_exchange_send(x, 200, "application/json", &out);
}
