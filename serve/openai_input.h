/* The parts of a request that carry text: messages and prompts. Used by openai.c only. */
#ifndef LK_SERVE_OPENAI_INPUT_H
#define LK_SERVE_OPENAI_INPUT_H

#include "base/json.h"
#include "serve/openai.h"

/* Whether they are what a chat template can be given. */
lk_status lk_openai_check_messages(const cJSON *item, lk_api_error *e);
lk_status lk_openai_check_tools(const cJSON *item, lk_api_error *e);
lk_status lk_openai_check_documents(const cJSON *item, lk_api_error *e);
lk_status lk_openai_take_prompt(lk_openai_request *request, const cJSON *item, int64_t vocab, lk_api_error *e);
/* An array of token ids below vocab; *ids lives in the request's arena. */
lk_status lk_openai_take_ids(lk_openai_request *request, const cJSON *array, const char *param, int64_t vocab, int32_t **ids, int64_t *n,
                             lk_api_error *e);
lk_status lk_openai_no_memory(lk_api_error *e);

#endif
