/* Adapters and bundles, inspected. */
#include "cli/inspect.h"
#include "data/bundle.h"
#include "data/peft.h"
#include "model/adapter.h"

static void add_metadata(cJSON *out, const lk_peft *peft, const char *key, const char *field)
{
    const char *value = lk_peft_metadata(peft, key);
    if (value) cJSON_AddStringToObject(out, field, value);
}

static void add_module(cJSON *modules, const lk_peft_module *m)
{
    cJSON *item = cJSON_CreateObject();
    cJSON_AddStringToObject(item, "name", m->name);
    cJSON_AddNumberToObject(item, "rank", m->rank);
    lk_json_add_number(item, "scale", m->scale);
    cJSON_AddNumberToObject(item, "in", (double)m->a->shape[1]);
    cJSON_AddNumberToObject(item, "out", (double)m->b->shape[0]);
    if (m->experts) cJSON_AddNumberToObject(item, "experts", (double)m->experts);
    if (m->embedding) cJSON_AddTrueToObject(item, "embedding");
    if (m->magnitude) cJSON_AddTrueToObject(item, "dora");
    if (m->bias) cJSON_AddTrueToObject(item, "lora_bias");
    cJSON_AddItemToArray(modules, item);
}

static void add_value(cJSON *values, const lk_peft_value *v)
{
    static const char *const kinds[] = {"modules_to_save", "bias", "trainable_token_indices", "the base's own"};
    cJSON *item = cJSON_CreateObject();
    cJSON_AddStringToObject(item, "name", v->name);
    cJSON_AddStringToObject(item, "by", kinds[v->kind]);
    cJSON *shape = cJSON_AddArrayToObject(item, "shape");
    for (int d = 0; d < v->tensor->n_dims; d++) cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)v->tensor->shape[d]));
    cJSON_AddItemToArray(values, item);
}

static void describe(cJSON *out, const lk_peft *peft)
{
    cJSON_AddStringToObject(out, "base", lk_peft_base(peft));
    cJSON_AddStringToObject(out, "digest", lk_peft_digest(peft));
    add_metadata(out, peft, "lorikeet.base_identity", "base_identity");
    add_metadata(out, peft, "lorikeet.base_digest", "base_digest");
    add_metadata(out, peft, "lorikeet.quantization", "quantization");
    cJSON_AddBoolToObject(out, "use_rslora", lk_peft_use_rslora(peft));
    int64_t parameters = 0;
    cJSON *modules = cJSON_AddArrayToObject(out, "modules");
    for (int64_t i = 0; i < lk_peft_count(peft); i++) {
        const lk_peft_module *m = lk_peft_at(peft, i);
        add_module(modules, m);
        parameters += m->a->n_elements + m->b->n_elements;
        if (m->magnitude) parameters += m->magnitude->n_elements;
        if (m->bias) parameters += m->bias->n_elements;
    }
    cJSON *values = lk_peft_n_values(peft) ? cJSON_AddArrayToObject(out, "replaces") : NULL;
    for (int64_t i = 0; i < lk_peft_n_values(peft); i++) {
        add_value(values, lk_peft_value_at(peft, i));
        parameters += lk_peft_value_at(peft, i)->kind == LK_PEFT_BASE ? 0 : lk_peft_value_at(peft, i)->tensor->n_elements;
    }
    cJSON_AddNumberToObject(out, "parameters", (double)parameters);
}

static void add_fit(cJSON *out, const lk_peft *peft, const char *path, const char *base)
{
    lk_error why = {0};
    if (base) cli_add_fit(out, lk_adapter_fits(peft, path, base, &why), &why);
}

lk_status cli_inspect_adapter(cJSON *out, const char *path, const char *base, lk_error *err)
{
    lk_peft *peft;
    LK_TRY(lk_peft_open(&peft, path, NULL, err));
    cJSON_AddStringToObject(out, "kind", "adapter");
    describe(out, peft);
    add_fit(out, peft, path, base);
    lk_peft_close(peft);
    return LK_OK;
}

bool cli_is_bundle(const char *path) { return cli_begins_with(path, "\x28\xb5\x2f\xfd", 4); }

lk_status cli_inspect_bundle(cJSON *out, const char *path, const char *base, lk_error *err)
{
    lk_bundle *bundle;
    LK_TRY(lk_bundle_open(&bundle, path, NULL, err));
    cJSON_AddStringToObject(out, "kind", "bundle");
    cJSON_AddStringToObject(out, "signed_by", lk_bundle_signer(bundle) ? lk_bundle_signer(bundle) : "nobody");
    cJSON_AddItemToObject(out, "files", cJSON_Duplicate(lk_json_get(lk_bundle_manifest(bundle), "files"), 1));
    lk_bundle_close(bundle);
    lk_peft *peft;
    LK_TRY(lk_peft_open(&peft, path, NULL, err));
    describe(out, peft);
    add_fit(out, peft, path, base);
    lk_peft_close(peft);
    return LK_OK;
}
