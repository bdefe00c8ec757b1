/* label: slow */
/* The program killed with SIGKILL at twenty random moments of a run, resumed each time: the adapter's bytes are those of the run that was
 * left alone. With one thread and with two. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/sha256.h"
#include "tests/check.h"

enum { KILLS = 20 };

static char *program = LK_BINARY_DIR "/lorikeet";

static void make_data(const char *folder)
{
    static const char *const words[] = {"river", "bread", "ferry", "hello", "world", "seven", "apple", "where"};
    char path[4096], text[40000] = "", *base = check_golden("models/chat-tiny");
    for (int i = 0; i < 200; i++) {
        size_t used = strlen(text);
        snprintf(text + used, sizeof text - used,
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"say %s %s\"},{\"role\":\"assistant\",\"content\":\"%s it is\"}]}\n",
                 words[i % 8], words[i * 3 % 8], words[i * 5 % 7]);
    }
    snprintf(path, sizeof path, "%s/train.jsonl", folder);
    check_write_file(path, text, strlen(text));
    snprintf(text, sizeof text,
             "{\"base\":{\"path\":\"%s\"},\"adapter\":{\"r\":8,\"dropout\":0.05},\"data\":{\"train\":[{\"path\":\"train.jsonl\",\"format\":"
             "\"messages\"}],"
             "\"eval\":[{\"path\":\"train.jsonl\",\"format\":\"messages\"}],\"max_length\":128},\"optim\":{\"lr\":3e-3},"
             "\"batch\":{\"rows\":2,\"accumulate\":2,\"steps\":160},\"eval\":{\"every\":60},\"checkpoint\":{\"every\":5,\"keep\":2}}",
             base);
    snprintf(path, sizeof path, "%s/r.json", folder);
    check_write_file(path, text, strlen(text));
    free(base);
}

static pid_t start(const char *folder, const char *out, const char *threads)
{
    char recipe[4096], where[4096];
    snprintf(recipe, sizeof recipe, "%s/r.json", folder);
    snprintf(where, sizeof where, "%s/%s", folder, out);
    pid_t child = fork();
    if (child != 0) return child;
    char *argv[] = {
        program, "train", recipe, "--out", where, "--resume", "--quiet", "--device", "cpu", "--threads", (char *)(size_t)threads, NULL};
    execv(program, argv);
    _exit(127);
}

/* Waits for the end; the exit code, or 128 + signal. */
static int finish(pid_t child)
{
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void digest_of(const char *folder, const char *out, char hex[65])
{
    lk_error err = {0};
    char path[4096];
    snprintf(path, sizeof path, "%s/%s/adapter/adapter_model.safetensors", folder, out);
    CHECK_OK(lk_sha256_file(path, hex, &err), &err);
}

static void sleep_for(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&t, NULL);
}

static void killed_and_resumed(const char *folder, const char *out, const char *threads, double whole_seconds, check_random *r)
{
    /* Within a sixth of the run's own time: while the data are read, in a step, in a checkpoint. Most of them come a little further. */
    for (int i = 0; i < KILLS; i++) {
        pid_t child = start(folder, out, threads);
        sleep_for(check_random_uniform(r) * (0.03 + whole_seconds / 6));
        kill(child, SIGKILL);
        int code = finish(child);
        if (code != 128 + SIGKILL && code != 0) fail_msg("kill %d: the program ended with %d", i, code);
    }
    assert_int_equal(finish(start(folder, out, threads)), 0);
}

/* SIGTERM in the middle: a checkpoint, exit code 75, and the same end. */
static void terminated(const char *folder, const char *want)
{
    char got[65], metrics[4096];
    snprintf(metrics, sizeof metrics, "%s/terminated/metrics.jsonl", folder);
    pid_t child = start(folder, "terminated", "2");
    while (!lk_path_exists(metrics)) sleep_for(0.01); /* opened when the steps begin */
    sleep_for(0.2);
    kill(child, SIGTERM);
    assert_int_equal(finish(child), 75);
    assert_int_equal(finish(start(folder, "terminated", "1")), 0);
    digest_of(folder, "terminated", got);
    assert_string_equal(got, want);
}

static void test_kill(void **state)
{
    (void)state;
    if (!lk_path_exists(program)) {
        print_message("skipped: the program is not built\n");
        return;
    }
    char *folder = check_temporary("kill"), want[65], got[65];
    make_data(folder);
    double began = lk_clock_seconds();
    assert_int_equal(finish(start(folder, "whole", "2")), 0);
    double seconds = lk_clock_seconds() - began;
    digest_of(folder, "whole", want);
    check_random r = {20};
    static char *const threads[] = {"1", "2"};
    for (int i = 0; i < 2; i++) {
        char out[32];
        snprintf(out, sizeof out, "killed-%s", threads[i]);
        killed_and_resumed(folder, out, threads[i], seconds, &r);
        digest_of(folder, out, got);
        if (strcmp(got, want)) fail_msg("%s threads: the adapter differs from the uninterrupted run's", threads[i]);
    }
    terminated(folder, want);
    print_message("whole run %.2f s\n", seconds);
    free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_kill)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
