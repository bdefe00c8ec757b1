/* The program's answer to Ctrl-C and SIGTERM: a flag that long work looks at. */
#ifndef LK_CLI_STOP_H
#define LK_CLI_STOP_H

#include <signal.h>

extern volatile sig_atomic_t cli_stop; /* 1 after SIGINT or SIGTERM */

/* The first signal sets the flag; a second one ends the program at once. */
void cli_stop_install(void);

/* Sleeps until one of the two signals comes (or has come). */
void cli_stop_wait(void);

#endif
