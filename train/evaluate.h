/* Evaluation: loss, perplexity and token accuracy of a base with an adapter (or without) over a dataset.
 *
 *     lk_eval_options options = lk_eval_options_default();
 *     options.base = "models/llama-8b"; options.adapter = "run/adapter"; options.sources = &source; options.n_sources = 1;
 *     lk_eval_result r;
 *     LK_TRY(lk_eval_run(&r, &options, err));
 *
 * The same documents, masks and packing as training's evaluation, and no dropout. The loss is the mean negative log-likelihood of
 * the supervised tokens; perplexity is its exponential. Documents are packed in their own order; a token's loss does not depend on what it
 * is packed with. */
#ifndef LK_TRAIN_EVALUATE_H
#define LK_TRAIN_EVALUATE_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "data/reader.h"
#include "data/store.h"
#include "model/adapter.h"
#include "model/transformer.h"

typedef struct lk_eval_result {
    double loss, perplexity, accuracy; /* accuracy: share of supervised tokens that are the arg max */
    int64_t documents, tokens, supervised, hits;
    double seconds;
} lk_eval_result;

typedef struct lk_eval_options {
    const char *base;
    const char *adapter; /* a PEFT folder, or NULL: the base alone */
    lk_quant quant;
    lk_dtype compute;
    const lk_source *sources;
    int n_sources;
    int64_t max_length;      /* longest document, in tokens */
    int64_t rows;            /* packed rows in one pass */
    const char *loss_on;     /* "assistant", "completion" or "all" */
    const char *chat_format; /* NULL: the model's own template */
    const char *device;      /* NULL: auto */
    int threads;
    const char *cpu_tier;
    const char *work_folder;           /* where the token store goes; NULL: a temporary folder, removed at the end */
    const volatile sig_atomic_t *stop; /* when it becomes non-zero: LK_ERR_INTERRUPTED; NULL: never */
} lk_eval_options;

lk_eval_options lk_eval_options_default(void); /* NF4, bf16, 1024 tokens, 1 row, "assistant" */

/* Opens everything, evaluates, closes everything. */
lk_status lk_eval_run(lk_eval_result *result, const lk_eval_options *options, lk_error *err);

/* The loop itself, over an open token store with a pass that takes rows * max_length tokens (the trainer's own). adapter NULL: the base.
 * stop may be NULL. Nothing about the pass or the adapter changes. */
lk_status lk_evaluate(lk_eval_result *result, lk_pass *pass, const lk_model *model, const lk_adapter *adapter, lk_store *store,
                      int64_t rows, int64_t max_length, const volatile sig_atomic_t *stop, lk_error *err);

#endif
