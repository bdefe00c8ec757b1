/* What every target of `lorikeet export` gets. */
#ifndef LK_CLI_EXPORT_H
#define LK_CLI_EXPORT_H

#include <stdint.h>

#include "base/status.h"

typedef struct cli_export {
    const char *paths[2]; /* as on the command line: BASE and ADAPTER, or one of them */
    int n_paths;
    const char *out;
    const char *recipe, *sign; /* bundle; NULL: none */
    const char *type;          /* gguf, ollama, safetensors: element type; NULL: the target's own default */
    const char *pre;           /* gguf, ollama: llama.cpp's name of the pre-tokeniser; NULL: as recognised */
    int64_t shard_bytes;       /* safetensors */
    int threads;
} cli_export;

lk_status cli_to_safetensors(const cli_export *e, lk_error *err);
lk_status cli_to_ollama(const cli_export *e, lk_error *err);
lk_status cli_to_gguf(const cli_export *e, lk_error *err);
lk_status cli_to_gguf_lora(const cli_export *e, lk_error *err);

#endif
