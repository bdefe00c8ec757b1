#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "model/merge.h"

static int run(const cli_command *self, int argc, char **argv)
{
    cli_common common;
    const char *out = NULL, *into = "auto", *paths[2];
    int n;
    const cli_option options[] = {{"-o", CLI_STRING, &out, "OUT", "the folder to write (required)"},
                                  {"--into", CLI_STRING, &into, "auto|original|dequantized",
                                   "which base weights the adapter is added to (auto: those it was trained on)"},
                                  {0}};
    int rc = cli_parse(self, options, &common, argc, argv, paths, 2, 2, &n);
    if (rc >= 0) return rc;
    if (!out) return cli_fail(self, CLI_USAGE, "-o OUT is required");
    lk_merge_options merge = {.threads = (int)common.threads};
    if (!strcmp(into, "auto"))
        merge.into = LK_MERGE_AUTO;
    else if (!strcmp(into, "original"))
        merge.into = LK_MERGE_ORIGINAL;
    else if (!strcmp(into, "dequantized"))
        merge.into = LK_MERGE_DEQUANTIZED;
    else
        return cli_fail(self, CLI_USAGE, "--into is auto, original or dequantized, not '%s'", into);
    /* Here --dtype is the type written, which may also be f16. */
    if (!strcmp(common.dtype, "f16"))
        merge.dtype = LK_F16;
    else if (!cli_compute(self, &common, &merge.dtype))
        return CLI_USAGE;
    lk_error err = {0};
    lk_merge_result result;
    if (lk_model_merge(paths[0], paths[1], out, &merge, &result, &err)) return cli_fail(self, CLI_FAILED, "%s", err.message);
    printf("%s: %lld matrices of %s merged into its %s weights, %lld other tensors, in %s\n", out, (long long)result.merged, paths[0],
           result.into == LK_MERGE_DEQUANTIZED ? "dequantised 4-bit" : "original", (long long)result.copied, lk_dtype_name(merge.dtype));
    return CLI_DONE;
}

const cli_command cli_merge = {
    "merge", "BASE ADAPTER -o OUT [--into original|dequantized] [--dtype bf16|f16|f32]", "write base and adapter as one model folder",
    "An adapter trained on 4-bit weights corrects those: merged into the original 16-bit weights it gives a slightly different model. The\n"
    "default merges into what the adapter was trained on; the last line printed says which it was.",
    run};
