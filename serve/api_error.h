/* What a client is told when a request cannot be served, in the shape OpenAI's clients read.
 *
 *     lk_api_error e = {0};
 *     return lk_api_fail(&e, 400, "messages[2].content", "must be a string");
 *     lk_api_error_json(&text, &e);   -- {"error":{"message":...,"type":...,"param":...,"code":...}}
 *
 * HTTP statuses clients know: 400 401 403 404 409 422 429 and >= 500; they retry 408 409 429 >= 500 and honour Retry-After.
 * So a mistake of the client's is never 409 or >= 500, and what may pass later is 429 or 503. */
#ifndef LK_SERVE_API_ERROR_H
#define LK_SERVE_API_ERROR_H

#include "base/status.h"
#include "serve/writer.h"

typedef struct lk_api_error {
    int http;          /* status of the reply; 0: no error */
    int retry_after_s; /* 0: no Retry-After */
    const char *type;  /* constant text; NULL: the usual one of the http status */
    const char *code;  /* constant text; NULL: the http status as a number, as vLLM writes */
    char param[128];   /* the field at fault; "": null */
    char message[1000];
} lk_api_error;

/* Fills *e and returns a status that is not LK_OK. param may be NULL. 429 and 503 get a Retry-After. */
lk_status lk_api_fail(lk_api_error *e, int http, const char *param, const char *format, ...) __attribute__((format(printf, 4, 5)));
/* The same with OpenAI's machine-readable code ("model_not_found"). */
lk_status lk_api_fail_code(lk_api_error *e, int http, const char *code, const char *param, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
/* From a library's error: malformed, mismatched or unsupported is 400, not found 404, busy 429, interrupted and out of memory 503,
 * the rest 500. A conflict is 400: 409 would make clients retry. */
lk_status lk_api_fail_from(lk_api_error *e, const lk_error *err, const char *param);

void lk_api_error_json(lk_writer *out, const lk_api_error *e);

#endif
