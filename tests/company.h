/* Results do not depend on company: sixteen requests on eight adapters of different ranks and on the base, greedy and sampled, with
 * penalties, biases, stops and logprobs, are first asked one at a time; then all at once in a number of scenes: each must get the same ids
 * and the same bits of logprobs.
 *
 *     check_company(&(check_crowd){.model = "models/llama-tiny", .quant = LK_QUANT_NF4, .backend = {...}, .scenes = s, .n_scenes = 6}); */
#ifndef LK_TESTS_COMPANY_H
#define LK_TESTS_COMPANY_H

#include "tests/engine.h"

/* How the engine is set up for all of them together. */
typedef struct check_scene {
    const char *name;
    int32_t token_budget;
    int32_t n_pages;    /* beside adapters in the pool: ... */
    int32_t n_adapters; /* ... room for so many, the largest, or all */
    int32_t max_running, max_resident;
    bool tight;  /* requests may be preempted, pages moved; in one of the scenes it happens, in which is a matter of time */
    bool reload; /* meanwhile adapter 2 gets adapter 3's weights: nobody who asked before notices, who asks afterwards gets those */
} check_scene;

enum { CHECK_ADAPTERS = 8 };

typedef struct check_crowd {
    const char *model; /* in tests/golden, or "family NAME": one of tests/golden/families.json */
    lk_quant quant;
    lk_backend_options backend;
    bool kv_8bit, nf4_head;
    int32_t most_rank; /* of an adapter, for models too narrow for 32; 0: any */
    bool queued;       /* in company the backend is made one that samples behind the host's back (tests/queued.h) */
    int shrink;        /* prompts and answers are so many times shorter: 1 on the CPU */
    /* The last adapters are these of tests/golden/options instead: more than factors. NULL: none. They must be for the model. */
    const char *const *given;
    int n_given;
    const check_scene *scenes;
    int n_scenes;
} check_crowd;

void check_company(const check_crowd *crowd);

#endif
