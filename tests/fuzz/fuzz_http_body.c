/* Any bytes as the body of a request: a typed request or an error that names the fault, never more. The first byte picks the endpoint. */
#include <stdint.h>
#include <stdlib.h>

#include "serve/openai.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    static const lk_openai_limits limits = {.vocab = 512};
    lk_openai_request request;
    lk_api_error e = {0};
    lk_openai_kind kind = data[0] % 4;
    if (lk_openai_parse(&request, kind, (const char *)data + 1, size - 1, &limits, &e)) {
        lk_writer out = {0};
        lk_api_error_json(&out, &e);
        if (e.http != 400 || !e.message[0] || out.failed) abort();
        lk_writer_free(&out);
        return 0;
    }
    bool chat = request.messages != NULL;
    if (!chat && request.n_prompts < 1) abort();
    if (request.n < 1 || request.n > LK_OPENAI_MAX_N || request.n_stops > LK_MAX_STOPS) abort();
    lk_openai_request_free(&request);
    return 0;
}
