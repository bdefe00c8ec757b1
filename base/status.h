/* Errors: one convention for the whole program.
 *
 *     lk_error err = {0};
 *     if (lk_model_open(&model, path, &err)) { report err.message; }
 *
 * A fallible function returns an lk_status, LK_OK (zero) for success, and takes an `lk_error *err` last.
 * On failure err->code repeats the status and err->message says what, where and what to do. err may be NULL when
 * the caller does not want the text. Results leave through pointers and are valid only on LK_OK.
 * Libraries never print and never exit; only the command line does. */
#ifndef LK_BASE_STATUS_H
#define LK_BASE_STATUS_H

#include <stdarg.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum lk_status {
    LK_OK = 0,
    LK_ERR_ARGUMENT,    /* the caller asked for something that makes no sense (wrong option, wrong shape) */
    LK_ERR_FORMAT,      /* a file, recipe or request body is malformed */
    LK_ERR_IO,          /* the operating system refused: missing file, full disk, permission */
    LK_ERR_MEMORY,      /* no memory within the budget */
    LK_ERR_NOT_FOUND,   /* a named thing (tensor, adapter, field) does not exist */
    LK_ERR_UNSUPPORTED, /* well formed, but this program cannot honour it */
    LK_ERR_MISMATCH,    /* two things that must belong together do not (adapter and base, checkpoint and recipe) */
    LK_ERR_CONFLICT,    /* the name or state is taken (adapter already loaded) */
    LK_ERR_BUSY,        /* a queue or pool is full: try again later */
    LK_ERR_INTERRUPTED, /* stopped by a signal or by the caller; resumable */
    LK_ERR_INTERNAL     /* our own mistake, found by a check */
} lk_status;

typedef struct lk_error {
    lk_status code;
    char message[1000];
} lk_error;

/* Sets *err (when not NULL) and returns code, so that `return lk_fail(err, LK_ERR_IO, "...")` reads straight. */
lk_status lk_fail(lk_error *err, lk_status code, const char *format, ...) __attribute__((format(printf, 3, 4)));
lk_status lk_vfail(lk_error *err, lk_status code, const char *format, va_list args);

/* Like lk_fail with LK_ERR_IO, ending in the text of errno. Call it before anything may change errno. */
lk_status lk_fail_errno(lk_error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Puts "prefix: " before the message of an error on its way up ("recipe.json: data.train[0]: no such file").
 * Returns err->code, or code when err is NULL. */
lk_status lk_error_prefix(lk_error *err, lk_status code, const char *format, ...) __attribute__((format(printf, 3, 4)));

#ifdef __clang_analyzer__ /* cannot see in another file that a failure is never LK_OK */
static inline lk_status lk_never_ok(lk_status code)
{
    if (!code) __builtin_unreachable();
    return code;
}
#define lk_fail(err, code, ...) ((void)lk_fail(err, code, __VA_ARGS__), lk_never_ok(code))
#define lk_fail_errno(...)      ((void)lk_fail_errno(__VA_ARGS__), LK_ERR_IO)
#endif

/* A short constant name: "format", "io", ... */
const char *lk_status_name(lk_status code);

/* Runs an expression that yields an lk_status and leaves the function with it when it is not LK_OK. Only where nothing
 * has to be cleaned up; elsewhere write `if ((status = f())) goto out;`. */
#define LK_TRY(expression)                \
    do {                                  \
        lk_status lk_try_ = (expression); \
        if (lk_try_) return lk_try_;      \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
