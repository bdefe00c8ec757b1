#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/inspect.h"
#include "data/gguf.h"
#include "data/safetensors.h"
#include "model/bnb.h"
#include "model/config.h"
#include "model/fits.h"
#include "model/names.h"
#include "model/weights.h"

void cli_inspect_config(cJSON *out, const lk_config *c)
{
    cJSON_AddStringToObject(out, "model_type", c->model_type);
    cJSON_AddNumberToObject(out, "parameters", (double)lk_config_params(c));
    cJSON_AddNumberToObject(out, "layers", (double)c->layers);
    cJSON_AddNumberToObject(out, "hidden_size", (double)c->hidden);
    cJSON_AddNumberToObject(out, "heads", (double)c->heads);
    cJSON_AddNumberToObject(out, "kv_heads", (double)c->kv_heads);
    cJSON_AddNumberToObject(out, "vocab_size", (double)c->vocab);
    cJSON_AddNumberToObject(out, "max_positions", (double)c->max_positions);
}

void cli_add_fit(cJSON *out, lk_status status, const lk_error *why)
{
    cJSON_AddBoolToObject(out, "fits", status == LK_OK);
    if (status) cJSON_AddStringToObject(out, "why_not", why->message);
}

void cli_add_model_fit(cJSON *out, const char *path, const char *base)
{
    lk_error why = {0};
    lk_likeness like;
    cli_add_fit(out, lk_model_fits(path, base, &like, &why), &why);
    cJSON_AddBoolToObject(out, "same_identity", like.same_identity);
    if (*like.tensor) {
        char text[32];
        snprintf(text, sizeof text, "%.3g", like.difference);
        cJSON_AddRawToObject(out, "difference", text);
        cJSON_AddStringToObject(out, "most_different", like.tensor);
    }
}

bool cli_begins_with(const char *path, const void *bytes, size_t size)
{
    unsigned char first[16];
    FILE *f = lk_path_is_folder(path) || size > sizeof first ? NULL : fopen(path, "rb");
    if (!f) return false;
    bool is = fread(first, 1, size, f) == size && !memcmp(first, bytes, size);
    fclose(f);
    return is;
}

static lk_status inspect_model(cJSON *out, const char *path, const char *base, lk_error *err)
{
    lk_config c;
    LK_TRY(lk_config_read(&c, path, err));
    lk_safetensors *st;
    int64_t left_out;
    LK_TRY(lk_names_open(&st, path, &c, &left_out, err));
    lk_pool *pool = NULL;
    char identity[65];
    lk_status status = lk_pool_create(&pool, 0, err);
    if (!status) status = lk_weights_identity(st, &c, pool, identity, err);
    if (!status) {
        cJSON_AddStringToObject(out, "kind", "model");
        cli_inspect_config(out, &c);
        if (*c.part_of) {
            cJSON_AddStringToObject(out, "text_part_of", c.part_of);
            cJSON_AddNumberToObject(out, "left_out", (double)left_out); /* tensors of images */
        }
        cJSON_AddStringToObject(out, "quantization", lk_bnb_any(st) ? "nf4" : "none");
        cJSON_AddStringToObject(out, "identity", identity);
        if (base) cli_add_model_fit(out, path, base);
    }
    lk_pool_destroy(pool);
    lk_safetensors_close(st);
    return status;
}

static lk_status inspect_file(cJSON *out, const char *path, const char *base, lk_error *err)
{
    lk_safetensors *st;
    LK_TRY(lk_safetensors_open(&st, path, err));
    char hex[65];
    lk_status status = lk_safetensors_digest(st, hex, err);
    cJSON_AddStringToObject(out, "kind", "safetensors");
    cJSON_AddStringToObject(out, "digest", hex);
    cJSON *tensors = cJSON_AddArrayToObject(out, "tensors");
    for (int64_t i = 0; i < lk_safetensors_count(st); i++) {
        const lk_st_tensor *t = lk_safetensors_at(st, i);
        cJSON *item = cJSON_CreateObject();
        cJSON_AddStringToObject(item, "name", t->name);
        cJSON_AddStringToObject(item, "type", lk_dtype_name(t->type));
        cJSON *shape = cJSON_AddArrayToObject(item, "shape");
        for (int d = 0; d < t->n_dims; d++) cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)t->shape[d]));
        cJSON_AddItemToArray(tensors, item);
    }
    lk_error why = {0};
    if (base) cli_add_fit(out, lk_tensors_fit(st, base, &why), &why);
    lk_safetensors_close(st);
    return status;
}

/* Scalars one a line; of lists only how long they are and their first entries. */
static void print_text(const cJSON *out)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, out)
    {
        if (!cJSON_IsArray(item)) {
            char *text = cJSON_IsString(item) ? NULL : cJSON_PrintUnformatted(item);
            printf("%-16s %s\n", item->string, text ? text : item->valuestring);
            free(text);
            continue;
        }
        printf("%-16s %d\n", item->string, cJSON_GetArraySize(item));
        const cJSON *entry;
        cJSON_ArrayForEach(entry, item)
        {
            char *text = cJSON_PrintUnformatted(entry);
            printf("  %s\n", text ? text : "");
            free(text);
        }
    }
}

static int run(const cli_command *self, int argc, char **argv)
{
    cli_common common;
    const char *path, *base = NULL;
    bool json = false;
    int n;
    const cli_option options[] = {{"--base", CLI_STRING, &base, "BASE", "say whether it fits this model folder or GGUF file"},
                                  {"--json", CLI_FLAG, &json, NULL, "for machines"},
                                  {0}};
    int rc = cli_parse(self, options, &common, argc, argv, &path, 1, 1, &n);
    if (rc >= 0) return rc;
    lk_error err = {0};
    char config[4200], adapter[4200];
    snprintf(config, sizeof config, "%s/config.json", path);
    snprintf(adapter, sizeof adapter, "%s/adapter_config.json", path);
    cJSON *out = cJSON_CreateObject();
    cJSON_AddStringToObject(out, "path", path);
    lk_status status;
    if (lk_path_exists(adapter))
        status = cli_inspect_adapter(out, path, base, &err);
    else if (lk_path_exists(config))
        status = inspect_model(out, path, base, &err);
    else if (lk_gguf_is_file(path))
        status = cli_inspect_gguf(out, path, base, &err);
    else if (cli_is_bundle(path))
        status = cli_inspect_bundle(out, path, base, &err);
    else if (cli_is_checkpoint(path))
        status = cli_inspect_checkpoint(out, path, base, &err);
    else if (lk_path_exists(path) && !lk_path_is_folder(path))
        status = inspect_file(out, path, base, &err);
    else
        status = lk_fail(
            &err, LK_ERR_NOT_FOUND,
            "%s is neither a model folder, nor an adapter folder, nor a bundle, nor a checkpoint, nor a safetensors or GGUF file", path);
    if (status) {
        rc = cli_fail(self, CLI_FAILED, "%s", err.message);
    } else {
        char *text = json ? cJSON_PrintUnformatted(out) : NULL;
        if (json)
            printf("%s\n", text ? text : "");
        else
            print_text(out);
        free(text);
        rc = CLI_DONE;
    }
    cJSON_Delete(out);
    return rc;
}

const cli_command cli_inspect = {
    "inspect", "PATH [--base BASE] [--json]", "what a model folder, adapter folder, bundle, checkpoint, safetensors or GGUF file holds",
    "With --base also whether it fits that model, and why not: an adapter by its layers, sizes and the base it is stamped with; a\n"
    "model, by its layers, sizes and weights (equal but for rounding, so that adapters mean the same on both); a checkpoint by the\n"
    "weights it was trained on; loose tensors by names and shapes.",
    run};
