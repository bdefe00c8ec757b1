/* Every command of the program, one file each. */
#ifndef LK_CLI_COMMANDS_H
#define LK_CLI_COMMANDS_H

#include "cli/args.h"

extern const cli_command cli_train, cli_plan, cli_eval, cli_generate, cli_logits, cli_chat, cli_serve, cli_quantize, cli_merge, cli_inspect,
    cli_tokenize, cli_doctor, cli_export_command;

#endif
