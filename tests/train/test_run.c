/* Whole runs through lk_train_run: what they leave, that stopping and resuming at any step (with other thread counts) gives the same bytes,
 * and what is refused before the first step. */
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/sha256.h"
#include "model/adapter.h"
#include "tests/check.h"
#include "train/train.h"

static const char *const words[] = {"river", "bread", "ferry", "hello", "world", "seven", "apple", "where"};

static void write_lines(const char *folder, const char *name, const char *format, int n)
{
    char path[4096], text[20000] = "";
    snprintf(path, sizeof path, "%s/%s", folder, name);
    for (int i = 0; i < n; i++) {
        size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, format, words[i % 8], words[i * 3 % 8], words[i * 5 % 7]);
    }
    check_write_file(path, text, strlen(text));
}

#define MESSAGES "{\"messages\":[{\"role\":\"user\",\"content\":\"say %s %s\"},{\"role\":\"assistant\",\"content\":\"%s it is\"}]}\n"

static char *write_recipe(const char *folder, const char *name, const char *extra)
{
    static char path[4096];
    char text[4000];
    char *base = check_golden("models/chat-tiny");
    snprintf(
        text, sizeof text,
        "{\"base\":{\"path\":\"%s\"},\"adapter\":{\"r\":4,\"alpha\":8,\"dropout\":0.1},\"data\":{\"train\":[{\"path\":\"train.jsonl\","
        "\"format\":\"messages\"}],"
        "\"eval\":[{\"path\":\"eval.jsonl\",\"format\":\"messages\"}],\"max_length\":64},\"optim\":{\"lr\":1e-2},\"schedule\":{\"warmup_"
        "steps\":1},"
        "\"batch\":{\"rows\":2,\"accumulate\":2,\"epochs\":3},\"eval\":{\"every\":3},\"checkpoint\":{\"every\":2,\"keep\":2},\"seed\":3%s}",
        base, extra);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    check_write_file(path, text, strlen(text));
    free(base);
    return path;
}

static char *prepare(const char *name)
{
    char *folder = check_temporary(name);
    write_lines(folder, "train.jsonl", MESSAGES, 24);
    write_lines(folder, "eval.jsonl", MESSAGES, 5);
    return folder;
}

static lk_train_options options_for(const char *recipe, const char *out)
{
    return (lk_train_options){.recipe = recipe, .out = out, .device = "cpu", .threads = 2, .quiet = true};
}

static void digest_of(const char *out, const char *name, char hex[65])
{
    lk_error err = {0};
    char path[4200];
    snprintf(path, sizeof path, "%s/%s", out, name);
    CHECK_OK(lk_sha256_file(path, hex, &err), &err);
}

static int count_lines(const char *out, const char *containing)
{
    lk_error err = {0};
    char path[4200], *text, *rest, *line;
    size_t size;
    int n = 0;
    snprintf(path, sizeof path, "%s/metrics.jsonl", out);
    CHECK_OK(lk_file_read(path, 1 << 20, &text, &size, &err), &err);
    rest = text;
    while ((line = strsep(&rest, "\n")))
        if (strstr(line, containing)) n++;
    free(text);
    return n;
}

static void copy_store(const char *from, const char *to)
{
    lk_error err = {0};
    char path[4300], *bytes;
    size_t size;
    snprintf(path, sizeof path, "%s/data/train.h5", from);
    CHECK_OK(lk_file_read(path, 1 << 26, &bytes, &size, &err), &err);
    snprintf(path, sizeof path, "%s/data", to);
    CHECK_OK(lk_folder_create(path, &err), &err);
    snprintf(path, sizeof path, "%s/data/train.h5", to);
    check_write_file(path, bytes, size);
    free(bytes);
}

/* What a run leaves; then the same run stopped after every single step and resumed with changing thread counts. */
static void resume_is_exact(const char *optimizer, const char *adapter)
{
    lk_error err = {0};
    char *folder = prepare("run"), whole[4200], parts[4200], want[65], got[65], path[4300];
    char *recipe = strdup(write_recipe(folder, "r.json", ""));
    snprintf(whole, sizeof whole, "%s/whole", folder);
    snprintf(parts, sizeof parts, "%s/parts", folder);
    const char *sets[] = {optimizer, adapter, "data.eval=[]"};
    lk_train_options o = options_for(recipe, whole);
    o.sets = sets;
    o.n_sets = 2;
    lk_train_result r;
    CHECK_OK(lk_train_run(&r, &o, &err), &err);
    assert_true(r.steps >= 6 && r.first_step == 0 && r.evaluated && r.tokens > 0);
    assert_true(isfinite(r.loss) && r.after.loss < r.before.loss);
    assert_true(r.after.supervised > 0 && fabs(exp(r.after.loss) - r.after.perplexity) < 1e-9);
    assert_int_equal(r.backend_peak, lk_plan_backend_bytes(&r.plan));
    assert_int_equal(count_lines(whole, "\"grad_norm\""), r.steps);
    assert_int_equal(count_lines(whole, "eval_loss"), 2 + (r.steps - 1) / 3);
    digest_of(whole, "adapter/adapter_model.safetensors", want);
    snprintf(path, sizeof path, "%s/run.json", whole);
    cJSON *record;
    CHECK_OK(lk_json_read(&record, path, 1 << 20, &err), &err);
    assert_string_equal(lk_json_get(record, "state")->valuestring, "finished");
    assert_string_equal(lk_json_get(record, "adapter_digest")->valuestring, r.adapter_digest);
    assert_int_equal(strlen(lk_json_get(lk_json_get(record, "base"), "digest")->valuestring), 64);
    assert_int_equal(strlen(lk_json_get(lk_json_get(lk_json_get(record, "data"), "train"), "digest")->valuestring), 64);
    cJSON_Delete(record);

    /* A stop that is already there ends the run after one step. (It would also end tokenising and evaluating, so the token store is brought
     * along and the held-out set left away: neither has a say in the result.) */
    int64_t steps = r.steps;
    volatile sig_atomic_t stop = 1;
    copy_store(whole, parts);
    o.out = parts;
    o.stop = &stop;
    o.n_sets = 3;
    for (int64_t i = 0; i < steps; i++) {
        o.threads = i % 2 ? 1 : 2;
        o.resume = i > 0;
        lk_status status = lk_train_run(&r, &o, &err);
        if (i + 1 == steps)
            CHECK_OK(status, &err);
        else if (status != LK_ERR_INTERRUPTED)
            fail_msg("stop %lld: %s: %s", (long long)i, lk_status_name(status), err.message);
        assert_int_equal(r.first_step, i);
    }
    digest_of(parts, "adapter/adapter_model.safetensors", got);
    assert_string_equal(got, want);
    assert_int_equal(count_lines(parts, "\"grad_norm\""), steps);

    /* Finished: nothing more to do, and the adapter stays what it is. */
    o.resume = true;
    CHECK_OK(lk_train_run(&r, &o, &err), &err);
    assert_int_equal(r.first_step, steps);
    digest_of(parts, "adapter/adapter_model.safetensors", got);
    assert_string_equal(got, want);

    /* The folder is taken; another recipe does not fit; afresh is the same again, checkpointing or not. */
    o.resume = false;
    CHECK_FAILS(lk_train_run(&r, &o, &err), LK_ERR_CONFLICT, "--resume", &err);
    const char *other[] = {optimizer, adapter, "optim.lr=2e-2"},
               *leaner[] = {optimizer, adapter, "memory.checkpointing=full", "memory.offload=true"};
    o.stop = NULL;
    o.resume = true;
    o.sets = other;
    CHECK_FAILS(lk_train_run(&r, &o, &err), LK_ERR_MISMATCH, "optim.lr is 0.02 here", &err);
    o.resume = false;
    o.fresh = true;
    o.sets = leaner;
    o.n_sets = 4;
    CHECK_OK(lk_train_run(&r, &o, &err), &err);
    assert_int_equal(r.plan.kept_layers, 1);
    digest_of(parts, "adapter/adapter_model.safetensors", got);
    assert_string_equal(got, want);

    /* Another process has the folder. */
    snprintf(path, sizeof path, "%s/.lock", parts);
    int lock = open(path, O_RDWR | O_CLOEXEC);
    assert_int_equal(flock(lock, LOCK_EX | LOCK_NB), 0);
    CHECK_FAILS(lk_train_run(&r, &o, &err), LK_ERR_CONFLICT, "in use", &err);
    close(lock);
    free(recipe);
    free(folder);
}

/* Factors on the embedding and the head too, with dropout and moments in 8 bits. */
#define WHOLE "adapter={\"r\":4,\"alpha\":8,\"dropout\":0.1,\"targets\":[\"q_proj\",\"down_proj\",\"embed_tokens\",\"lm_head\"]}"

static void test_resume_is_exact(void **state) { (void)state, resume_is_exact("optim.name=adamw", "adapter.rslora=false"); }
static void test_resume_is_exact_8bit(void **state) { (void)state, resume_is_exact("optim.name=adamw8bit", WHOLE); }

/* The newest checkpoint is damaged: the one before it is taken, and the end is the same. */
static void test_damaged_checkpoint(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = prepare("run_damaged"), whole[4200], out[4200], path[4400], want[65], got[65];
    char *recipe = strdup(write_recipe(folder, "r.json", ""));
    snprintf(whole, sizeof whole, "%s/whole", folder);
    snprintf(out, sizeof out, "%s/out", folder);
    lk_train_result r;
    lk_train_options o = options_for(recipe, whole);
    CHECK_OK(lk_train_run(&r, &o, &err), &err);
    digest_of(whole, "adapter/adapter_model.safetensors", want);
    o.out = out;
    CHECK_OK(lk_train_run(&r, &o, &err), &err);
    snprintf(path, sizeof path, "%s/checkpoints/step-%06lld.h5", out, (long long)r.steps);
    assert_true(lk_path_exists(path));
    check_write_file(path, "not a checkpoint", 16);
    o.resume = true;
    CHECK_OK(lk_train_run(&r, &o, &err), &err);
    assert_true(r.first_step > 0 && r.first_step < r.steps);
    digest_of(out, "adapter/adapter_model.safetensors", got);
    assert_string_equal(got, want);
    assert_int_equal(count_lines(out, "\"grad_norm\""), r.steps);
    free(recipe);
    free(folder);
}

static void test_refused_before_step_0(void **state)
{
    (void)state;
    static const struct {
        const char *extra_or_line; /* the training file's line */
        const char *set;
        lk_status want;
        const char *says;
    } rows[] = {
        {"", NULL, LK_ERR_FORMAT, "train.jsonl"}, /* empty: the reader's own words */
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]}\n", NULL, LK_ERR_FORMAT, "nothing to learn"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"hello hello hello hello\"},{\"role\":\"assistant\",\"content\":\"ok\"}]}\n",
         "data.max_length=8", LK_ERR_FORMAT, "lost theirs to data.max_length"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"},{\"role\":\"assistant\",\"content\":\"ok\",\"weight\":0}]}\n", NULL,
         LK_ERR_FORMAT, "no supervised token"},
        {"not json\n", NULL, LK_ERR_FORMAT, "train.jsonl:1"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"},{\"role\":\"assistant\",\"content\":\"ok\"}]}\n", "memory.budget=1000",
         LK_ERR_MEMORY, "memory.budget"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"},{\"role\":\"assistant\",\"content\":\"ok\"}]}\n", "base.path=/nowhere",
         LK_ERR_IO, "base.path"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"},{\"role\":\"assistant\",\"content\":\"ok\"}]}\n", "adapter.r=1000",
         LK_ERR_ARGUMENT, "rank 1000"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"},{\"role\":\"assistant\",\"content\":\"ok\"}]}\n", "adapter.targtes=1",
         LK_ERR_ARGUMENT, "adapter.targets"},
    };
    char *folder = prepare("run_refused"), path[4200], out[4200];
    char *recipe = strdup(write_recipe(folder, "r.json", ""));
    snprintf(path, sizeof path, "%s/train.jsonl", folder);
    snprintf(out, sizeof out, "%s/out", folder);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (int dry = 0; dry < 2; dry++) {
            lk_error err = {0};
            lk_train_result r;
            lk_train_options o = options_for(recipe, out);
            check_write_file(path, rows[i].extra_or_line, strlen(rows[i].extra_or_line));
            o.sets = &rows[i].set;
            o.n_sets = rows[i].set != NULL;
            o.dry_run = dry;
            lk_status status = lk_train_run(&r, &o, &err);
            bool close = rows[i].want == LK_ERR_IO ? status == LK_ERR_IO || status == LK_ERR_NOT_FOUND : status == rows[i].want;
            if (!close || !strstr(err.message, rows[i].says))
                fail_msg("row %zu: %s '%s', wanted '%s'", i, lk_status_name(status), err.message, rows[i].says);
        }
    }
    free(recipe);
    free(folder);
}

static void test_dry_run_and_plan(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = prepare("run_dry"), out[4200];
    char *recipe = strdup(write_recipe(folder, "r.json", ""));
    snprintf(out, sizeof out, "%s/out", folder);
    lk_train_result r;
    lk_plan plan;
    lk_train_options o = options_for(recipe, out);
    o.dry_run = true;
    CHECK_OK(lk_train_run(&r, &o, &err), &err);
    assert_true(r.steps > 0);
    assert_false(lk_path_exists(out));
    CHECK_OK(lk_train_plan(&plan, &o, &err), &err);
    assert_int_equal(lk_plan_backend_bytes(&plan), lk_plan_backend_bytes(&r.plan));
    free(recipe);
    free(folder);
}

/* `lorikeet eval`'s way gives what the trainer's evaluation gave. */
static void test_eval_run(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = prepare("run_eval"), out[4200], adapter[4300], data[4300], *base = check_golden("models/chat-tiny");
    char *recipe = strdup(write_recipe(folder, "r.json", ""));
    snprintf(out, sizeof out, "%s/out", folder);
    snprintf(adapter, sizeof adapter, "%s/adapter", out);
    snprintf(data, sizeof data, "%s/eval.jsonl", folder);
    lk_train_result r;
    lk_train_options o = options_for(recipe, out);
    CHECK_OK(lk_train_run(&r, &o, &err), &err);
    lk_source source = {.path = data, .format = LK_DATA_MESSAGES};
    lk_eval_options e = lk_eval_options_default();
    e.base = base;
    e.sources = &source;
    e.n_sources = 1;
    e.device = "cpu";
    e.max_length = 64;
    e.rows = 3; /* what it is packed with does not matter */
    lk_eval_result before, after;
    CHECK_OK(lk_eval_run(&before, &e, &err), &err);
    e.adapter = adapter;
    CHECK_OK(lk_eval_run(&after, &e, &err), &err);
    assert_true(fabs(before.loss - r.before.loss) < 1e-12 && fabs(after.loss - r.after.loss) < 1e-12);
    assert_int_equal(after.hits, r.after.hits);
    assert_true(after.accuracy == r.after.accuracy);
    free(base);
    free(recipe);
    free(folder);
}

static void values_of(const char *out, float **values, int64_t *n)
{
    lk_error err = {0};
    char path[4300], *bytes;
    size_t size;
    uint64_t header;
    snprintf(path, sizeof path, "%s/adapter/adapter_model.safetensors", out);
    CHECK_OK(lk_file_read(path, 1 << 26, &bytes, &size, &err), &err);
    memcpy(&header, bytes, sizeof header);
    *n = (int64_t)(size - 8 - header) / 4;
    *values = malloc((size_t)*n * sizeof(float) + 1);
    memcpy(*values, bytes + 8 + header, (size_t)*n * sizeof(float));
    free(bytes);
}

/* Two and three processes share the steps: the same run up to the order of additions, the same bytes whenever they are as many, also when
 * they stop and go on. */
static void test_processes(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = prepare("processes"), out[4][4200], hex[4][65];
    const char *sets[] = {"batch.accumulate=4", "batch.epochs=2"};
    char *recipe = strdup(write_recipe(folder, "r.json", ""));
    float *want, *got;
    int64_t n, m;
    double losses[4];
    lk_train_result r;
    for (int p = 1; p <= 3; p++) {
        snprintf(out[p], sizeof out[p], "%s/by-%d", folder, p);
        lk_train_options o = options_for(recipe, out[p]);
        o.sets = sets;
        o.n_sets = 2;
        o.threads = 1;
        o.processes = p;
        CHECK_OK(lk_train_run(&r, &o, &err), &err);
        assert_true(r.after.loss < r.before.loss);
        losses[p] = r.after.loss;
        assert_int_equal(count_lines(out[p], "\"grad_norm\""), r.steps);
        digest_of(out[p], "adapter/adapter_model.safetensors", hex[p]);
    }
    values_of(out[1], &want, &n);
    for (int p = 2; p <= 3; p++) {
        values_of(out[p], &got, &m);
        assert_int_equal(m, n);
        /* Element by element AdamW blows up what is almost zero: its first steps only have the sign of a gradient. */
        double apart = 0.0, size = 0.0;
        for (int64_t i = 0; i < n; i++) {
            apart += pow((double)got[i] - (double)want[i], 2);
            size += pow((double)want[i], 2);
        }
        if (!(sqrt(apart / size) < 0.02)) fail_msg("%d processes: the adapter is %.3g away", p, sqrt(apart / size));
        assert_true(fabs(losses[p] - losses[1]) < 1e-3 * losses[1]);
        free(got);
    }
    free(want);

    /* the same again, stopped and resumed */
    lk_log_set_level(LK_LOG_ERROR);
    snprintf(out[0], sizeof out[0], "%s/in-parts", folder);
    copy_store(out[2], out[0]);
    volatile sig_atomic_t stop = 1;
    lk_status status;
    const char *no_eval[] = {sets[0], sets[1], "data.eval=[]"};
    do {
        lk_train_options o = options_for(recipe, out[0]);
        o.sets = no_eval;
        o.n_sets = 3;
        o.threads = 1;
        o.processes = 2;
        o.resume = true;
        o.stop = &stop;
        status = lk_train_run(&r, &o, &err);
    } while (status == LK_ERR_INTERRUPTED);
    CHECK_OK(status, &err);
    digest_of(out[0], "adapter/adapter_model.safetensors", hex[0]);
    assert_string_equal(hex[0], hex[2]);
    free(folder);
    free(recipe);
}

int main(void)
{
    lk_log_set_level(LK_LOG_ERROR);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_resume_is_exact),
                                       cmocka_unit_test(test_resume_is_exact_8bit),
                                       cmocka_unit_test(test_damaged_checkpoint),
                                       cmocka_unit_test(test_refused_before_step_0),
                                       cmocka_unit_test(test_dry_run_and_plan),
                                       cmocka_unit_test(test_processes),
                                       cmocka_unit_test(test_eval_run)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
