/* Training: what the command line calls.
 *
 *     lk_train_options options = {.recipe = "recipe.json", .out = "run", .device = "auto", .stop = &flag};
 *     lk_train_result result;
 *     status = lk_train_run(&result, &options, &err);
 *
 *     lk_plan plan;
 *     status = lk_train_plan(&plan, &options, &err);        -- reads headers and counts documents; trains nothing
 *
 * A run leaves in its folder: adapter/ (a PEFT folder), checkpoints/step-000123.h5, metrics.jsonl, run.json, and data/ (the token
 * stores). Only one process at a time may use a run folder.
 *
 * With several processes rank 0 is the caller and alone writes; the others are forked and end inside. A step is what the recipe says
 * however many share it: the result differs from one process's only by the order in which gradients are added.
 *
 * Status: LK_ERR_ARGUMENT for anything wrong in the recipe or the options (exit code 2); LK_ERR_CONFLICT for a run folder that is in use or
 * not empty; LK_ERR_INTERRUPTED when *stop became non-zero and a checkpoint was written (exit code 75: --resume goes on); anything else is
 * a failure that leaves the last checkpoint in place. Progress and warnings go to standard error. No signal handlers are installed here:
 * the program's handler sets *stop. */
#ifndef LK_TRAIN_TRAIN_H
#define LK_TRAIN_TRAIN_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "train/evaluate.h"
#include "train/plan.h"

typedef struct lk_train_options {
    const char *recipe;      /* path of the recipe */
    const char *const *sets; /* "optim.lr=1e-4": dotted path, value as JSON or else a string */
    int n_sets;
    const char *out;      /* run folder; NULL: runs/NAME in the current folder, NAME being the recipe's file name without .json */
    bool resume;          /* go on from the newest valid checkpoint; a folder without one starts afresh */
    bool fresh;           /* remove what an earlier run left in the folder */
    bool dry_run;         /* check everything, data and masks included; print the plan; train nothing, leave nothing */
    const char *device;   /* "cpu", "cuda", "auto"; NULL: auto */
    int threads;          /* 0: all the process may use */
    const char *cpu_tier; /* as lk_backend_options; NULL: the best */
    int processes;        /* data-parallel: share each step's micro-batches between so many, a GPU each; 0 or 1: this one alone */
    bool quiet;           /* no progress lines (warnings still come) */
    const volatile sig_atomic_t *stop; /* checked after every step; NULL: never stops early */
} lk_train_options;

typedef struct lk_train_result {
    char folder[4096];  /* the run folder */
    int64_t steps;      /* optimiser steps of the whole run */
    int64_t first_step; /* steps that were already done when this process began */
    double loss;        /* of the last step; NaN when this process did none */
    bool evaluated;
    lk_eval_result before, after; /* held-out set at step 0 (NaN loss when resumed later) and at the end */
    double seconds;               /* of this process */
    int64_t tokens;               /* trained by this process */
    char adapter_digest[65];
    size_t backend_peak; /* lk_allocated_peak, equal to lk_plan_backend_bytes(&plan) */
    lk_plan plan;
} lk_train_result;

lk_status lk_train_run(lk_train_result *result, const lk_train_options *options, lk_error *err);
lk_status lk_train_plan(lk_plan *plan, const lk_train_options *options, lk_error *err);

#endif
