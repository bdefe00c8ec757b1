/* lorikeet export --to gguf and gguf-lora. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/export.h"
#include "model/export_gguf.h"
#include "model/merge.h"

static void show_progress(void *context, int64_t done, int64_t total)
{
    (void)context;
    fprintf(stderr, "\rwriting %lld/%lld%s", (long long)done, (long long)total, done == total ? "\r\033[K" : "");
    fflush(stderr);
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

/* The merged model lies in a folder beside the file while that is written: one matrix at a time is all that is ever in memory. */
static lk_status merge_beside(const cli_export *e, char folder[4200], lk_error *err)
{
    snprintf(folder, 4200, "%s.merged-%ld", e->out, (long)getpid());
    lk_merge_options merge = {.dtype = LK_BF16, .threads = e->threads};
    if (!e->type || !strcmp(e->type, "f16")) merge.dtype = LK_F16;
    if (e->type && !strcmp(e->type, "f32")) merge.dtype = LK_F32;
    lk_merge_result result;
    return lk_model_merge(e->paths[0], e->paths[1], folder, &merge, &result, err);
}

lk_status cli_to_gguf(const cli_export *e, lk_error *err)
{
    char merged[4200] = "";
    lk_gguf_export_options options = {.type = e->type, .pre = e->pre, .threads = e->threads};
    lk_gguf_export_result result;
    options.progress = isatty(STDERR_FILENO) ? show_progress : NULL;
    options.name = last_part(e->paths[e->n_paths - 1]);
    lk_status status = e->n_paths == 2 ? merge_beside(e, merged, err) : LK_OK;
    if (!status) status = lk_export_gguf(*merged ? merged : e->paths[0], e->out, &options, &result, err);
    if (*merged) lk_folder_remove(merged, NULL);
    if (status) return status;
    printf("%s: %lld tensors in %s, %.1f MB", e->out, (long long)result.tensors, e->type ? e->type : "f16", (double)result.bytes / 1e6);
    if (result.fallbacks) printf("; %lld of them in a wider type, as their rows are no whole blocks", (long long)result.fallbacks);
    printf("\n");
    return LK_OK;
}

lk_status cli_to_gguf_lora(const cli_export *e, lk_error *err)
{
    lk_gguf_export_result result;
    if (e->n_paths != 2)
        return lk_fail(err, LK_ERR_ARGUMENT, "gguf-lora needs BASE and ADAPTER: the base says how llama.cpp orders the rows");
    LK_TRY(lk_export_gguf_lora(e->paths[0], e->paths[1], e->out, &result, err));
    printf("%s: %lld factors of %s, %.1f MB\n", e->out, (long long)result.tensors, e->paths[1], (double)result.bytes / 1e6);
    return LK_OK;
}
