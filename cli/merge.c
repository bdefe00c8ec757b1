/* lorikeet merge: adapters into one, and into their base; and how far the result is from what it stands for. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "cli/commands.h"
#include "cli/session.h"
#include "model/bnb.h"
#include "model/combine.h"
#include "model/drift.h"
#include "model/merge.h"

enum { MOST_CHECKED = 512 }; /* tokens: their logits are kept, twice */

typedef struct merge_command {
    const cli_command *self;
    cli_common common;
    const char *base, *adapters[LK_COMBINE_MOST], *out;
    int n_adapters;
    const char *into, *combine, *as, *weights, *check, *check_file;
    double density;
    int64_t rank, seed;
    bool by_frequency;
} merge_command;

static bool parse_into(const merge_command *c, lk_merge_into *into)
{
    static const char *const names[] = {"auto", "original", "dequantized", "nf4"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(names[i], c->into)) continue;
        *into = (lk_merge_into)i;
        return true;
    }
    cli_fail(c->self, CLI_USAGE, "--into is auto, original, dequantized or nf4, not '%s'", c->into);
    return false;
}

/* "0.7,-0.4": as many as there are adapters. */
static bool parse_weights(const merge_command *c, double *weights)
{
    const char *p = c->weights;
    for (int i = 0; i < c->n_adapters; i++) {
        char *end;
        weights[i] = p ? strtod(p, &end) : 1;
        if (!p) continue;
        if (end == p || *end != (i + 1 < c->n_adapters ? ',' : 0)) {
            cli_fail(c->self, CLI_USAGE, "--weights wants %d numbers separated by commas", c->n_adapters);
            return false;
        }
        p = end + 1;
    }
    return true;
}

static int combine(const merge_command *c, const char *out)
{
    double weights[LK_COMBINE_MOST];
    lk_combine_options o = {
        .weights = weights, .density = c->density, .rank = (int32_t)c->rank, .by_frequency = c->by_frequency, .seed = (uint64_t)c->seed};
    lk_error err = {0};
    if (!lk_combine_parse(c->combine, &o.kind))
        return cli_fail(c->self, CLI_USAGE, "--combine is cat, linear, svd, ties, dare_linear, dare_ties or magnitude_prune, not '%s'",
                        c->combine);
    if (c->rank < 0 || c->rank > 512) return cli_fail(c->self, CLI_USAGE, "--rank is 1 to 512");
    if (!parse_weights(c, weights)) return CLI_USAGE;
    if (lk_combine(out, c->adapters, c->n_adapters, &o, &err)) return cli_fail(c->self, CLI_FAILED, "%s", err.message);
    return -1;
}

/* ---- the check ---- */

static lk_status check_ids(const merge_command *c, int32_t **ids, int64_t *n, lk_error *err)
{
    lk_tokenizer *tk;
    char *text = NULL;
    size_t size = 0;
    LK_TRY(lk_tokenizer_open(&tk, c->base, err));
    lk_status status = LK_OK;
    if (c->check_file) status = lk_file_read(c->check_file, (size_t)64 << 20, &text, &size, err);
    if (!status) status = lk_tokenizer_encode(tk, text ? text : c->check, text ? size : strlen(c->check), LK_TK_SPECIALS, ids, n, err);
    free(text);
    lk_tokenizer_close(tk);
    if (!status && *n == 0) status = lk_fail(err, LK_ERR_ARGUMENT, "the text to check with is empty");
    if (*n > MOST_CHECKED) *n = MOST_CHECKED;
    return status;
}

/* The model the merge stands for is base and adapter as the adapter was trained: over 4-bit weights unless it is known, or was asked, to be
 * about the original ones. */
static lk_status measure(const merge_command *c, const char *adapter, const lk_merge_result *result, lk_error *err)
{
    int32_t *ids = NULL;
    int64_t n = 0, vocab = 0;
    float *reference = NULL, *merged = NULL;
    lk_backend *be = NULL;
    lk_quant quant = result->reference_nf4 ? LK_QUANT_NF4 : LK_QUANT_NONE;
    lk_backend_options options = {.device = c->common.device, .threads = (int)c->common.threads, .compute = LK_F32};
    lk_status status = check_ids(c, &ids, &n, err);
    if (!status) status = lk_backend_open(&be, &options, err);
    if (!status) status = lk_logits_of(&reference, &vocab, be, c->base, quant, adapter, ids, n, err);
    if (!status) status = lk_logits_of(&merged, &vocab, be, c->out, LK_QUANT_NONE, NULL, ids, n, err);
    if (!status) {
        lk_drift d = lk_drift_measure(reference, merged, n, vocab);
        printf("drift of the logits from the %s base with the adapter, over %lld tokens in fp32: max %.3g, mean %.3g, KL %.3g, same best "
               "token "
               "%.1f%%\n",
               quant == LK_QUANT_NF4 ? "4-bit" : "16-bit", (long long)n, d.max, d.mean, d.kl, 100 * d.same_top);
    }
    free(reference);
    free(merged);
    free(ids);
    lk_backend_close(be);
    return status;
}

/* ---- the merge ---- */

static int merge_one(const merge_command *c, const char *adapter, const lk_merge_options *options)
{
    static const char *const what[] = {"", "original weights", "dequantised 4-bit weights", "4-bit weights, quantised again"};
    lk_error err = {0};
    lk_merge_result result;
    if (lk_model_merge(c->base, adapter, c->out, options, &result, &err)) return cli_fail(c->self, CLI_FAILED, "%s", err.message);
    printf("%s: %lld matrices of %s merged into its %s, %lld other tensors, in %s%s\n", c->out, (long long)result.merged, c->base,
           what[result.into], (long long)result.copied, lk_dtype_name(options->dtype),
           result.untied ? "; head and embedding are no longer tied" : "");
    if ((c->check || c->check_file) && measure(c, adapter, &result, &err)) return cli_fail(c->self, CLI_FAILED, "%s", err.message);
    return CLI_DONE;
}

static int merge(const merge_command *c)
{
    lk_merge_options options = {.threads = (int)c->common.threads};
    if (!parse_into(c, &options.into)) return CLI_USAGE;
    /* Here --dtype is the type written, which may also be f16. */
    if (!strcmp(c->common.dtype, "f16"))
        options.dtype = LK_F16;
    else if (!cli_compute(c->self, &c->common, &options.dtype))
        return CLI_USAGE;
    if (c->n_adapters == 1) return merge_one(c, c->adapters[0], &options);
    char both[4200];
    snprintf(both, sizeof both, "%.4000s.combined", c->out);
    if (lk_path_exists(both))
        return cli_fail(c->self, CLI_FAILED, "%s is in the way: the combined adapter lies there while it is merged", both);
    int rc = combine(c, both);
    if (rc < 0) rc = merge_one(c, both, &options);
    lk_folder_remove(both, NULL);
    return rc;
}

static int run(const cli_command *self, int argc, char **argv)
{
    const char *paths[LK_COMBINE_MOST + 1];
    int n;
    merge_command c = {.self = self, .into = "auto", .combine = "cat", .as = "model", .seed = 1};
    const cli_option options[] = {
        {"-o", CLI_STRING, &c.out, "OUT", "the folder to write (required)"},
        {"--into", CLI_STRING, &c.into, "auto|original|dequantized|nf4",
         "which base weights the adapter is added to (auto: those it was trained on); nf4: dequantised, and the sum in 4 bits again"},
        {"--check", CLI_STRING, &c.check, "TEXT", "measure on this text how far the merged model is from base and adapter"},
        {"--check-file", CLI_STRING, &c.check_file, "FILE", "the same with a file's text (its first 512 tokens)"},
        {"--combine", CLI_STRING, &c.combine, "KIND",
         "of several adapters: cat (their exact sum), linear, svd, ties, dare_linear, dare_ties, "
         "magnitude_prune, as PEFT's add_weighted_adapter"},
        {"--weights", CLI_STRING, &c.weights, "W,W,...", "one for each adapter (1)"},
        {"--density", CLI_NUMBER, &c.density, "D", "ties, dare, magnitude_prune: share of the values that stay"},
        {"--rank", CLI_INT, &c.rank, "R", "svd: of the result (the largest of the adapters')"},
        {"--by-frequency", CLI_FLAG, &c.by_frequency, NULL, "ties: elect the sign of most adapters, not of their sum"},
        {"--seed", CLI_INT, &c.seed, "S", "dare: random seed (1)"},
        {"--as", CLI_STRING, &c.as, "model|adapter", "write a merged model, or the combined adapter itself (model)"},
        {0}};
    int rc = cli_parse(self, options, &c.common, argc, argv, paths, 2, LK_COMBINE_MOST + 1, &n);
    if (rc >= 0) return rc;
    if (!c.out) return cli_fail(self, CLI_USAGE, "-o OUT is required");
    if (c.check && c.check_file) return cli_fail(self, CLI_USAGE, "--check or --check-file, not both");
    c.base = paths[0];
    c.n_adapters = n - 1;
    memcpy(c.adapters, paths + 1, (size_t)c.n_adapters * sizeof *c.adapters);
    if (!strcmp(c.as, "model")) return merge(&c);
    if (strcmp(c.as, "adapter")) return cli_fail(self, CLI_USAGE, "--as is model or adapter, not '%s'", c.as);
    if (c.check || c.check_file) return cli_fail(self, CLI_USAGE, "--check is for merged models");
    if ((rc = combine(&c, c.out)) >= 0) return rc;
    printf("%s: %d adapters combined (%s)\n", c.out, c.n_adapters, c.combine);
    return CLI_DONE;
}

const cli_command cli_merge = {
    "merge", "BASE ADAPTER... -o OUT [--into original|dequantized|nf4] [--dtype bf16|f16|f32] [--check TEXT]",
    "write base and adapter as one model folder, or several adapters as one",
    "An adapter trained on 4-bit weights corrects those: merged into the original 16-bit weights it gives a slightly different model. The\n"
    "default merges into what the adapter was trained on; the line printed says which it was, and --check how much it matters.",
    run};
