#include "train/run.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/file.h"

/* flock goes away with the process, however it ends. */
static lk_status take_lock(lk_run *run, lk_error *err)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/.lock", run->folder);
    run->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (run->lock < 0) return lk_fail_errno(err, "cannot open %s", path);
    if (!flock(run->lock, LOCK_EX | LOCK_NB)) return LK_OK;
    lk_status status = errno == EWOULDBLOCK ? lk_fail(err, LK_ERR_CONFLICT, "%s is in use by another process", run->folder)
                                            : lk_fail_errno(err, "cannot lock %s", path);
    close(run->lock);
    run->lock = -1;
    return status;
}

static const char *const own_names[] = {"adapter", "checkpoints", "metrics.jsonl", "run.json"};

static lk_status remove_own(const lk_run *run, lk_error *err)
{
    for (size_t i = 0; i < sizeof own_names / sizeof *own_names; i++) {
        char path[4200];
        LK_TRY(lk_path_join(path, sizeof path, run->folder, own_names[i], err));
        LK_TRY(lk_folder_remove(path, err));
    }
    return LK_OK;
}

/* What a killed process was writing: NAME.tmp-PID. We hold the lock, so nobody is writing it now. */
static void remove_temporaries(const char *folder)
{
    lk_arena arena = {0};
    char **names;
    size_t n;
    if (lk_path_is_folder(folder) && !lk_folder_list(folder, &arena, &names, &n, NULL)) {
        for (size_t i = 0; i < n; i++) {
            char path[8400];
            if (!strstr(names[i], ".tmp-")) continue;
            snprintf(path, sizeof path, "%s/%s", folder, names[i]);
            unlink(path);
        }
    }
    lk_arena_free(&arena);
}

static lk_status check_empty(const lk_run *run, lk_error *err)
{
    lk_arena arena = {0};
    char **names;
    size_t n;
    lk_status status = lk_folder_list(run->folder, &arena, &names, &n, err);
    for (size_t i = 0; !status && i < n; i++) {
        if (!strcmp(names[i], ".lock") || !strcmp(names[i], "data")) continue;
        status = lk_fail(err, LK_ERR_CONFLICT,
                         "%s is not empty (%s): --resume goes on with the run in it, --fresh removes that run and starts again",
                         run->folder, names[i]);
    }
    lk_arena_free(&arena);
    return status;
}

static lk_status prepare(lk_run *run, bool resume, bool fresh, lk_error *err)
{
    LK_TRY(take_lock(run, err));
    remove_temporaries(run->folder);
    remove_temporaries(run->adapter);
    remove_temporaries(run->checkpoints);
    remove_temporaries(run->data);
    if (fresh) return remove_own(run, err);
    return resume ? LK_OK : check_empty(run, err);
}

lk_status lk_run_join(lk_run *run, const char *folder, lk_error *err)
{
    memset(run, 0, sizeof *run);
    run->lock = -1;
    if (strlen(folder) > 3900) return lk_fail(err, LK_ERR_ARGUMENT, "path too long: %.80s...", folder);
    snprintf(run->folder, sizeof run->folder, "%s", folder);
    snprintf(run->adapter, sizeof run->adapter, "%s/adapter", folder);
    snprintf(run->checkpoints, sizeof run->checkpoints, "%s/checkpoints", folder);
    snprintf(run->data, sizeof run->data, "%s/data", folder);
    snprintf(run->metrics, sizeof run->metrics, "%s/metrics.jsonl", folder);
    snprintf(run->record, sizeof run->record, "%s/run.json", folder);
    return LK_OK;
}

lk_status lk_run_open(lk_run *run, const char *folder, bool resume, bool fresh, lk_error *err)
{
    LK_TRY(lk_run_join(run, folder, err));
    if (resume && fresh) return lk_fail(err, LK_ERR_ARGUMENT, "--resume and --fresh exclude each other");
    LK_TRY(lk_folder_create(folder, err));
    lk_status status = prepare(run, resume, fresh, err);
    if (status) lk_run_close(run);
    return status;
}

void lk_run_close(lk_run *run)
{
    if (run->lock >= 0) close(run->lock);
    run->lock = -1;
}

lk_status lk_temporary_folder(char out[4096], const char *name, lk_error *err)
{
    const char *where = getenv("TMPDIR");
    if (!where || !*where) where = "/tmp";
    char path[4096];
    snprintf(path, sizeof path, "%.3900s/%.100s-XXXXXX", where, name);
    out[0] = 0;
    if (!mkdtemp(path)) return lk_fail_errno(err, "cannot make a temporary folder in %s", where);
    memcpy(out, path, sizeof path);
    return LK_OK;
}

lk_status lk_run_record(const lk_run *run, const cJSON *content, lk_error *err)
{
    char *text = cJSON_Print(content);
    if (!text) return lk_fail(err, LK_ERR_MEMORY, "no memory for run.json");
    lk_status status = lk_file_replace(run->record, text, strlen(text), err);
    cJSON_free(text);
    return status;
}
