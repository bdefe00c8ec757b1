/* lorikeet: one program, a command a job. The only place that turns errors into exit codes. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"

static const cli_command *const commands[] = {&cli_train,  &cli_plan,           &cli_eval,  &cli_generate, &cli_chat,
                                              &cli_serve,  &cli_quantize,       &cli_merge, &cli_inspect,  &cli_tokenize,
                                              &cli_logits, &cli_export_command, &cli_doctor};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

static void usage(FILE *out)
{
    fprintf(out,
            "lorikeet %s - fine-tune adapters on a 4-bit base model and serve many of them at once\n\nUsage: lorikeet COMMAND "
            "...\n\nCommands:\n",
            LK_VERSION);
    for (int i = 0; i < N_COMMANDS; i++) fprintf(out, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(
        out,
        "\n'lorikeet COMMAND --help' explains one. Exit codes: 0 done, 1 failed, 2 wrong usage or recipe, 75 interrupted but resumable.\n");
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN); /* a reader that goes away is an error of write, not the end of the program */
    if (argc < 2) {
        usage(stderr);
        return CLI_USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        usage(stdout);
        return CLI_DONE;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("lorikeet %s\n", LK_VERSION);
        return CLI_DONE;
    }
    const char *nearest = NULL;
    int best = 4;
    for (int i = 0; i < N_COMMANDS; i++) {
        if (!strcmp(argv[1], commands[i]->name)) return commands[i]->run(commands[i], argc - 1, argv + 1);
        int d = cli_distance(argv[1], commands[i]->name);
        if (d < best) best = d, nearest = commands[i]->name;
    }
    fprintf(stderr, "lorikeet: unknown command '%s'", argv[1]);
    if (nearest) fprintf(stderr, "; did you mean '%s'?", nearest);
    fprintf(stderr, "\n");
    usage(stderr);
    return CLI_USAGE;
}
