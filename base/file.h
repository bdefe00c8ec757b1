/* Files: mapping, whole reads, and replacement that a crash cannot tear.
 *
 *     lk_atomic_file out;
 *     LK_TRY(lk_atomic_open(&out, "run/adapter/adapter_model.safetensors", err));
 *     ... lk_atomic_write(&out, bytes, n, err) ...
 *     LK_TRY(lk_atomic_commit(&out, err));         -- or lk_atomic_abort(&out)
 *
 * The new content is written to a temporary file in the same folder, flushed to the disk (fsync), renamed over the old
 * name, and the folder flushed: after a crash the name holds the old content or the new, never a mixture. A reader that
 * has the old file mapped keeps the old content. */
#ifndef LK_BASE_FILE_H
#define LK_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/arena.h"
#include "base/status.h"

/* A read-only mapping of a whole file. data is NULL for an empty file. Close with lk_map_close. */
typedef struct lk_map {
    const unsigned char *data;
    size_t size;
} lk_map;

lk_status lk_map_open(lk_map *map, const char *path, lk_error *err);
void lk_map_close(lk_map *map); /* safe on a zeroed or closed map */

/* Reads a whole file into memory the caller frees with free(); *text ends in a zero that *size does not count.
 * Files larger than max_bytes are refused (LK_ERR_FORMAT). */
lk_status lk_file_read(const char *path, size_t max_bytes, char **text, size_t *size, lk_error *err);

typedef struct lk_atomic_file {
    FILE *stream;         /* write here; NULL when closed */
    char path[4096];      /* the name to be replaced */
    char temporary[4160]; /* where the bytes are until commit */
} lk_atomic_file;

lk_status lk_atomic_open(lk_atomic_file *file, const char *path, lk_error *err);
lk_status lk_atomic_write(lk_atomic_file *file, const void *bytes, size_t size, lk_error *err);
lk_status lk_atomic_commit(lk_atomic_file *file, lk_error *err); /* on failure the temporary file is removed */
void lk_atomic_abort(lk_atomic_file *file);                      /* safe after commit or on a zeroed struct */

/* The three steps in one, for content that is in memory. */
lk_status lk_file_replace(const char *path, const void *bytes, size_t size, lk_error *err);

/* fsync of a file or folder by name; lk_path_commit(temporary, path) does fsync, rename and folder fsync for a file that
 * another library (HDF5) wrote. */
lk_status lk_path_sync(const char *path, lk_error *err);
lk_status lk_path_commit(const char *temporary, const char *path, lk_error *err);

bool lk_path_exists(const char *path);
bool lk_path_is_folder(const char *path);
lk_status lk_folder_create(const char *path, lk_error *err); /* with parents; an existing folder is fine */
/* Removes a folder and what is in it. Missing is fine. Does not follow links. */
lk_status lk_folder_remove(const char *path, lk_error *err);
/* Names in a folder, sorted by bytes, without . and ..; they live in the arena. */
lk_status lk_folder_list(const char *path, lk_arena *arena, char ***names, size_t *n_names, lk_error *err);

/* folder/name into out[size]; an absolute name is taken as it is. LK_ERR_ARGUMENT when it does not fit. */
lk_status lk_path_join(char *out, size_t size, const char *folder, const char *name, lk_error *err);
/* The folder part of path ("." when there is none). */
lk_status lk_path_folder(char *out, size_t size, const char *path, lk_error *err);

#endif
