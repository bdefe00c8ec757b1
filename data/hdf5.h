/* HDF5 inside this program: quiet, and with its error stack turned into our messages.
 *
 *     lk_h5_begin();                                        -- first thing in every public function that calls HDF5
 *     if (H5Dread(...) < 0) return lk_h5_fail(err, LK_ERR_FORMAT, "%s: document %lld", path, doc);
 *
 * HDF5 handles are used by one thread at a time, here and in checkpoints: Debian's library has a lock, others have none. */
#ifndef LK_DATA_HDF5_H
#define LK_DATA_HDF5_H

#include <hdf5.h>

#include "base/status.h"

/* Turns off HDF5's own printing for the calling thread and forgets old errors. Cheap. */
void lk_h5_begin(void);
/* Like lk_fail, ending in the innermost reason of HDF5's error stack, which is cleared. */
lk_status lk_h5_fail(lk_error *err, lk_status code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* A new file (an old one is cut to nothing: give a temporary name, then lk_path_commit), in the format whose metadata carry checksums.
 * A write that fails does not fail in HDF5, which would not survive it, but sets *write_error to its errno; *write_error must live until
 * the file is closed. lk_h5_check and lk_h5_close turn it into LK_ERR_IO. Close all other handles of the file before, or HDF5 does. */
lk_status lk_h5_create(hid_t *file, const char *path, int *write_error, lk_error *err);
lk_status lk_h5_check(const int *write_error, const char *path, lk_error *err);
/* Flushes and closes, also when it fails; sets *file to -1. Nothing happens when it is negative. */
lk_status lk_h5_close(hid_t *file, const int *write_error, const char *path, lk_error *err);
/* Read-only; H5Fclose it. LK_ERR_IO when it is not there, LK_ERR_FORMAT when it is not HDF5 or cut off. */
lk_status lk_h5_open(hid_t *file, const char *path, lk_error *err);

/* A scalar string attribute of an object, replaced when it exists. */
lk_status lk_h5_write_text(hid_t object, const char *name, const char *value, const char *where, lk_error *err);
lk_status lk_h5_write_int(hid_t object, const char *name, int64_t value, const char *where, lk_error *err);
/* free(*value). A whole number comes as its decimal text. LK_ERR_NOT_FOUND when there is none. */
lk_status lk_h5_read_text(hid_t object, const char *name, char **value, const char *where, lk_error *err);
lk_status lk_h5_read_int(hid_t object, const char *name, int64_t *value, const char *where, lk_error *err);

#endif
