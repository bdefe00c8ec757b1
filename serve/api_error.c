#include "serve/api_error.h"

#include <stdio.h>
#include <string.h>

static const char *usual_type(int http)
{
    switch (http) {
    case 401: return "authentication_error";
    case 429: return "rate_limit_error";
    case 503: return "service_unavailable_error";
    default: return http >= 500 ? "server_error" : "invalid_request_error";
    }
}

static lk_status status_of(int http)
{
    switch (http) {
    case 404: return LK_ERR_NOT_FOUND;
    case 429: return LK_ERR_BUSY;
    case 503: return LK_ERR_INTERRUPTED;
    default: return http >= 500 ? LK_ERR_INTERNAL : LK_ERR_FORMAT;
    }
}

static lk_status fill(lk_api_error *e, int http, const char *code, const char *param, const char *format, va_list args)
{
    *e = (lk_api_error){.http = http, .type = usual_type(http), .code = code};
    e->retry_after_s = http == 429 ? 1 : http == 503 ? 5 : 0;
    snprintf(e->param, sizeof e->param, "%s", param ? param : "");
    vsnprintf(e->message, sizeof e->message, format, args);
    return status_of(http);
}

lk_status lk_api_fail(lk_api_error *e, int http, const char *param, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    lk_status status = fill(e, http, NULL, param, format, args);
    va_end(args);
    return status;
}

lk_status lk_api_fail_code(lk_api_error *e, int http, const char *code, const char *param, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    lk_status status = fill(e, http, code, param, format, args);
    va_end(args);
    return status;
}

lk_status lk_api_fail_from(lk_api_error *e, const lk_error *err, const char *param)
{
    switch (err->code) {
    case LK_ERR_ARGUMENT:
    case LK_ERR_FORMAT:
    case LK_ERR_UNSUPPORTED:
    case LK_ERR_MISMATCH:
    case LK_ERR_CONFLICT: return lk_api_fail(e, 400, param, "%s", err->message);
    case LK_ERR_NOT_FOUND: return lk_api_fail(e, 404, param, "%s", err->message);
    case LK_ERR_BUSY: return lk_api_fail_code(e, 429, "engine_busy", param, "%s", err->message);
    case LK_ERR_INTERRUPTED:
    case LK_ERR_MEMORY: return lk_api_fail(e, 503, param, "%s", err->message);
    default: return lk_api_fail(e, 500, param, "%s", err->message);
    }
}

void lk_api_error_json(lk_writer *out, const lk_api_error *e)
{
    lk_writer_string(out, "{\"error\":{\"message\":");
    lk_writer_json_string(out, e->message);
    lk_writer_string(out, ",\"type\":");
    lk_writer_json_string(out, e->type ? e->type : usual_type(e->http));
    lk_writer_string(out, ",\"param\":");
    lk_writer_json_string(out, e->param[0] ? e->param : NULL);
    lk_writer_string(out, ",\"code\":");
    if (e->code)
        lk_writer_json_string(out, e->code);
    else
        lk_writer_printf(out, "%d", e->http);
    lk_writer_string(out, "}}");
}
