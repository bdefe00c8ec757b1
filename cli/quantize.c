#include <stdio.h>

#include "base/clock.h"
#include "cli/commands.h"
#include "model/model.h"

static int run(const cli_command *self, int argc, char **argv)
{
    cli_common common;
    const char *out = NULL, *base;
    int n;
    const cli_option options[] = {{"-o", CLI_STRING, &out, "OUT", "the folder to write (required)"}, {0}};
    int rc = cli_parse(self, options, &common, argc, argv, &base, 1, 1, &n);
    if (rc >= 0) return rc;
    if (!out) return cli_fail(self, CLI_USAGE, "-o OUT is required");
    lk_error err = {0};
    double start = lk_clock_seconds();
    if (lk_model_quantize(base, out, (int)common.threads, &err)) return cli_fail(self, CLI_FAILED, "%s", err.message);
    printf("%s: 4-bit NF4 of %s, as bitsandbytes keeps it (%.1f s)\n", out, base, lk_clock_seconds() - start);
    return CLI_DONE;
}

const cli_command cli_quantize = {
    "quantize", "BASE -o OUT", "write a 4-bit copy of a model folder (bitsandbytes NF4)",
    "The linear layers are quantised (NF4, blocks of 64, double quantisation); embedding, head and norms stay as they are. Opening the\n"
    "copy is faster and takes less disk; adapters trained on BASE with nf4 mean the same on it.",
    run};
