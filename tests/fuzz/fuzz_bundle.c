/* Bundles from hostile bytes. The input is the tar: it is compressed here, so that the fuzzer need not find out how zstd works; every
 * fourth input goes in as it is. */
#include <archive.h>
#include <archive_entry.h>
#include <stdlib.h>
#include <string.h>

#include "data/bundle.h"
#include "tests/fuzz/seeds.h"

static size_t compress_raw(const uint8_t *bytes, size_t size, char *out, size_t room)
{
    struct archive *a = archive_write_new();
    struct archive_entry *e = archive_entry_new();
    size_t used = 0;
    archive_write_set_format_raw(a);
    archive_write_add_filter_zstd(a);
    archive_write_open_memory(a, out, room, &used);
    archive_entry_set_filetype(e, AE_IFREG);
    archive_write_header(a, e);
    archive_write_data(a, bytes, size);
    archive_write_close(a);
    archive_entry_free(e);
    archive_write_free(a);
    return used;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static char packed[1 << 18];
    lk_error err = {0};
    lk_bundle *b = NULL;
    if (size > 1 << 16) return 0;
    bool raw = size && bytes[size - 1] % 4 == 3;
    size_t n = raw ? 0 : compress_raw(bytes, size, packed, sizeof packed);
    lk_status status = lk_bundle_open_memory(&b, raw ? (const void *)bytes : packed, raw ? size : n, "fuzz", NULL, &err);
    if (!status != !!b || (status && !err.message[0])) abort();
    for (int i = 0; b && i < lk_bundle_count(b); i++)
        if (lk_bundle_find(b, lk_bundle_at(b, i)->name) != lk_bundle_at(b, i)) abort();
    lk_bundle_close(b);
    return 0;
}

/* A bundle of one empty file, as the tar it is; headers written out by fuzz_header. */
static size_t put_file(uint8_t *out, const char *name, const char *text)
{
    size_t size = strlen(text);
    char *h = (char *)out;
    memset(h, 0, 512 + (size + 511) / 512 * 512);
    strcpy(h, name);
    memcpy(h + 100, "000644 ", 8);
    memcpy(h + 257, "ustar\00000", 8);
    h[156] = '0';
    for (int i = 0; i < 11; i++) h[124 + i] = (char)('0' + (size >> (3 * (10 - i)) & 7));
    unsigned sum = 8 * ' ';
    for (int i = 0; i < 512; i++) sum += i >= 148 && i < 156 ? 0 : (unsigned char)h[i];
    for (int i = 0; i < 6; i++) h[148 + i] = (char)('0' + (sum >> (3 * (5 - i)) & 7));
    memcpy(h + 512, text, size);
    return 512 + (size + 511) / 512 * 512;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed)
{
    if (seed % 8 == 0 && max_size >= 8192) {
        static const char manifest[] = "{\"format\":\"lorikeet-bundle\",\"version\":1,\"files\":[{\"name\":\"a\",\"size\":0,\"sha256\":"
                                       "\"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"}]}";
        size = put_file(data, "bundle.json", manifest);
        size += put_file(data + size, "a", "");
        memset(data + size, 0, 1024);
        size += 1024;
    }
    return LLVMFuzzerMutate(data, size, max_size);
}
