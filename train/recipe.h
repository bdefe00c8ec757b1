/* A recipe: one fine-tuning run, written as JSON (with comments), strictly checked.
 *
 *     lk_recipe *recipe;
 *     LK_TRY(lk_recipe_load(&recipe, "acme.json", sets, n_sets, err));    -- sets: "optim.lr=1e-4", "data.train[0].path=other.jsonl"
 *     ... recipe->lr, recipe->rows ...
 *     lk_recipe_free(recipe);
 *
 * Keys, types, ranges and defaults are recipes/recipe.schema.json's, nothing else is accepted, and every key is read. Paths are relative to
 * the folder of the recipe that names them (also in --set, and in a recipe that this one extends). A wrong recipe is LK_ERR_ARGUMENT. */
#ifndef LK_TRAIN_RECIPE_H
#define LK_TRAIN_RECIPE_H

#include "base/json.h"
#include "data/reader.h"
#include "model/adapter.h"
#include "optim/adamw.h"
#include "optim/schedule.h"

typedef struct lk_recipe {
    char path[4096], name[256]; /* the file, and its name without folder and .json */
    cJSON *resolved;            /* everything: sets, extends and defaults applied, paths absolute */
    char digest[65];            /* SHA-256 of the resolved recipe with sorted keys */
    char *essence;              /* the part that decides the result, canonical JSON: what a resumed run must have in common */

    const char *base_path; /* strings point into resolved */
    lk_quant quant;
    lk_dtype compute;
    lk_adapter_spec adapter;
    lk_adapter_pattern *patterns;
    int32_t *layers;         /* of adapter.layers_to_transform */
    const char **exclude;    /* of adapter.exclude */
    const char **names;      /* of adapter.targets: paths and ends of paths */
    const char **parameters; /* of adapter.target_parameters */
    int32_t *tokens;         /* of adapter.trainable_token_indices */
    lk_source *train, *eval;
    int n_train, n_eval;
    int64_t max_length;
    const char *loss_on;
    const char *chat_format; /* NULL: the model's own */
    lk_adamw_kind optim;
    double lr, beta1, beta2, eps, weight_decay, clip;
    lk_schedule_kind schedule;
    double warmup_ratio;
    int64_t warmup_steps;
    int64_t rows, accumulate, epochs, steps; /* one of epochs and steps is 0 */
    int64_t checkpointing;                   /* LK_CHECKPOINTING_AUTO or lk_pass_options.kept_layers */
    bool offload;
    size_t budget; /* 0: auto */
    int64_t eval_every, checkpoint_every, checkpoint_keep, log_every;
    uint64_t seed;
} lk_recipe;

lk_status lk_recipe_load(lk_recipe **recipe, const char *path, const char *const *sets, int n_sets, lk_error *err);
/* From text in memory (tests, fuzzing); folder: what paths are relative to. */
lk_status lk_recipe_parse(lk_recipe **recipe, const char *text, size_t size, const char *where, const char *folder, const char *const *sets,
                          int n_sets, lk_error *err);
void lk_recipe_free(lk_recipe *recipe); /* NULL is fine */

/* Names the keys in which two essences differ ("optim.lr: 0.001 here, 0.0002 there") into text; false when they are the same. */
bool lk_recipe_difference(const char *here, const char *there, char *text, size_t size);

/* "24GiB", "500 MB", "1e9" -> bytes; false when it is no size. */
bool lk_parse_bytes(const char *text, size_t *bytes);

#endif
