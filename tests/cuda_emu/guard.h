/* Bytes round a block of memory that nobody may touch, and the poison inside it.
 *
 * In ordinary builds the bytes are a pattern that is looked at later; under the address sanitizer touching them, even to read, stops the
 * program at once. Poison is all ones: a NaN as float and as bf16, -1 as an integer. */
#ifndef LK_TESTS_CUDA_EMU_GUARD_H
#define LK_TESTS_CUDA_EMU_GUARD_H

#include <stddef.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define LK_EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LK_EMU_ASAN 1
#endif
#endif
#ifdef LK_EMU_ASAN
#include <sanitizer/asan_interface.h>
#endif

enum { LK_EMU_GUARD = 512, LK_EMU_GUARD_BYTE = 0xa5, LK_EMU_POISON = 0xff };

static inline void lk_guard_set(unsigned char *p, size_t bytes)
{
    memset(p, LK_EMU_GUARD_BYTE, bytes);
#ifdef LK_EMU_ASAN
    __asan_poison_memory_region(p, bytes);
#endif
}

static inline void lk_guard_lift(unsigned char *p, size_t bytes)
{
#ifdef LK_EMU_ASAN
    __asan_unpoison_memory_region(p, bytes);
#else
    (void)p;
    (void)bytes;
#endif
}

/* The first damaged byte, or `bytes`. */
static inline size_t lk_guard_damage(const unsigned char *p, size_t bytes)
{
#ifdef LK_EMU_ASAN
    (void)p;
    return bytes; /* it would have stopped the program */
#else
    for (size_t i = 0; i < bytes; i++)
        if (p[i] != LK_EMU_GUARD_BYTE) return i;
    return bytes;
#endif
}

#endif
