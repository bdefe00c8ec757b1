#include <stdio.h>

#include "cli/commands.h"
#include "kernels/ops.h"
#include "train/plan.h"

static int run(const cli_command *self, int argc, char **argv)
{
    cli_common common;
    int n;
    const char *unused;
    const cli_option options[] = {{0}};
    int rc = cli_parse(self, options, &common, argc, argv, &unused, 0, 0, &n);
    if (rc >= 0) return rc;
    printf("lorikeet %s\n", LK_VERSION);
    static const char *const devices[] = {"cpu", "cuda"};
    for (int i = 0; i < 2; i++) {
        lk_backend *be;
        lk_error err = {0};
        if (lk_backend_open(&be, &(lk_backend_options){.device = devices[i], .threads = (int)common.threads, .compute = LK_BF16}, &err)) {
            printf("%-7s no: %s\n", devices[i], err.message);
            continue;
        }
        const char *about = lk_backend_about(be);
        printf("%-7s yes: %s, %d threads%s%s\n", devices[i], lk_backend_name(be), lk_backend_threads(be), *about ? "; " : "", about);
        lk_backend_close(be);
    }
    printf("memory  %.1f GiB available\n", (double)lk_memory_available() / 1073741824.0);
    return CLI_DONE;
}

const cli_command cli_doctor = {"doctor", "", "what this machine offers to this program", NULL, run};
