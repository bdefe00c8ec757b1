/* Serving engines in tests: adapters made on the spot, requests asked and answers compared bit for bit. */
#ifndef LK_TESTS_ENGINE_H
#define LK_TESTS_ENGINE_H

#include "serve/engine.h"
#include "tests/model.h"

enum { CHECK_MOST_TOKENS = 256 };

/* All that a request brought, bit for bit. */
typedef struct check_answer {
    int64_t n;
    int32_t ids[CHECK_MOST_TOKENS];
    float logprobs[CHECK_MOST_TOKENS];
    int32_t n_top[CHECK_MOST_TOKENS];
    int32_t top_ids[CHECK_MOST_TOKENS][LK_MAX_LOGPROBS];
    float top_logprobs[CHECK_MOST_TOKENS][LK_MAX_LOGPROBS];
    lk_finish finish;
    lk_error error;
    lk_request_facts facts;
} check_answer;

/* Waits for the end of the request, and releases it. Fails the test when nothing comes for a minute. free() the answer. */
check_answer *check_collect(lk_request *request);
/* Submits and collects. */
check_answer *check_ask(lk_engine *engine, const lk_request_spec *spec);
/* Tokens, logprobs, alternatives and finish. */
void check_same_answer(const char *what, const check_answer *got, const check_answer *want);

/* A PEFT folder with an adapter of this rank on these modules: A and B random from the seed, B times size. model must belong to a backend
 * that no engine is using. Returns the parameters of its flat vector. */
int64_t check_adapter_write(const lk_model *model, const char *folder, int32_t rank, uint64_t seed, float size);

/* Waits until nothing runs, nothing waits and every page is free. */
void check_engine_idle(lk_engine *engine);

#endif
