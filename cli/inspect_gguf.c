/* What a GGUF file holds: a model, with what a model folder is described by, or an adapter. */
#include <string.h>

#include "base/pool.h"
#include "cli/inspect.h"
#include "data/gguf.h"
#include "model/fits.h"
#include "model/gguf_config.h"
#include "model/sites.h"
#include "model/weights.h"

enum { MOST_TEXT = 200 };

static void add_text(cJSON *out, const lk_gguf *g, const char *key, const char *field)
{
    const lk_gguf_value *v = lk_gguf_key(g, key);
    char text[MOST_TEXT + 1];
    if (!v || v->type != LK_GGUF_STRING || v->texts->n > MOST_TEXT) return;
    memcpy(text, v->texts->p, v->texts->n);
    text[v->texts->n] = 0;
    cJSON_AddStringToObject(out, field, text);
}

/* {"q8_0": 12, "f32": 5} */
static void add_types(cJSON *out, const lk_gguf *g)
{
    cJSON *types = cJSON_AddObjectToObject(out, "types");
    for (int64_t i = 0; i < lk_gguf_count(g); i++) {
        const char *name = lk_gguf_at(g, i)->type->name;
        cJSON *item = cJSON_GetObjectItemCaseSensitive(types, name);
        if (item)
            cJSON_SetNumberValue(item, item->valuedouble + 1);
        else
            cJSON_AddNumberToObject(types, name, 1);
    }
}

/* An adapter's tensors with their shapes, as GGUF names them. */
static void add_factors(cJSON *out, const lk_gguf *g)
{
    cJSON *factors = cJSON_AddArrayToObject(out, "factors");
    for (int64_t i = 0; i < lk_gguf_count(g); i++) {
        const lk_gguf_tensor *t = lk_gguf_at(g, i);
        cJSON *item = cJSON_CreateObject();
        cJSON_AddStringToObject(item, "name", t->name);
        cJSON *shape = cJSON_AddArrayToObject(item, "shape");
        for (int d = 0; d < t->n_dims; d++) cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)t->shape[d]));
        cJSON_AddItemToArray(factors, item);
    }
}

static lk_status add_model(cJSON *out, const lk_gguf *g, const char *path, lk_error *err)
{
    lk_config c;
    lk_safetensors *st = NULL;
    lk_pool *pool = NULL;
    char identity[65];
    LK_TRY(lk_gguf_read_config(&c, g, err));
    lk_status status = lk_weights_open(&st, path, &c, err);
    if (!status) status = lk_pool_create(&pool, 0, err);
    if (!status) status = lk_weights_identity(st, &c, pool, identity, err);
    if (!status) {
        cli_inspect_config(out, &c);
        cJSON_AddStringToObject(out, "identity", identity);
    }
    lk_pool_destroy(pool);
    lk_safetensors_close(st);
    return status;
}

lk_status cli_inspect_gguf(cJSON *out, const char *path, const char *base, lk_error *err)
{
    lk_gguf *g;
    LK_TRY(lk_gguf_open(&g, path, err));
    const lk_gguf_value *type = lk_gguf_key(g, "general.type");
    bool adapter = type && type->type == LK_GGUF_STRING && type->texts->n == 7 && !memcmp(type->texts->p, "adapter", 7);
    lk_status status = LK_OK;
    cJSON_AddStringToObject(out, "kind", adapter ? "gguf adapter" : "gguf");
    add_text(out, g, "general.architecture", "architecture");
    add_text(out, g, "general.name", "name");
    add_text(out, g, "tokenizer.ggml.model", "tokenizer");
    add_text(out, g, "tokenizer.ggml.pre", "pretokenizer");
    if (!adapter) cJSON_AddBoolToObject(out, "chat_template", lk_gguf_key(g, "tokenizer.chat_template") != NULL);
    double alpha = 0;
    if (adapter && !(status = lk_gguf_opt_number(g, "adapter.lora.alpha", &alpha, err))) cJSON_AddNumberToObject(out, "alpha", alpha);
    cJSON_AddNumberToObject(out, "tensors", (double)lk_gguf_count(g));
    add_types(out, g);
    if (!adapter && !status) status = add_model(out, g, path, err);
    if (adapter && !status) add_factors(out, g);
    lk_error why = {0};
    if (base && adapter && !status) cli_add_fit(out, lk_gguf_lora_fits(g, base, &why), &why);
    if (base && !adapter && !status) cli_add_model_fit(out, path, base);
    lk_gguf_close(g);
    return status;
}
