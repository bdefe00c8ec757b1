/* lorikeet export --to safetensors and ollama: folders. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "cli/export.h"
#include "data/chat/modelfile.h"
#include "data/tokenizer/tokenizer.h"
#include "model/config.h"
#include "model/export_gguf.h"
#include "model/folder.h"
#include "model/merge.h"

lk_status cli_to_safetensors(const cli_export *e, lk_error *err)
{
    const char *type = e->type ? e->type : "bf16";
    lk_merge_options options = {.dtype = LK_BF16, .threads = e->threads, .shard_bytes = e->shard_bytes};
    if (!strcmp(type, "f16"))
        options.dtype = LK_F16;
    else if (!strcmp(type, "f32"))
        options.dtype = LK_F32;
    else if (strcmp(type, "bf16"))
        return lk_fail(err, LK_ERR_ARGUMENT, "a safetensors folder is written in bf16, f16 or f32, not '%.40s'", type);
    if (e->shard_bytes < 0) return lk_fail(err, LK_ERR_ARGUMENT, "--shard-size must be more than 0");
    lk_merge_result result;
    LK_TRY(lk_model_merge(e->paths[0], e->n_paths == 2 ? e->paths[1] : NULL, e->out, &options, &result, err));
    printf("%s: %lld tensors in %s", e->out, (long long)(result.merged + result.copied), type);
    if (e->n_paths == 2) printf(", %lld of them changed by %s", (long long)result.merged, e->paths[1]);
    printf("\n");
    return LK_OK;
}

/* The id of every token that ends a text, as text; the tokenizer's own end of text first. */
static lk_status write_modelfile(const cli_export *e, lk_error *err)
{
    char path[4200], *text = NULL;
    lk_config config;
    lk_tokenizer *tk = NULL;
    LK_TRY(lk_config_read(&config, e->paths[0], err));
    lk_status status = lk_tokenizer_open(&tk, e->paths[0], err);
    if (!status) status = lk_modelfile(&text, tk, config.eos, config.n_eos, e->n_paths == 2, err);
    if (!status) status = lk_path_join(path, sizeof path, e->out, "Modelfile", err);
    if (!status) status = lk_file_replace(path, text, strlen(text), err);
    free(text);
    lk_tokenizer_close(tk);
    return status;
}

lk_status cli_to_ollama(const cli_export *e, lk_error *err)
{
    char model[4200], adapter[4200];
    lk_gguf_export_options options = {.type = e->type, .pre = e->pre, .threads = e->threads};
    lk_gguf_export_result result;
    LK_TRY(lk_path_join(model, sizeof model, e->out, "model.gguf", err));
    LK_TRY(lk_path_join(adapter, sizeof adapter, e->out, "adapter.gguf", err));
    LK_TRY(lk_folder_prepare_output(e->paths[0], e->out, err));
    lk_status status = lk_export_gguf(e->paths[0], model, &options, &result, err);
    if (!status && e->n_paths == 2) status = lk_export_gguf_lora(e->paths[0], e->paths[1], adapter, &result, err);
    if (!status) status = write_modelfile(e, err);
    if (status) {
        lk_folder_remove(e->out, NULL);
        return status;
    }
    printf("%s: model.gguf%s and a Modelfile: ollama create NAME -f %s/Modelfile\n", e->out, e->n_paths == 2 ? ", adapter.gguf" : "",
           e->out);
    return LK_OK;
}
