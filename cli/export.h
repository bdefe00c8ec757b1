/* What every target of `lorikeet export` gets. */
#ifndef LK_CLI_EXPORT_H
#define LK_CLI_EXPORT_H

typedef struct cli_export {
    const char *paths[2]; /* as on the command line: BASE and ADAPTER, or one of them */
    int n_paths;
    const char *out;
    const char *recipe, *sign; /* bundle; NULL: none */
} cli_export;

#endif
