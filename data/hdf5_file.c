/* Creating HDF5 files so that a full disk is an error and not a crash.
 *
 * HDF5 keeps metadata in memory and writes it on closing. When that write fails, H5Fclose fails too, the file stays half open inside
 * the library, and the next use of the library or the end of the process touches freed memory (seen with 1.10.8). So the library must
 * never see a write fail. This small file driver notes the first error for us, and from then on pretends that writing works: the
 * file closes cleanly, we look at the note, report, and remove the file.
 *
 * Rejected: reserving the space beforehand (not every file system can, and the size is not known), and leaving the handle open
 * (the library closes it at exit, and crashes there). */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/hdf5.h"
#if H5_VERSION_GE(1, 13, 0)
#include <H5FDdevelop.h>
#endif

typedef struct driver_info {
    int *write_error; /* the caller's: errno of the first failed write, 0 while all is well */
} driver_info;

typedef struct driver_file {
    H5FD_t common; /* HDF5's part, first */
    int fd;
    int *write_error;
    haddr_t end_allocated, end_written;
    dev_t device;
    ino_t inode;
} driver_file;

static H5FD_t *driver_open(const char *name, unsigned flags, hid_t access, haddr_t max)
{
    const driver_info *info = H5Pget_driver_info(access);
    struct stat status;
    (void)max;
    if (!info) return NULL;
    int mode = (flags & H5F_ACC_RDWR ? O_RDWR : O_RDONLY) | (flags & H5F_ACC_TRUNC ? O_TRUNC : 0) | (flags & H5F_ACC_CREAT ? O_CREAT : 0) |
               (flags & H5F_ACC_EXCL ? O_EXCL : 0) | O_CLOEXEC;
    int fd = open(name, mode, 0666);
    if (fd < 0) return NULL; /* HDF5 tries modes that may fail */
    driver_file *f = calloc(1, sizeof *f);
    if (!f || fstat(fd, &status)) {
        free(f);
        close(fd);
        return NULL;
    }
    f->fd = fd;
    f->write_error = info->write_error;
    f->end_written = (haddr_t)status.st_size;
    f->device = status.st_dev;
    f->inode = status.st_ino;
    return &f->common;
}

static herr_t driver_close(H5FD_t *file)
{
    driver_file *f = (driver_file *)file;
    if (close(f->fd) && !*f->write_error) *f->write_error = errno;
    free(f);
    return 0;
}

/* An order over open files, by which HDF5 notices that one is opened twice. */
static int driver_compare(const H5FD_t *a, const H5FD_t *b)
{
    const driver_file *x = (const driver_file *)a, *y = (const driver_file *)b;
    if (x->device != y->device) return x->device < y->device ? -1 : 1;
    if (x->inode != y->inode) return x->inode < y->inode ? -1 : 1;
    return 0;
}

static herr_t driver_query(const H5FD_t *file, unsigned long *flags)
{
    (void)file;
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE | H5FD_FEAT_AGGREGATE_SMALLDATA |
             H5FD_FEAT_DEFAULT_VFD_COMPATIBLE;
    return 0;
}

static haddr_t driver_end_allocated(const H5FD_t *file, H5FD_mem_t type)
{
    (void)type;
    return ((const driver_file *)file)->end_allocated;
}

static herr_t driver_allocate(H5FD_t *file, H5FD_mem_t type, haddr_t end)
{
    (void)type;
    ((driver_file *)file)->end_allocated = end;
    return 0;
}

static haddr_t driver_end_written(const H5FD_t *file, H5FD_mem_t type)
{
    (void)type;
    return ((const driver_file *)file)->end_written;
}

/* Beyond the end there are zeros, as in a sparse file. */
static herr_t driver_read(H5FD_t *file, H5FD_mem_t type, hid_t transfer, haddr_t at, size_t size, void *buffer)
{
    const driver_file *f = (const driver_file *)file;
    unsigned char *p = buffer;
    (void)type;
    (void)transfer;
    while (size > 0) {
        ssize_t n = pread(f->fd, p, size, (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        if (n == 0) {
            memset(p, 0, size);
            break;
        }
        p += n;
        at += (haddr_t)n;
        size -= (size_t)n;
    }
    return 0;
}

static herr_t driver_write(H5FD_t *file, H5FD_mem_t type, hid_t transfer, haddr_t at, size_t size, const void *buffer)
{
    driver_file *f = (driver_file *)file;
    const unsigned char *p = buffer;
    (void)type;
    (void)transfer;
    if (at + size > f->end_written) f->end_written = at + size;
    while (size > 0 && !*f->write_error) {
        ssize_t n = pwrite(f->fd, p, size, (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            *f->write_error = n < 0 ? errno : ENOSPC;
            break;
        }
        p += n;
        at += (haddr_t)n;
        size -= (size_t)n;
    }
    return 0;
}

/* The file gets the length that HDF5 has allocated, so that a reader can tell a file that is cut off. */
static herr_t driver_truncate(H5FD_t *file, hid_t transfer, hbool_t closing)
{
    driver_file *f = (driver_file *)file;
    (void)transfer;
    (void)closing;
    if (f->end_allocated == f->end_written) return 0;
    if (!*f->write_error && ftruncate(f->fd, (off_t)f->end_allocated)) *f->write_error = errno;
    f->end_written = f->end_allocated;
    return 0;
}

static const H5FD_class_t driver = {
#if H5_VERSION_GE(1, 13, 0)
    .version = H5FD_CLASS_VERSION,
    .value = (H5FD_class_value_t)600, /* the numbers from 256 to 65535 are free for programs */
#endif
    .name = "lorikeet",
    .maxaddr = (haddr_t)1 << 62,
    .fc_degree = H5F_CLOSE_STRONG,
    .fapl_size = sizeof(driver_info),
    .open = driver_open,
    .close = driver_close,
    .cmp = driver_compare,
    .query = driver_query,
    .get_eoa = driver_end_allocated,
    .set_eoa = driver_allocate,
    .get_eof = driver_end_written,
    .read = driver_read,
    .write = driver_write,
    .truncate = driver_truncate,
    .fl_map = H5FD_FLMAP_DICHOTOMY,
};

/* Format of HDF5 1.10: its metadata carry checksums. No locks: shared file systems refuse them, and our files are complete before they
 * get their name. */
static hid_t access_properties(void)
{
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    if (access < 0) return access;
    bool failed = H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110) < 0;
#if H5_VERSION_GE(1, 10, 7)
    failed = failed || H5Pset_file_locking(access, 0, 1) < 0;
#endif
    if (!failed) return access;
    H5Pclose(access);
    return -1;
}

lk_status lk_h5_create(hid_t *file, const char *path, int *write_error, lk_error *err)
{
    *file = -1;
    *write_error = 0;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666); /* HDF5 would not say why it cannot */
    if (fd < 0) return lk_fail_errno(err, "cannot create %s", path);
    close(fd);
    const driver_info info = {write_error};
    hid_t access = access_properties(), id = H5FDregister(&driver);
    if (access >= 0 && id >= 0 && H5Pset_driver(access, id, &info) >= 0) *file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, access);
    if (access >= 0) H5Pclose(access);
    if (id >= 0) H5FDunregister(id); /* the open file holds on to it */
    if (*file >= 0) return LK_OK;
    unlink(path);
    return lk_h5_fail(err, LK_ERR_IO, "cannot create %s", path);
}

lk_status lk_h5_check(const int *write_error, const char *path, lk_error *err)
{
    if (!*write_error) return LK_OK;
    errno = *write_error;
    return lk_fail_errno(err, "cannot write %s", path);
}

lk_status lk_h5_close(hid_t *file, const int *write_error, const char *path, lk_error *err)
{
    if (*file < 0) return LK_OK;
    bool failed = H5Fflush(*file, H5F_SCOPE_GLOBAL) < 0;
    failed |= H5Fclose(*file) < 0;
    *file = -1;
    LK_TRY(lk_h5_check(write_error, path, err));
    return failed ? lk_h5_fail(err, LK_ERR_IO, "cannot write %s", path) : LK_OK;
}

lk_status lk_h5_open(hid_t *file, const char *path, lk_error *err)
{
    *file = -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return lk_fail_errno(err, "cannot open %s", path);
    close(fd);
    hid_t access = access_properties();
    if (access >= 0) {
        *file = H5Fopen(path, H5F_ACC_RDONLY, access);
        H5Pclose(access);
    }
    return *file >= 0 ? LK_OK : lk_h5_fail(err, LK_ERR_FORMAT, "%s: not an HDF5 file, or damaged", path);
}
