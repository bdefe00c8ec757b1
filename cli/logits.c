#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"
#include "cli/commands.h"
#include "cli/session.h"
#include "data/safetensors.h"
#include "model/adapter.h"
#include "model/transformer.h"

static lk_status compute(const lk_model *model, const char *adapter_path, const int32_t *ids, int64_t n, float *out, lk_error *err)
{
    lk_adapter *adapter = NULL;
    lk_pass *pass = NULL;
    lk_lora *table = NULL;
    lk_adapter_tables tables;
    int32_t *positions = malloc((size_t)n * 4), starts[2] = {0, (int32_t)n};
    lk_segment segment = {0, n, 0};
    lk_batch batch = {.n_tokens = n, .ids = ids, .positions = positions, .n_docs = 1, .doc_starts = starts};
    lk_status status = positions ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "no memory for %lld tokens", (long long)n);
    if (!status && adapter_path) status = lk_adapter_load(&adapter, model, adapter_path, LK_F32, err);
    if (!status)
        status = lk_pass_create(&pass, model, &(lk_pass_options){.max_tokens = n, .max_rank = adapter ? adapter->max_rank : 0}, err);
    if (status) goto out;
    for (int64_t i = 0; i < n; i++) positions[i] = (int32_t)i;
    if (adapter) {
        table = calloc((size_t)adapter->n_sites, sizeof *table);
        if (!table) {
            status = lk_fail(err, LK_ERR_MEMORY, "no memory for the adapter table");
            goto out;
        }
        lk_adapter_table(table, (const lk_adapter *const *)&adapter, 1, NULL);
        batch.n_segments = 1;
        batch.segments = &segment;
        batch.n_sites = adapter->n_sites;
        batch.n_adapters = 1;
        batch.lora = table;
        batch.tables = lk_adapter_fill_tables(&tables, (const lk_adapter *const *)&adapter, 1);
    }
    status = lk_pass_logits(pass, &batch, out, err);
out:
    lk_pass_destroy(pass);
    lk_adapter_destroy(adapter);
    free(table);
    free(positions);
    return status;
}

static lk_status save(const char *path, const int32_t *ids, int64_t n, const float *logits, int64_t vocab, lk_error *err)
{
    char folder[4096], name[4096];
    LK_TRY(lk_path_folder(folder, sizeof folder, path, err));
    const char *slash = path;
    for (const char *p = path; *p; p++)
        if (*p == '/') slash = p + 1;
    snprintf(name, sizeof name, "%s", slash);
    char *dot = NULL;
    for (char *p = name; *p; p++)
        if (*p == '.') dot = p;
    if (dot) *dot = 0; /* the writer adds .safetensors */
    lk_st_writer *w;
    LK_TRY(lk_st_writer_create(&w, folder, name, 0, err));
    int64_t shape[2] = {n, vocab};
    lk_status status = lk_st_writer_declare(w, "ids", LK_I32, 1, &n, err);
    if (!status) status = lk_st_writer_declare(w, "logits", LK_F32, 2, shape, err);
    if (!status) status = lk_st_writer_write(w, ids, (size_t)n * 4, err);
    if (!status) status = lk_st_writer_write(w, logits, (size_t)(n * vocab) * 4, err);
    if (!status) return lk_st_writer_commit(w, err);
    lk_st_writer_abort(w);
    return status;
}

static int run(const cli_command *self, int argc, char **argv)
{
    cli_common common;
    const char *base, *adapter = NULL, *ids_text = NULL, *out = NULL, *quant = "nf4";
    int n_args;
    const cli_option options[] = {{"--adapter", CLI_STRING, &adapter, "PATH", "a PEFT folder or a bundle"},
                                  {"--ids", CLI_STRING, &ids_text, "1,2,3", "token ids (required)"},
                                  {"-o", CLI_STRING, &out, "FILE", "safetensors file to write: ids I32 [T], logits F32 [T,V] (required)"},
                                  {"--quant", CLI_STRING, &quant, "nf4|nf4-head|none", "quantise the linear layers (nf4), and the head"},
                                  {0}};
    int rc = cli_parse(self, options, &common, argc, argv, &base, 1, 1, &n_args);
    if (rc >= 0) return rc;
    if (!ids_text || !out) return cli_fail(self, CLI_USAGE, "--ids and -o are required");
    int32_t *ids;
    int64_t n;
    if (!cli_parse_ids(self, ids_text, &ids, &n)) return CLI_USAGE;
    cli_session s;
    float *logits = NULL;
    if ((rc = cli_session_open(&s, self, &common, base, quant, 0)) >= 0) goto out;
    lk_error err = {0};
    logits = malloc((size_t)(n * s.model->config.vocab) * 4);
    if (!logits) lk_fail(&err, LK_ERR_MEMORY, "no memory for %lld x %lld logits", (long long)n, (long long)s.model->config.vocab);
    if (!logits || compute(s.model, adapter, ids, n, logits, &err) || save(out, ids, n, logits, s.model->config.vocab, &err)) {
        rc = cli_fail(self, CLI_FAILED, "%s", err.message);
    } else {
        printf("%s: logits of %lld positions\n", out, (long long)n);
        rc = CLI_DONE;
    }
    cli_session_close(&s);
out:
    free(logits);
    free(ids);
    return rc;
}

const cli_command cli_logits = {"logits", "BASE [--adapter PATH] --ids 1,2,3 -o FILE.safetensors",
                                "write the logits of every position, for comparison with other programs", NULL, run};
