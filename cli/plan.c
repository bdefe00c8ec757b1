#include <stdio.h>
#include <stdlib.h>

#include "cli/commands.h"
#include "train/train.h"

static int run(const cli_command *self, int argc, char **argv)
{
    cli_common common;
    const char *recipe;
    static cli_list sets;
    const char *device = NULL;
    bool json = false;
    int n;
    const cli_option options[] = {{"--set", CLI_LIST, &sets, "key=value", "change one value of the recipe"},
                                  {"--for", CLI_STRING, &device, "DEVICE", "plan for this device of this machine: the same as --device"},
                                  {"--json", CLI_FLAG, &json, NULL, "for machines"},
                                  {0}};
    int rc = cli_parse(self, options, &common, argc, argv, &recipe, 1, 1, &n);
    if (rc >= 0) return rc;
    lk_train_options train = {.recipe = recipe,
                              .sets = sets.items,
                              .n_sets = sets.n,
                              .device = device ? device : common.device,
                              .threads = (int)common.threads,
                              .quiet = true};
    lk_plan plan;
    lk_error err = {0};
    lk_status status = lk_train_plan(&plan, &train, &err);
    if (status) return cli_fail(self, status == LK_ERR_ARGUMENT ? CLI_USAGE : CLI_FAILED, "%s", err.message);
    char *text = json ? lk_plan_json(&plan) : lk_plan_text(&plan);
    printf("%s%s", text ? text : "", json ? "\n" : "");
    free(text);
    return CLI_DONE;
}

const cli_command cli_plan = {"plan", "RECIPE [--set key=value]... [--for DEVICE] [--json]",
                              "peak memory of a run, term by term, before anything loads", NULL, run};
