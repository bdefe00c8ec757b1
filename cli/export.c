/* lorikeet export: a table of targets, one file each. */
#include "cli/export.h"

#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "data/bundle.h"

/* PATH is an adapter folder. */
static lk_status to_bundle(const cli_export *e, lk_error *err)
{
    if (e->n_paths != 1) return lk_fail(err, LK_ERR_ARGUMENT, "a bundle is made of one adapter folder, not of %d paths", e->n_paths);
    LK_TRY(lk_bundle_adapter(e->out, e->paths[0], e->recipe, e->sign, err));
    lk_bundle *bundle;
    LK_TRY(lk_bundle_open(&bundle, e->out, NULL, err));
    printf("%s: %d files of %s", e->out, lk_bundle_count(bundle), e->paths[0]);
    const char *signer = lk_bundle_signer(bundle);
    if (signer)
        printf(", signed by %s\n", signer);
    else
        printf(", not signed\n");
    lk_bundle_close(bundle);
    return LK_OK;
}

#define TARGETS "safetensors|gguf|gguf-lora|ollama|bundle"

static const struct {
    const char *name;
    lk_status (*run)(const cli_export *e, lk_error *err);
} targets[] = {
    {"safetensors", cli_to_safetensors}, {"gguf", cli_to_gguf}, {"gguf-lora", cli_to_gguf_lora},
    {"ollama", cli_to_ollama},           {"bundle", to_bundle},
};
enum { N_TARGETS = sizeof targets / sizeof targets[0] };

static int run(const cli_command *self, int argc, char **argv)
{
    cli_common common;
    cli_export e = {0};
    const char *to = NULL;
    const cli_option options[] = {
        {"-o", CLI_STRING, &e.out, "OUT", "what to write (required)"},
        {"--to", CLI_STRING, &to, TARGETS, "the kind of export (required)"},
        {"--type", CLI_STRING, &e.type, "f16|bf16|f32|q8_0|q4_0|q4_k_m", "type of the matrices (gguf: f16; safetensors: bf16)"},
        {"--shard-size", CLI_BYTES, &e.shard_bytes, "BYTES", "safetensors: of a file, at most (5G)"},
        {"--pre", CLI_STRING, &e.pre, "NAME", "gguf: llama.cpp's name of the rules that split text"},
        {"--recipe", CLI_STRING, &e.recipe, "FILE", "bundle: the recipe that made the adapter"},
        {"--sign", CLI_STRING, &e.sign, "KEY.pem", "bundle: sign with this Ed25519 private key"},
        {0}};
    int rc = cli_parse(self, options, &common, argc, argv, e.paths, 1, 2, &e.n_paths);
    if (rc >= 0) return rc;
    e.threads = (int)common.threads;
    if (!e.out || !to) return cli_fail(self, CLI_USAGE, "-o OUT and --to are required");
    for (int i = 0; i < N_TARGETS; i++) {
        lk_error err = {0};
        if (strcmp(targets[i].name, to)) continue;
        return targets[i].run(&e, &err) ? cli_fail(self, CLI_FAILED, "%s", err.message) : CLI_DONE;
    }
    return cli_fail(self, CLI_USAGE, "--to is " TARGETS ", not '%s'", to);
}

const cli_command cli_export_command = {
    "export", "BASE [ADAPTER] -o OUT --to " TARGETS, "write a model or an adapter in a form for other programs",
    "safetensors: BASE, with ADAPTER merged into it, as a Hugging Face folder in 16 or 32 bits, for transformers and vLLM.\n"
    "gguf: BASE, with ADAPTER merged into it, as one file for llama.cpp, tokenizer and chat template included.\n"
    "gguf-lora: ADAPTER on BASE as an adapter file for llama.cpp (--lora).\n"
    "ollama: a folder with model.gguf, adapter.gguf where there is an ADAPTER, and the Modelfile for them.\n"
    "bundle: PATH of an adapter folder only; one file (tar.zst) with the adapter, run.json and metrics.jsonl of its run where they are,\n"
    "digests of all, and with --sign a signature. serve, generate, eval, logits and merge take it in place of an adapter folder.",
    run};
