/* Formatting of error messages. Messages that do not fit are cut, never overrun. */
#include "base/status.h"

#undef lk_fail
#undef lk_fail_errno

#include <errno.h>
#include <stdio.h>
#include <string.h>

lk_status lk_vfail(lk_error *err, lk_status code, const char *format, va_list args)
{
    if (err) {
        /* The arguments may point into err->message itself (re-wrapping), so format aside first. */
        char text[sizeof err->message];
        vsnprintf(text, sizeof text, format, args);
        memcpy(err->message, text, sizeof text);
        err->code = code;
    }
    return code;
}

lk_status lk_fail(lk_error *err, lk_status code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    lk_vfail(err, code, format, args);
    va_end(args);
    return code;
}

lk_status lk_fail_errno(lk_error *err, const char *format, ...)
{
    int number = errno;
    if (!err) return LK_ERR_IO;
    char text[sizeof err->message];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    char reason[128];
    const char *why = strerror_r(number, reason, sizeof reason);
    return lk_fail(err, LK_ERR_IO, "%s: %s", text, why);
}

lk_status lk_error_prefix(lk_error *err, lk_status code, const char *format, ...)
{
    if (!err) return code;
    char prefix[400];
    va_list args;
    va_start(args, format);
    vsnprintf(prefix, sizeof prefix, format, args);
    va_end(args);
    return lk_fail(err, err->code ? err->code : code, "%s: %s", prefix, err->message);
}

const char *lk_status_name(lk_status code)
{
    switch (code) {
    case LK_OK: return "ok";
    case LK_ERR_ARGUMENT: return "argument";
    case LK_ERR_FORMAT: return "format";
    case LK_ERR_IO: return "io";
    case LK_ERR_MEMORY: return "memory";
    case LK_ERR_NOT_FOUND: return "not_found";
    case LK_ERR_UNSUPPORTED: return "unsupported";
    case LK_ERR_MISMATCH: return "mismatch";
    case LK_ERR_CONFLICT: return "conflict";
    case LK_ERR_BUSY: return "busy";
    case LK_ERR_INTERRUPTED: return "interrupted";
    case LK_ERR_INTERNAL: return "internal";
    }
    return "unknown";
}
