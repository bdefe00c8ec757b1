/* Whether a request can be served at all: every field within its range, and short enough for the server. */
#ifndef LK_SERVE_REQUEST_CHECK_H
#define LK_SERVE_REQUEST_CHECK_H

#include "serve/request.h"

/* LK_ERR_ARGUMENT with what was given, the limit and what to do. *max_tokens: the spec's, or as many as fit when it leaves that open. */
lk_status lk_request_check(const lk_request_spec *spec, const lk_request_limits *limits, int64_t *max_tokens, lk_error *err);

#endif
