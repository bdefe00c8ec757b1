#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

lk_status lk_map_open(lk_map *map, const char *path, lk_error *err)
{
    *map = (lk_map){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return lk_fail_errno(err, "cannot open %s", path);
    struct stat info;
    lk_status status = LK_OK;
    if (fstat(fd, &info)) {
        status = lk_fail_errno(err, "cannot read the size of %s", path);
    } else if (!S_ISREG(info.st_mode)) {
        status = lk_fail(err, LK_ERR_IO, "%s is not a regular file", path);
    } else if (info.st_size > 0) {
        void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED) {
            status = lk_fail_errno(err, "cannot map %s", path);
        } else {
            map->data = data;
            map->size = (size_t)info.st_size;
        }
    }
    close(fd);
    return status;
}

void lk_map_close(lk_map *map)
{
    if (map->data) munmap((void *)(uintptr_t)map->data, map->size);
    *map = (lk_map){0};
}

lk_status lk_file_read(const char *path, size_t max_bytes, char **text, size_t *size, lk_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return lk_fail_errno(err, "cannot open %s", path);
    lk_status status = LK_OK;
    char *buffer = NULL;
    size_t used = 0, room = 0;
    for (;;) { /* grows as it reads: the size of a pipe or of a /proc file is not known beforehand */
        if (used == room) {
            room = room ? room * 2 : 16384;
            char *grown = realloc(buffer, room + 1);
            if (!grown) {
                status = lk_fail(err, LK_ERR_MEMORY, "no memory to read %s", path);
                goto out;
            }
            buffer = grown;
        }
        ssize_t n = read(fd, buffer + used, room - used);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            status = lk_fail_errno(err, "cannot read %s", path);
            goto out;
        }
        if (n == 0) break;
        used += (size_t)n;
        if (used > max_bytes) {
            status = lk_fail(err, LK_ERR_FORMAT, "%s is larger than the %zu bytes allowed for such a file", path, max_bytes);
            goto out;
        }
    }
    buffer[used] = 0;
    *text = buffer;
    *size = used;
    buffer = NULL;
out:
    free(buffer);
    close(fd);
    return status;
}

lk_status lk_path_sync(const char *path, lk_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return lk_fail_errno(err, "cannot open %s to flush it", path);
    int failed = fsync(fd);
    /* Some file systems do not flush folders and say EINVAL: nothing more can be done there. */
    lk_status status = failed && errno != EINVAL ? lk_fail_errno(err, "cannot flush %s to the disk", path) : LK_OK;
    close(fd);
    return status;
}

lk_status lk_path_commit(const char *temporary, const char *path, lk_error *err)
{
    char folder[4096];
    lk_status status = lk_path_sync(temporary, err);
    if (!status && rename(temporary, path)) status = lk_fail_errno(err, "cannot rename %s to %s", temporary, path);
    if (status) {
        unlink(temporary);
        return status;
    }
    LK_TRY(lk_path_folder(folder, sizeof folder, path, err));
    return lk_path_sync(folder, err);
}

lk_status lk_atomic_open(lk_atomic_file *file, const char *path, lk_error *err)
{
    memset(file, 0, sizeof *file);
    if (strlen(path) >= sizeof file->path) return lk_fail(err, LK_ERR_ARGUMENT, "path too long: %.80s...", path);
    strcpy(file->path, path);
    snprintf(file->temporary, sizeof file->temporary, "%s.tmp-%ld", path, (long)getpid());
    file->stream = fopen(file->temporary, "wb");
    if (!file->stream) return lk_fail_errno(err, "cannot write %s", file->temporary);
    return LK_OK;
}

lk_status lk_atomic_write(lk_atomic_file *file, const void *bytes, size_t size, lk_error *err)
{
    if (size && fwrite(bytes, 1, size, file->stream) != size) return lk_fail_errno(err, "cannot write %s", file->path);
    return LK_OK;
}

lk_status lk_atomic_commit(lk_atomic_file *file, lk_error *err)
{
    lk_status status = LK_OK;
    if (fflush(file->stream)) status = lk_fail_errno(err, "cannot write %s", file->path);
    if (fclose(file->stream) && !status) status = lk_fail_errno(err, "cannot write %s", file->path);
    file->stream = NULL;
    if (status) {
        unlink(file->temporary);
        return status;
    }
    return lk_path_commit(file->temporary, file->path, err);
}

void lk_atomic_abort(lk_atomic_file *file)
{
    if (!file->stream) return;
    fclose(file->stream);
    unlink(file->temporary);
    file->stream = NULL;
}

lk_status lk_file_replace(const char *path, const void *bytes, size_t size, lk_error *err)
{
    lk_atomic_file file;
    LK_TRY(lk_atomic_open(&file, path, err));
    lk_status status = lk_atomic_write(&file, bytes, size, err);
    if (status) {
        lk_atomic_abort(&file);
        return status;
    }
    return lk_atomic_commit(&file, err);
}

bool lk_path_exists(const char *path)
{
    struct stat info;
    return !stat(path, &info);
}

bool lk_path_is_folder(const char *path)
{
    struct stat info;
    return !stat(path, &info) && S_ISDIR(info.st_mode);
}

lk_status lk_folder_create(const char *path, lk_error *err)
{
    char part[4096];
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof part) return lk_fail(err, LK_ERR_ARGUMENT, "not a folder name: '%.80s'", path);
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != 0) continue;
        memcpy(part, path, i);
        part[i] = 0;
        if (mkdir(part, 0777) && errno != EEXIST) return lk_fail_errno(err, "cannot create folder %s", part);
    }
    if (!lk_path_is_folder(path)) return lk_fail(err, LK_ERR_IO, "%s exists and is not a folder", path);
    return LK_OK;
}

lk_status lk_folder_list(const char *path, lk_arena *arena, char ***names, size_t *n_names, lk_error *err)
{
    struct dirent **entries = NULL;
    int n = scandir(path, &entries, NULL, NULL);
    if (n < 0) return lk_fail_errno(err, "cannot list %s", path);
    lk_status status = LK_OK;
    char **list = lk_arena_alloc(arena, ((size_t)n + 1) * sizeof *list);
    size_t used = 0;
    for (int i = 0; i < n; i++) {
        const char *name = entries[i]->d_name;
        bool own = !strcmp(name, ".") || !strcmp(name, "..");
        if (list && !own && !(list[used++] = lk_arena_strdup(arena, name))) list = NULL;
        free(entries[i]);
    }
    free(entries);
    if (!list) return lk_fail(err, LK_ERR_MEMORY, "no memory to list %s", path);
    /* By bytes, not by locale: the same order on every machine. Insertion sort: folders here are small. */
    for (size_t i = 1; i < used; i++) {
        for (size_t j = i; j > 0 && strcmp(list[j - 1], list[j]) > 0; j--) {
            char *swap = list[j];
            list[j] = list[j - 1];
            list[j - 1] = swap;
        }
    }
    *names = list;
    *n_names = used;
    return status;
}

lk_status lk_folder_remove(const char *path, lk_error *err)
{
    struct stat info;
    if (lstat(path, &info)) return errno == ENOENT ? LK_OK : lk_fail_errno(err, "cannot look at %s", path);
    if (!S_ISDIR(info.st_mode)) return unlink(path) ? lk_fail_errno(err, "cannot remove %s", path) : LK_OK;
    lk_arena arena = {0};
    char **names = NULL;
    size_t n = 0;
    lk_status status = lk_folder_list(path, &arena, &names, &n, err);
    for (size_t i = 0; !status && i < n; i++) {
        char child[4096];
        status = lk_path_join(child, sizeof child, path, names[i], err);
        if (!status) status = lk_folder_remove(child, err);
    }
    lk_arena_free(&arena);
    if (!status && rmdir(path)) status = lk_fail_errno(err, "cannot remove folder %s", path);
    return status;
}

lk_status lk_path_join(char *out, size_t size, const char *folder, const char *name, lk_error *err)
{
    int n = name[0] == '/' ? snprintf(out, size, "%s", name) : snprintf(out, size, "%s/%s", folder, name);
    if (n < 0 || (size_t)n >= size) return lk_fail(err, LK_ERR_ARGUMENT, "path too long: %.80s/%.80s", folder, name);
    return LK_OK;
}

lk_status lk_path_folder(char *out, size_t size, const char *path, lk_error *err)
{
    const char *slash = strrchr(path, '/');
    size_t length = slash ? (slash == path ? 1 : (size_t)(slash - path)) : 1;
    if (length >= size) return lk_fail(err, LK_ERR_ARGUMENT, "path too long: %.80s...", path);
    memcpy(out, slash ? path : ".", length);
    out[length] = 0;
    return LK_OK;
}
