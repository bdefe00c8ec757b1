/* The memory plan: what a run will take, term by term, before anything is loaded.
 *
 *     lk_plan plan;
 *     LK_TRY(lk_train_plan(&plan, &(lk_train_options){.recipe = "recipe.json"}, err));
 *     char *table = lk_plan_text(&plan); fputs(table, stdout); free(table);
 *
 * Two kinds of memory: the backend's (weights, adapter, activations, scratch), which is exact: the run's lk_allocated_peak is
 * lk_plan_backend_bytes to the byte; and the host's, for what the program keeps beside it. Two phases: while the base loads, its
 * file is mapped and counts as resident; in training that is gone and everything else is there. The peak is the larger one.
 *
 * On the CPU both are the same memory, and the budget is for their sum. A GPU has memory of its own: there the budget is for the
 * backend's share, and the host must have room for the rest. */
#ifndef LK_TRAIN_PLAN_H
#define LK_TRAIN_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "model/adapter.h"
#include "model/transformer.h"
#include "optim/adamw.h"

enum { LK_PLAN_MAX_TERMS = 24 };

typedef struct lk_plan_term {
    char name[48];   /* "base weights" */
    char detail[96]; /* "4-bit NF4, 4 layers" */
    size_t bytes;
    bool backend;  /* taken through the backend (else host memory) */
    bool loading;  /* there while the base loads */
    bool training; /* there in the loop */
} lk_plan_term;

typedef struct lk_plan {
    lk_plan_term terms[LK_PLAN_MAX_TERMS];
    int n_terms;
    int64_t kept_layers;        /* of lk_pass_options, after "auto" was decided: 1..layers */
    bool own_memory;            /* the device has memory of its own */
    int64_t micro_batch_tokens; /* rows * max_length */
    int64_t n_params, n_trainable;
    int64_t layers;
    size_t budget;          /* what the recipe allows, or what this machine or its device has to give */
    char budget_source[96]; /* "80% of the 21.3 GiB available here" */
    char device[64];        /* "cpu/avx512, 2 threads" */
} lk_plan;

/* Everything the plan follows from. */
typedef struct lk_plan_request {
    const lk_backend *be;
    const lk_model_facts *facts;
    lk_quant quant;
    const lk_adapter_spec *adapter;
    int64_t rows, max_length, accumulate;
    int64_t train_documents, eval_documents;
    int processes;           /* that share this machine's memory, each with a plan like this one; 0 or 1: this one alone */
    size_t model_file_bytes; /* size of the safetensors on disk, mapped while loading */
    lk_adamw_kind optim;
    int64_t checkpointing; /* LK_CHECKPOINTING_AUTO, or an lk_pass_options.kept_layers */
    bool offload;
    size_t budget; /* 0: 80% of what the machine has available, or 90% of what its device has free */
} lk_plan_request;

enum { LK_CHECKPOINTING_AUTO = -1, LK_CHECKPOINTING_NONE = INT32_MAX };

/* LK_ERR_MEMORY when nothing fits the budget; *plan is then the leanest plan, for the message. */
lk_status lk_plan_make(lk_plan *plan, const lk_plan_request *request, lk_error *err);

size_t lk_plan_backend_bytes(const lk_plan *plan);  /* what lk_allocated_peak will say */
size_t lk_plan_loading_bytes(const lk_plan *plan);  /* resident in the host's memory while the base loads */
size_t lk_plan_training_bytes(const lk_plan *plan); /* resident there in the loop */
size_t lk_plan_host_bytes(const lk_plan *plan);     /* the larger */
size_t lk_plan_peak_bytes(const lk_plan *plan);     /* what the budget limits: of the device, if it has its own memory, else of the host */

char *lk_plan_text(const lk_plan *plan); /* a table for people; free() it; NULL without memory */
char *lk_plan_json(const lk_plan *plan); /* the same for machines; free() it */

/* Memory the process may take: MemAvailable, within the cgroup's limit. */
size_t lk_memory_available(void);

#endif
