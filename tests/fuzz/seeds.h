/* Seeds for a fuzz target that live in its code: a mutator that now and then starts again from one of them.
 *
 *     static const fuzz_seed seeds[] = {FUZZ_SEED("{}"), ...};
 *     FUZZ_MUTATOR(seeds)
 *
 * libFuzzer without a corpus begins with an empty input and would need long to find a header or a brace. */
#ifndef LK_TESTS_FUZZ_SEEDS_H
#define LK_TESTS_FUZZ_SEEDS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct fuzz_seed {
    const char *bytes;
    size_t size;
} fuzz_seed;

#define FUZZ_SEED(text)        \
    {                          \
        text, sizeof(text) - 1 \
    }

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline size_t fuzz_start(const fuzz_seed *seeds, size_t n, uint8_t *data, size_t size, size_t max_size, unsigned int seed)
{
    const fuzz_seed *s = &seeds[seed / 16 % n];
    if ((size > 1 && seed % 16) || s->size > max_size) return size;
    memcpy(data, s->bytes, s->size);
    return s->size;
}

#define FUZZ_MUTATOR(seeds)                                                                        \
    size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) \
    {                                                                                              \
        size = fuzz_start(seeds, sizeof(seeds) / sizeof *(seeds), data, size, max_size, seed);     \
        return LLVMFuzzerMutate(data, size, max_size);                                             \
    }

#endif
