#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/ranks.h"
#include "cli/commands.h"
#include "cli/stop.h"
#include "train/train.h"

static int exit_code(lk_status status)
{
    if (status == LK_ERR_INTERRUPTED) return CLI_INTERRUPTED;
    return status == LK_ERR_ARGUMENT ? CLI_USAGE : CLI_FAILED;
}

static void print_result(const lk_train_result *r, bool dry_run)
{
    if (dry_run) {
        printf("the recipe is good: %lld steps would be trained\n", (long long)r->steps);
        return;
    }
    printf("%s/adapter: %lld steps", r->folder, (long long)r->steps);
    if (r->first_step) printf(" (%lld before this process)", (long long)r->first_step);
    if (isfinite(r->loss)) printf(", last loss %.4f", r->loss);
    if (r->evaluated && isfinite(r->before.loss))
        printf(", held-out loss %.4f -> %.4f", r->before.loss, r->after.loss);
    else if (r->evaluated)
        printf(", held-out loss %.4f", r->after.loss);
    printf(", %.1f s, adapter %.12s\n", r->seconds, r->adapter_digest);
}

static int run(const cli_command *self, int argc, char **argv)
{
    cli_common common;
    const char *recipe, *out = NULL;
    static cli_list sets;
    int64_t processes = 1;
    bool resume = false, fresh = false, dry_run = false, quiet = false;
    int n;
    const cli_option options[] = {{"--set", CLI_LIST, &sets, "key=value", "change one value of the recipe: --set optim.lr=1e-4"},
                                  {"--out", CLI_STRING, &out, "DIR", "run folder (runs/NAME)"},
                                  {"--resume", CLI_FLAG, &resume, NULL, "go on from the newest valid checkpoint of the run folder"},
                                  {"--fresh", CLI_FLAG, &fresh, NULL, "remove an earlier run in the folder first"},
                                  {"--dry-run", CLI_FLAG, &dry_run, NULL, "check recipe, data and masks, print the plan, train nothing"},
                                  {"--processes", CLI_INT, &processes, "N", "share each step between N processes, one a GPU (1)"},
                                  {"--quiet", CLI_FLAG, &quiet, NULL, "no progress"},
                                  {0}};
    int rc = cli_parse(self, options, &common, argc, argv, &recipe, 1, 1, &n);
    if (rc >= 0) return rc;
    if (resume && fresh) return cli_fail(self, CLI_USAGE, "--resume and --fresh contradict each other");
    if (processes < 1 || processes > LK_MAX_RANKS) return cli_fail(self, CLI_USAGE, "--processes takes 1 to %d", LK_MAX_RANKS);
    cli_stop_install();
    lk_train_options train = {.recipe = recipe,
                              .sets = sets.items,
                              .n_sets = sets.n,
                              .out = out,
                              .resume = resume,
                              .fresh = fresh,
                              .dry_run = dry_run,
                              .device = common.device,
                              .threads = (int)common.threads,
                              .processes = (int)processes,
                              .quiet = quiet,
                              .stop = &cli_stop};
    lk_train_result result;
    lk_error err = {0};
    lk_status status = lk_train_run(&result, &train, &err);
    if (status) return cli_fail(self, exit_code(status), "%s", err.message);
    print_result(&result, dry_run);
    return CLI_DONE;
}

const cli_command cli_train = {"train", "RECIPE [--set key=value]... [--out DIR] [--resume|--fresh] [--dry-run] [--processes N]",
                               "train a LoRA adapter as a recipe says",
                               "The run folder gets adapter/ (PEFT), checkpoints/, metrics.jsonl and run.json. Ctrl-C or SIGTERM writes a "
                               "checkpoint and leaves with 75;\n"
                               "--resume then gives exactly what the uninterrupted run would have given.",
                               run};
