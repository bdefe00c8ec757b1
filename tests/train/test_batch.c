/* Batches: every supervised token once an epoch, boundaries and labels, the same step whatever came before, epochs that differ. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/check.h"
#include "train/batch.h"

enum { DOCUMENTS = 57, MAX_LENGTH = 40 };

/* Document d has the tokens d*100, d*100+1, ...; some are supervised, always one after the first. */
static lk_store *make_store(const char *folder)
{
    lk_error err = {0};
    char path[4096];
    lk_store_writer *w;
    lk_store *s;
    check_random r = {11};
    snprintf(path, sizeof path, "%s/train.h5", folder);
    CHECK_OK(lk_store_create(&w, path, &err), &err);
    for (int d = 0; d < DOCUMENTS; d++) {
        int32_t ids[MAX_LENGTH];
        uint8_t mask[MAX_LENGTH];
        int n = 2 + (int)(check_random_uniform(&r) * (MAX_LENGTH - 1));
        if (d == 3) n = MAX_LENGTH;
        if (d == 4) n = 2;
        for (int i = 0; i < n; i++) {
            ids[i] = d * 100 + i;
            mask[i] = check_random_uniform(&r) < 0.4;
        }
        mask[n - 1] = 1;
        CHECK_OK(lk_store_append(w, ids, mask, n, &err), &err);
    }
    CHECK_OK(lk_store_commit(w, &err), &err);
    CHECK_OK(lk_store_open(&s, path, &err), &err);
    return s;
}

/* One micro-batch is well formed; counts every (document, token) that is predicted. */
static void check_micro(const lk_micro_batch *m, lk_store *s, int64_t most, int seen[DOCUMENTS][MAX_LENGTH])
{
    lk_error err = {0};
    const lk_batch *b = &m->batch;
    int64_t supervised = 0;
    assert_true(b->n_tokens >= 1 && b->n_tokens <= most);
    assert_int_equal(b->doc_starts[0], 0);
    assert_int_equal(b->doc_starts[b->n_docs], b->n_tokens);
    for (int64_t d = 0; d < b->n_docs; d++) {
        int64_t first = b->doc_starts[d], n = b->doc_starts[d + 1] - first, document = b->ids[first] / 100;
        int32_t ids[MAX_LENGTH];
        uint8_t mask[MAX_LENGTH];
        assert_int_equal(n, lk_store_length(s, document));
        CHECK_OK(lk_store_read(s, document, ids, mask, &err), &err);
        for (int64_t t = 0; t < n; t++) {
            assert_int_equal(b->ids[first + t], ids[t]);
            assert_int_equal(b->positions[first + t], t);
            int32_t want = t + 1 < n && mask[t + 1] ? ids[t + 1] : -1;
            assert_int_equal(m->labels[first + t], want);
            if (want < 0) continue;
            supervised++;
            seen[document][t + 1]++;
        }
    }
    assert_int_equal(supervised, m->supervised);
}

static void test_epoch(void **state)
{
    (void)state;
    static const struct {
        int64_t rows, accumulate;
    } shapes[] = {{1, 1}, {2, 3}, {4, 1}, {64, 1}};
    char *folder = check_temporary("batch");
    lk_store *s = make_store(folder);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        lk_error err = {0};
        lk_batches *b;
        lk_batches_options o = {
            .rows = shapes[i].rows, .accumulate = shapes[i].accumulate, .max_length = MAX_LENGTH, .seed = 5, .shuffle = true};
        CHECK_OK(lk_batches_create(&b, s, &o, &err), &err);
        int64_t end, begin = 0;
        for (int epoch = 1; epoch <= 3; epoch++) {
            int seen[DOCUMENTS][MAX_LENGTH] = {{0}};
            int64_t supervised = 0, tokens = 0;
            CHECK_OK(lk_batches_steps(b, epoch, &end, &err), &err);
            for (int64_t step = begin; step < end; step++) {
                CHECK_OK(lk_batches_load(b, step, &err), &err);
                assert_true(lk_batches_count(b) >= 1 && lk_batches_count(b) <= o.accumulate);
                for (int m = 0; m < lk_batches_count(b); m++) check_micro(lk_batches_at(b, m), s, o.rows * MAX_LENGTH, seen);
                assert_true(lk_batches_supervised(b) > 0);
                supervised += lk_batches_supervised(b);
                tokens += lk_batches_tokens(b);
                assert_true(lk_batches_epoch(b) > epoch - 1 && lk_batches_epoch(b) <= epoch);
            }
            assert_true(lk_batches_epoch(b) == epoch);
            assert_int_equal(supervised, lk_store_supervised(s));
            assert_int_equal(tokens, lk_store_tokens(s));
            for (int d = 0; d < DOCUMENTS; d++)
                for (int t = 0; t < MAX_LENGTH; t++) assert_true(seen[d][t] <= 1);
            begin = end;
        }
        lk_batches_destroy(b);
    }
    lk_store_close(s);
    free(folder);
}

/* A step loaded out of the blue is the step of a run that came there. */
static void test_resume_from_step(void **state)
{
    (void)state;
    char *folder = check_temporary("batch_resume");
    lk_store *s = make_store(folder);
    lk_error err = {0};
    lk_batches_options o = {.rows = 2, .accumulate = 2, .max_length = MAX_LENGTH, .seed = 5, .shuffle = true};
    lk_batches *a, *b;
    CHECK_OK(lk_batches_create(&a, s, &o, &err), &err);
    bool epochs_differ = false;
    int32_t first_ids[2] = {-1, -1};
    for (int64_t step = 0; step < 40; step++) {
        CHECK_OK(lk_batches_load(a, step, &err), &err);
        CHECK_OK(lk_batches_create(&b, s, &o, &err), &err);
        CHECK_OK(lk_batches_load(b, step, &err), &err);
        assert_int_equal(lk_batches_count(a), lk_batches_count(b));
        for (int m = 0; m < lk_batches_count(a); m++) {
            const lk_micro_batch *x = lk_batches_at(a, m), *y = lk_batches_at(b, m);
            assert_int_equal(x->batch.n_tokens, y->batch.n_tokens);
            assert_int_equal(x->batch.n_docs, y->batch.n_docs);
            check_same_bits("ids", x->batch.ids, y->batch.ids, (size_t)x->batch.n_tokens * 4);
            check_same_bits("labels", x->labels, y->labels, (size_t)x->batch.n_tokens * 4);
        }
        assert_true(lk_batches_epoch(a) == lk_batches_epoch(b));
        int epoch = (int)(lk_batches_epoch(a) - 1e-9);
        if (epoch < 2 && first_ids[epoch] < 0) first_ids[epoch] = lk_batches_at(a, 0)->batch.ids[0];
        lk_batches_destroy(b);
    }
    epochs_differ = first_ids[0] != first_ids[1];
    assert_true(epochs_differ);
    lk_batches_destroy(a);
    /* Another seed, another order; no shuffle, the store's own. */
    o.seed = 6;
    CHECK_OK(lk_batches_create(&a, s, &o, &err), &err);
    CHECK_OK(lk_batches_load(a, 0, &err), &err);
    assert_true(lk_batches_at(a, 0)->batch.ids[0] != first_ids[0]);
    lk_batches_destroy(a);
    o.shuffle = false;
    CHECK_OK(lk_batches_create(&a, s, &o, &err), &err);
    CHECK_OK(lk_batches_load(a, 0, &err), &err);
    assert_int_equal(lk_batches_at(a, 0)->batch.ids[0], 0);
    lk_batches_destroy(a);
    lk_store_close(s);
    free(folder);
}

static void test_refusals(void **state)
{
    (void)state;
    char *folder = check_temporary("batch_refusals"), path[4096];
    lk_error err = {0};
    lk_batches *b;
    lk_store_writer *w;
    lk_store *s = make_store(folder);
    lk_batches_options o = {.rows = 1, .accumulate = 1, .max_length = MAX_LENGTH - 1, .shuffle = true};
    CHECK_OK(lk_batches_create(&b, s, &o, &err), &err);
    CHECK_FAILS(lk_batches_load(b, 0, &err), LK_ERR_ARGUMENT, "tokens", &err);
    lk_batches_destroy(b);
    lk_store_close(s);
    snprintf(path, sizeof path, "%s/empty.h5", folder);
    CHECK_OK(lk_store_create(&w, path, &err), &err);
    CHECK_OK(lk_store_commit(w, &err), &err);
    CHECK_OK(lk_store_open(&s, path, &err), &err);
    CHECK_FAILS(lk_batches_create(&b, s, &o, &err), LK_ERR_FORMAT, "no documents", &err);
    lk_store_close(s);
    free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_epoch), cmocka_unit_test(test_resume_from_step),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
