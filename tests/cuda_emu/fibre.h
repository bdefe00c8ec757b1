/* Stacks that take turns on one thread: what the emulation runs a GPU's threads on.
 *
 *     lk_fibre *f = lk_fibre_create(work);         -- work() never returns
 *     lk_fibre_switch(&home, f);                   -- from here into work(); back when it switches to &home
 *
 * On x86-64 a switch is a dozen instructions of assembly; elsewhere ucontext does the same, some twenty times slower. Both tell the
 * address sanitizer which stack is in use. A stack ends in a page that may not be touched. */
#ifndef LK_TESTS_CUDA_EMU_FIBRE_H
#define LK_TESTS_CUDA_EMU_FIBRE_H

#include <stddef.h>

struct lk_fibre;

/* NULL when there is no memory. */
lk_fibre *lk_fibre_create(void (*work)(void));
void lk_fibre_destroy(lk_fibre *f);
/* The thread's own stack, to switch away from and back to. */
lk_fibre *lk_fibre_create_home(void);
void lk_fibre_switch(lk_fibre *from, lk_fibre *to);
/* Forgets what f was in the middle of: the next switch to it begins work() again. Not for the running one. */
void lk_fibre_renew(lk_fibre *f);

#endif
