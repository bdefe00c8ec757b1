#include "cli/stop.h"

#include <string.h>
#include <unistd.h>

volatile sig_atomic_t cli_stop;

static void on_signal(int number)
{
    if (cli_stop) _exit(128 + number);
    cli_stop = 1;
}

void cli_stop_install(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    sigemptyset(&action.sa_mask);
    /* No SA_RESTART: a blocking read must return so that the flag is seen. */
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

void cli_stop_wait(void)
{
    /* Blocked while the flag is looked at: a signal between the look and the sleep would otherwise be slept over. */
    sigset_t blocked, before;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGINT);
    sigaddset(&blocked, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &blocked, &before);
    while (!cli_stop) sigsuspend(&before);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}
