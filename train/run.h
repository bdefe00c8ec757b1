/* The run folder: who may use it, what is in it, and the record of what ran.
 *
 *     lk_run run;
 *     LK_TRY(lk_run_open(&run, "runs/acme", resume, fresh, err));     -- locks it until lk_run_close
 *     ... run.checkpoints, run.adapter, run.data ...
 *     lk_run_close(&run);
 *
 *     adapter/  checkpoints/step-000123.h5  data/train.h5 data/eval.h5  metrics.jsonl  run.json  .lock */
#ifndef LK_TRAIN_RUN_H
#define LK_TRAIN_RUN_H

#include <stdbool.h>

#include "base/json.h"
#include "base/status.h"

typedef struct lk_run {
    char folder[4096];
    char adapter[4200], checkpoints[4200], data[4200], metrics[4200], record[4200];
    int lock; /* file descriptor, -1 when closed */
} lk_run;

/* Creates the folder when missing and locks it; LK_ERR_CONFLICT when another process has it. With neither resume nor fresh a folder that
 * holds anything but token stores is LK_ERR_CONFLICT. fresh removes what a run leaves (and nothing else). Temporary files of a process that
 * was killed are removed. */
lk_status lk_run_open(lk_run *run, const char *folder, bool resume, bool fresh, lk_error *err);
void lk_run_close(lk_run *run);
/* The same folder for a process that helps the one which holds it: no lock, and nothing is changed. */
lk_status lk_run_join(lk_run *run, const char *folder, lk_error *err);

/* Makes a fresh folder NAME-XXXXXX in $TMPDIR or /tmp, for what is not kept. */
lk_status lk_temporary_folder(char out[4096], const char *name, lk_error *err);

/* Replaces run.json. */
lk_status lk_run_record(const lk_run *run, const cJSON *content, lk_error *err);

#endif
