/* Checkpoints of a training run, inspected. */
#include <string.h>

#include "cli/inspect.h"
#include "model/model.h"
#include "train/checkpoint.h"

bool cli_is_checkpoint(const char *path) { return cli_begins_with(path, "\x89HDF\r\n\x1a\n", 8); }

/* The base's digest is that of the weights as they are computed with: it is opened as the recipe says. */
static lk_status check_base(const lk_checkpoint_facts *f, const cJSON *recipe, const char *base, lk_error *err)
{
    const cJSON *quant = lk_json_get(lk_json_get(recipe, "base"), "quant");
    bool dense = cJSON_IsString(quant) && !strcmp(quant->valuestring, "none");
    lk_backend *be = NULL;
    lk_model *model = NULL;
    LK_TRY(lk_backend_open(&be, &(lk_backend_options){.device = "cpu", .compute = LK_F32}, err));
    lk_status status = lk_model_open(&model, be, base, &(lk_model_options){.quant = dense ? LK_QUANT_NONE : LK_QUANT_NF4}, err);
    if (!status && strcmp(model->digest, f->base_digest))
        status = lk_fail(err, LK_ERR_MISMATCH, "trained on another base (weights %.12s...) than %s%s (%.12s...)", f->base_digest, base,
                         dense ? "" : " in nf4", model->digest);
    lk_model_close(model);
    lk_backend_close(be);
    return status;
}

lk_status cli_inspect_checkpoint(cJSON *out, const char *path, const char *base, lk_error *err)
{
    lk_checkpoint_facts f;
    cJSON *recipe = NULL;
    LK_TRY(lk_checkpoint_describe(&f, path, err));
    lk_status status = lk_json_parse(&recipe, f.essence, strlen(f.essence), path, err);
    if (!status) {
        cJSON_AddStringToObject(out, "kind", "checkpoint");
        cJSON_AddNumberToObject(out, "step", (double)f.step);
        cJSON_AddNumberToObject(out, "parameters", (double)f.n_params);
        cJSON_AddStringToObject(out, "optimizer", f.optimizer);
        cJSON_AddStringToObject(out, "base_digest", f.base_digest);
        cJSON_AddStringToObject(out, "data_digest", f.data_digest);
        cJSON_AddStringToObject(out, "digest", f.content);
        cJSON_AddItemToObject(out, "recipe", recipe);
        lk_error why = {0};
        if (base) cli_add_fit(out, check_base(&f, recipe, base, &why), &why);
    }
    lk_checkpoint_facts_free(&f);
    return status;
}
