/* Any bytes as a safetensors file: an error or tensors that lie inside the file, every byte of which can be read. */
#include <stdlib.h>

#include "base/file.h"
#include "data/safetensors.h"
#include "tests/fuzz/seeds.h"

static const fuzz_seed seeds[] = {
    FUZZ_SEED("\2\0\0\0\0\0\0\0{}"),
    FUZZ_SEED("\x3a\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]}}  12345678"),
    FUZZ_SEED("\x98\0\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[0,6]},"
              "\"b\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[6,14]}}                123456abcdefgh"),
};

/* Most mutations change the length of the header; half the time its first eight bytes are made to agree again. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed)
{
    size = fuzz_start(seeds, sizeof seeds / sizeof *seeds, data, size, max_size, seed);
    size = LLVMFuzzerMutate(data, size, max_size);
    size_t end = size;
    while (end > 8 && data[end - 1] != '}') end--;
    if (seed % 2 || end <= 8) return size;
    for (int i = 0; i < 8; i++) data[i] = (uint8_t)((uint64_t)(end - 8) >> (8 * i));
    return size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    lk_error err = {0};
    lk_safetensors *st;
    if (lk_safetensors_open_memory(&st, data, size, "fuzz", &err)) return 0;
    int64_t total = 0;
    unsigned sum = 0;
    for (int64_t i = 0; i < lk_safetensors_count(st); i++) {
        const lk_st_tensor *t = lk_safetensors_at(st, i);
        const unsigned char *p = t->data;
        float value;
        for (int64_t k = 0; k < t->n_bytes; k++) sum += p[k];
        for (int64_t k = 0; k < t->n_elements && k < 64; k++)
            if (lk_st_read_f32(t, k, 1, &value, &err)) break;
        if (lk_safetensors_find(st, t->name) != t) abort();
        total += t->n_bytes;
    }
    if (total > (int64_t)size || (sum == 1 && total == 0)) abort();
    lk_safetensors_close(st);
    return 0;
}
