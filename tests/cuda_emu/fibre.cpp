/* Switching stacks. The callee-saved registers go on the stack that is left, the stack pointer into its fibre, and the other way round on
 * arrival; everything else the compiler has saved around the call. The floating-point control words are left alone: nobody changes them. */
#include "tests/cuda_emu/fibre.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/cuda_emu/guard.h"

#ifdef LK_EMU_ASAN
#include <sanitizer/common_interface_defs.h>
enum { STACK_BYTES = 512 * 1024 }; /* red zones round every local array */
#else
enum { STACK_BYTES = 128 * 1024 };
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

struct lk_fibre {
#if defined(__x86_64__)
    void *sp;
#else
    ucontext_t context;
#endif
    void (*work)(void);
    unsigned char *map, *stack; /* NULL at home; the stack begins one page after the mapping */
    size_t map_bytes;
    const void *bottom; /* as the address sanitizer knows this stack; at home learnt at the first switch */
    size_t bottom_bytes;
    void *fake; /* its notes on the frames of a stack that is not running */
};

/* Which switch is under way: an arriving fibre has no other way to know. Fibres stay on the thread that made them. */
static thread_local struct {
    lk_fibre *from, *to;
} under_way;

static void arrived(void)
{
#ifdef LK_EMU_ASAN
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(under_way.to->fake, &bottom, &bytes);
    if (!under_way.from->stack) {
        under_way.from->bottom = bottom;
        under_way.from->bottom_bytes = bytes;
    }
#endif
}

static void begin(void)
{
    arrived();
    under_way.to->work();
    abort(); /* work() never returns */
}

#if defined(__x86_64__)
extern "C" void lk_fibre_swap_stacks(void **save, void *to) __attribute__((visibility("hidden")));
asm(R"(
.pushsection .text
.hidden lk_fibre_swap_stacks
.globl lk_fibre_swap_stacks
.type lk_fibre_swap_stacks, @function
lk_fibre_swap_stacks:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size lk_fibre_swap_stacks, . - lk_fibre_swap_stacks
.popsection
)");
#endif

void lk_fibre_renew(lk_fibre *f)
{
    f->fake = NULL;
#ifdef LK_EMU_ASAN
    __asan_unpoison_memory_region(f->stack, STACK_BYTES);
#endif
#if defined(__x86_64__)
    void **top = (void **)(f->stack + STACK_BYTES - 64);
    *--top = NULL; /* no return address: the end of a backtrace, and the alignment that a called function expects */
    *--top = (void *)begin;
    for (int saved = 0; saved < 6; saved++) *--top = NULL;
    f->sp = top;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK_BYTES;
    f->context.uc_link = NULL;
    makecontext(&f->context, begin, 0);
#endif
}

lk_fibre *lk_fibre_create(void (*work)(void))
{
    lk_fibre *f = (lk_fibre *)calloc(1, sizeof *f);
    if (!f) return NULL;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    f->map_bytes = page + STACK_BYTES;
    void *map = mmap(NULL, f->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (map == MAP_FAILED || mprotect(map, page, PROT_NONE)) {
        if (map != MAP_FAILED) munmap(map, f->map_bytes);
        free(f);
        return NULL;
    }
    f->map = (unsigned char *)map;
    f->stack = f->map + page;
    f->bottom = f->stack;
    f->bottom_bytes = STACK_BYTES;
    f->work = work;
    lk_fibre_renew(f);
    return f;
}

lk_fibre *lk_fibre_create_home(void) { return (lk_fibre *)calloc(1, sizeof(lk_fibre)); }

void lk_fibre_destroy(lk_fibre *f)
{
    if (!f) return;
    if (f->map) {
#ifdef LK_EMU_ASAN
        __asan_unpoison_memory_region(f->stack, STACK_BYTES);
#endif
        munmap(f->map, f->map_bytes);
    }
    free(f);
}

void lk_fibre_switch(lk_fibre *from, lk_fibre *to)
{
    under_way.from = from;
    under_way.to = to;
#ifdef LK_EMU_ASAN
    __sanitizer_start_switch_fiber(&from->fake, to->bottom, to->bottom_bytes);
#endif
#if defined(__x86_64__)
    lk_fibre_swap_stacks(&from->sp, to->sp);
#else
    swapcontext(&from->context, &to->context);
#endif
    arrived();
}
