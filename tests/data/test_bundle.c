/* data/bundle: what is written reads back, the same content gives the same bytes, and everything that is not exactly a bundle is refused.
 */
#include <archive.h>
#include <archive_entry.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/sha256.h"
#include "data/bundle.h"
#include "data/peft.h"
#include "tests/check.h"

static void test_round_trip(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_temporary("bundle"), *adapter = check_golden("adapters/mixed");
    char mine[4200], mine_public[4200], other[4200], other_public[4200], plain[4200], again[4200], with_key[4200];
    check_make_key(folder, "mine", mine, mine_public);
    check_make_key(folder, "other", other, other_public);
    snprintf(plain, sizeof plain, "%s/plain.tar.zst", folder);
    snprintf(again, sizeof again, "%s/again.tar.zst", folder);
    snprintf(with_key, sizeof with_key, "%s/signed.tar.zst", folder);
    CHECK_OK(lk_bundle_adapter(plain, adapter, LK_SOURCE_DIR "/recipes/demo/harbor.json", NULL, &err), &err);
    CHECK_OK(lk_bundle_adapter(again, adapter, LK_SOURCE_DIR "/recipes/demo/harbor.json", NULL, &err), &err);
    CHECK_OK(lk_bundle_adapter(with_key, adapter, NULL, mine, &err), &err);
    char *bytes[2];
    size_t sizes[2];
    CHECK_OK(lk_file_read(plain, 1 << 24, &bytes[0], &sizes[0], &err), &err);
    CHECK_OK(lk_file_read(again, 1 << 24, &bytes[1], &sizes[1], &err), &err);
    assert_int_equal(sizes[0], sizes[1]);
    check_same_bits("bundle", bytes[0], bytes[1], sizes[0]);

    lk_bundle *b;
    CHECK_OK(lk_bundle_open(&b, plain, NULL, &err), &err);
    assert_int_equal(lk_bundle_count(b), 3);
    assert_non_null(lk_bundle_find(b, "recipe.json"));
    assert_null(lk_bundle_find(b, "bundle.json"));
    assert_null(lk_bundle_signer(b));
    lk_bundle_close(b);
    /* The adapter in the bundle is the adapter in the folder. */
    lk_peft *from_folder, *from_bundle;
    CHECK_OK(lk_peft_open(&from_folder, adapter, NULL, &err), &err);
    CHECK_OK(lk_peft_open(&from_bundle, with_key, NULL, &err), &err);
    assert_string_equal(lk_peft_digest(from_folder), lk_peft_digest(from_bundle));
    lk_peft_close(from_folder);
    lk_peft_close(from_bundle);

    lk_bundle_keys *keys, *strangers;
    CHECK_OK(lk_bundle_keys_read(&keys, mine_public, &err), &err);
    CHECK_OK(lk_bundle_keys_read(&strangers, other_public, &err), &err);
    CHECK_OK(lk_bundle_open(&b, with_key, keys, &err), &err);
    assert_int_equal(strlen(lk_bundle_signer(b)), 64);
    lk_bundle_close(b);
    CHECK_FAILS(lk_bundle_open(&b, with_key, strangers, &err), LK_ERR_MISMATCH, "none of the trusted keys", &err);
    CHECK_FAILS(lk_bundle_open(&b, plain, keys, &err), LK_ERR_MISMATCH, "is not signed", &err);
    CHECK_FAILS(lk_peft_open(&from_folder, adapter, keys, &err), LK_ERR_MISMATCH, "is no bundle", &err);
    CHECK_FAILS(lk_bundle_adapter(again, plain, NULL, NULL, &err), LK_ERR_ARGUMENT, "is a bundle already", &err);
    CHECK_FAILS(lk_bundle_adapter(again, adapter, NULL, mine_public, &err), LK_ERR_FORMAT, "not an Ed25519 private key", &err);
    lk_bundle_keys *none;
    CHECK_FAILS(lk_bundle_keys_read(&none, mine, &err), LK_ERR_FORMAT, "no public keys", &err);
    lk_bundle_keys_free(keys);
    lk_bundle_keys_free(strangers);

    /* Damage: cut short, a flipped byte, something behind the end. */
    CHECK_FAILS(lk_bundle_open_memory(&b, bytes[0], sizes[0] / 2, "cut", NULL, &err), LK_ERR_FORMAT, "cut: ", &err);
    char *longer = malloc(sizes[0] + 7);
    memcpy(longer, bytes[0], sizes[0]);
    memcpy(longer + sizes[0], "trailer", 7);
    CHECK_FAILS(lk_bundle_open_memory(&b, longer, sizes[0] + 7, "longer", NULL, &err), LK_ERR_FORMAT, "longer: ", &err);
    CHECK_FAILS(lk_bundle_open_memory(&b, "hello", 5, "hello", NULL, &err), LK_ERR_FORMAT, "not a bundle", &err);
    CHECK_FAILS(lk_bundle_open_memory(&b, NULL, 0, "empty", NULL, &err), LK_ERR_FORMAT, "empty: ", &err);
    free(longer);
    free(bytes[0]);
    free(bytes[1]);
    free(folder);
    free(adapter);
}

/* ---- archives that somebody else made ---- */

typedef struct member {
    const char *name, *text;
    int type;           /* 0: a regular file */
    const char *digest; /* in the manifest instead of the right one; "-": not listed */
} member;

static void put(struct archive *a, const char *name, const char *text, int type)
{
    struct archive_entry *e = archive_entry_new();
    archive_entry_set_pathname(e, name);
    archive_entry_set_filetype(e, type ? (unsigned)type : AE_IFREG);
    archive_entry_set_perm(e, 0644);
    if (type == AE_IFLNK) archive_entry_set_symlink(e, text);
    archive_entry_set_size(e, type ? 0 : (la_int64_t)strlen(text));
    assert_int_equal(archive_write_header(a, e), ARCHIVE_OK);
    if (!type) assert_int_equal(archive_write_data(a, text, strlen(text)), strlen(text));
    archive_entry_free(e);
}

static size_t make_archive(char *out, size_t room, const member *members, const char *manifest, bool zstd, const char *signature)
{
    struct archive *a = archive_write_new();
    size_t used = 0;
    archive_write_set_format_ustar(a);
    if (zstd) archive_write_add_filter_zstd(a);
    assert_int_equal(archive_write_open_memory(a, out, room, &used), ARCHIVE_OK);
    char text[4000] = "{\"format\":\"lorikeet-bundle\",\"version\":1,\"files\":[";
    bool first = true;
    for (const member *m = members; m->name; m++) {
        char digest[65];
        lk_sha256_bytes(m->text, strlen(m->text), digest);
        if (m->digest && !strcmp(m->digest, "-")) continue;
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s{\"name\":\"%s\",\"size\":%zu,\"sha256\":\"%s\"}", first ? "" : ",",
                 m->name, strlen(m->text), m->digest ? m->digest : digest);
        first = false;
    }
    snprintf(text + strlen(text), sizeof text - strlen(text), "]}");
    put(a, "bundle.json", manifest ? manifest : text, 0);
    if (signature) put(a, "bundle.sig", signature, 0);
    for (const member *m = members; m->name; m++) put(a, m->name, m->text, m->type);
    archive_write_close(a);
    archive_write_free(a);
    return used;
}

static void test_hostile(void **state)
{
    (void)state;
    static const struct {
        member members[4];
        const char *manifest, *signature, *text;
    } rows[] = {
        {{{"a.json", "{}", 0, NULL}}, NULL, NULL, NULL},
        {{{"../a.json", "{}", 0, NULL}}, NULL, NULL, "plain names without folders"},
        {{{"/etc/passwd", "{}", 0, NULL}}, NULL, NULL, "plain names without folders"},
        {{{"sub/a.json", "{}", 0, NULL}}, NULL, NULL, "plain names without folders"},
        {{{"..", "{}", 0, NULL}}, NULL, NULL, "plain names without folders"},
        {{{"link", "/etc/passwd", AE_IFLNK, NULL}}, NULL, NULL, "not a regular file"},
        {{{"folder", "", AE_IFDIR, NULL}}, NULL, NULL, "not a regular file"},
        {{{"a.json", "{}", 0, NULL}, {"a.json", "[]", 0, NULL}}, NULL, NULL, "\"a.json\" is there twice"},
        {{{"a.json", "{}", 0, "0000000000000000000000000000000000000000000000000000000000000000"}}, NULL, NULL, "it was changed"},
        {{{"a.json", "{}", 0, NULL}, {"b.json", "{}", 0, "-"}}, NULL, NULL, "lists 1 files, the bundle has 2"},
        {{{"a.json", "{}", 0, NULL}}, "{\"format\":\"lorikeet-bundle\",\"version\":1}", NULL, "lists -1 files"},
        {{{"a.json", "{}", 0, NULL}}, "{\"format\":\"lorikeet-bundle\",\"version\":2,\"files\":[]}", NULL, "version 2"},
        {{{"a.json", "{}", 0, NULL}}, "{\"format\":\"else\",\"version\":1,\"files\":[]}", NULL, "\"else\""},
        {{{"a.json", "{}", 0, NULL}}, "nonsense", NULL, "bundle.json"},
        {{{"a.json", "{}", 0, NULL}},
         "{\"format\":\"lorikeet-bundle\",\"version\":1,\"files\":[{\"name\":\"b.json\",\"size\":2,\"sha256\":\"x\"}]}",
         NULL,
         "lists b.json where the bundle has a.json"},
        {{{"a.json", "{}", 0, NULL}},
         "{\"format\":\"lorikeet-bundle\",\"version\":1,\"files\":[{\"name\":\"a.json\",\"size\":3,\"sha256\":\"x\"}]}",
         NULL,
         "the manifest says 3"},
        {{{"a.json", "{}", 0, NULL}}, NULL, "{\"algorithm\":\"rsa\",\"public_key\":\"\",\"signature\":\"\"}", "an ed25519 signature"},
        {{{"a.json", "{}", 0, NULL}},
         NULL,
         "{\"algorithm\":\"ed25519\",\"public_key\":\"9e12a41f66cf79e09bc4158e254690bb0d9b63c6aedae21250d102072d47af98\",\"signature\":"
         "\"4f1aabefbe4015f87be4411031e803248d3689118d0d7e105e6a75277c3f887c373049f5e6c2d8d3ed8ea3619783d7d5b9844d2bb585e33eec393c657ca4f60"
         "6\"}",
         "the signature does not fit"},
    };
    static char bytes[1 << 16];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lk_error err = {0};
        lk_bundle *b;
        size_t size = make_archive(bytes, sizeof bytes, rows[i].members, rows[i].manifest, true, rows[i].signature);
        lk_status status = lk_bundle_open_memory(&b, bytes, size, "hostile", NULL, &err);
        if (!rows[i].text) {
            CHECK_OK(status, &err);
            lk_bundle_close(b);
            continue;
        }
        assert_null(b);
        if (!status || !strstr(err.message, rows[i].text)) fail_msg("row %zu: '%s', wanted '%s'", i, err.message, rows[i].text);
    }
    lk_error err = {0};
    lk_bundle *b;
    size_t size = make_archive(bytes, sizeof bytes, rows[0].members, NULL, false, NULL);
    CHECK_FAILS(lk_bundle_open_memory(&b, bytes, size, "plain tar", NULL, &err), LK_ERR_FORMAT, "compressed by zstd", &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip), cmocka_unit_test(test_hostile)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
