/* A dataset ready for training: sources read, tokenised, masked and kept in a token store, checked before the first step.
 *
 *     lk_dataset d;
 *     LK_TRY(lk_dataset_open(&d, &(lk_dataset_options){.what = "data.train", .path = "run/data/train.h5", ...}, err));
 *     ... d.store, d.report ...
 *     lk_dataset_close(&d);
 *
 * A store that was made from the same sources (by digest, whatever they are called now), tokenizer, template and options is used again.
 *
 * A document longer than max_length is cut there, text is split into documents of max_length instead (each begins with the last token of
 * the one before, so that no token goes unpredicted). Documents without a supervised token are left out. Refused, because training would
 * run and be worth nothing (LK_ERR_FORMAT): a dataset without documents, one in which nothing is supervised, token ids that the model does
 * not have, a doubled BOS. Warned about: completions that were cut away, an end of turn that is never trained. */
#ifndef LK_TRAIN_DATASET_H
#define LK_TRAIN_DATASET_H

#include <signal.h>
#include <stdbool.h>

#include "data/chat/chat.h"
#include "data/reader.h"
#include "data/store.h"

typedef struct lk_dataset_options {
    const char *what; /* "data.train", for messages */
    const char *path; /* of the store; its folder is created */
    const lk_source *sources;
    int n_sources;
    const lk_tokenizer *tokenizer;
    const lk_chat *chat;
    int64_t vocab; /* of the model */
    int64_t max_length;
    const char *loss_on;               /* "assistant", "completion", "all" */
    const volatile sig_atomic_t *stop; /* NULL: never */
} lk_dataset_options;

typedef struct lk_dataset_report {
    int64_t examples;  /* read from the sources */
    int64_t documents; /* kept */
    int64_t tokens, supervised;
    int64_t cut;      /* longer than max_length */
    int64_t split;    /* texts that became several documents */
    int64_t masked;   /* left out: nothing supervised in them */
    int64_t cut_away; /* left out: what was supervised lay beyond max_length */
    bool reused;      /* the store of an earlier run */
} lk_dataset_report;

typedef struct lk_dataset {
    lk_store *store;
    lk_dataset_report report;
    char digest[65]; /* lk_store_digest */
} lk_dataset;

lk_status lk_dataset_open(lk_dataset *d, const lk_dataset_options *options, lk_error *err);
void lk_dataset_close(lk_dataset *d); /* safe on a zeroed struct */

/* How many documents the sources will give at most, without a tokenizer: examples, and for text one more for every max_length * 2 bytes. */
lk_status lk_dataset_estimate(const lk_source *sources, int n_sources, int64_t max_length, int64_t *documents, lk_error *err);

#endif
