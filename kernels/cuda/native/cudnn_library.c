/* Loading cuDNN. dlopen with RTLD_LOCAL: another cuDNN in the process (a Python that loads this program's library, say) keeps its own. */
#include "kernels/cuda/native/cudnn_library.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Ragged attention with grouped heads and a packed log-sum-exp came with 9.6, describing a device with 9.8, and 9.10.0 and 9.10.1 have a
 * faulty backward (cudnn-frontend's list of known bugs). */
enum { OLDEST = 91100, MAJOR = CUDNN_MAJOR };

lk_status lk_cudnn_refused(const lk_cudnn *dnn, lk_error *err, cudnnStatus_t s, const char *what)
{
    char detail[600] = "";
    dnn->cudnnGetLastErrorString(detail, sizeof detail);
    for (char *c = detail; *c; c++)
        if (*c == '\n') *c = ' ';
    bool unsupported = s / 1000 == CUDNN_STATUS_NOT_SUPPORTED / 1000;
    return lk_fail(err, unsupported ? LK_ERR_UNSUPPORTED : LK_ERR_INTERNAL, "%s: cuDNN says %s%s%s", what, dnn->cudnnGetErrorString(s),
                   *detail ? ": " : "", detail);
}

static lk_status find_functions(lk_cudnn *d, lk_error *err)
{
#define FIND(name)                                                                                                          \
    do {                                                                                                                    \
        void *found = dlsym(d->library, #name);                                                                             \
        if (!found) return lk_fail(err, LK_ERR_UNSUPPORTED, "libcudnn.so.%d has no %s: install cuDNN again", MAJOR, #name); \
        memcpy(&d->name, &found, sizeof found);                                                                             \
    } while (0);
    LK_CUDNN_FUNCTIONS(FIND)
#undef FIND
    return LK_OK;
}

static lk_status describe(lk_cudnn *d, const char *json, lk_error *err)
{
    cudnnStatus_t s = d->cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &d->described);
    if (!s)
        s = d->cudnnBackendSetAttribute(d->described, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, (int64_t)strlen(json),
                                        json);
    if (!s) s = d->cudnnBackendFinalize(d->described);
    return s ? lk_cudnn_refused(d, err, s, "describing a device") : LK_OK;
}

lk_status lk_cudnn_open(lk_cudnn **dnn, const char *device_json, lk_error *err)
{
    *dnn = NULL;
    lk_status status;
    lk_cudnn *d = calloc(1, sizeof *d);
    if (!d) return lk_fail(err, LK_ERR_MEMORY, "no memory for cuDNN's table of functions");
    char name[32];
    snprintf(name, sizeof name, "libcudnn.so.%d", MAJOR);
    d->library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!d->library) {
        status = lk_fail(err, LK_ERR_UNSUPPORTED, "cuDNN is not there: %s", dlerror());
        goto out;
    }
    if ((status = find_functions(d, err))) goto out;
    d->version = d->cudnnGetVersion();
    if (d->version < OLDEST) {
        status = lk_fail(err, LK_ERR_UNSUPPORTED, "cuDNN %zu.%zu.%zu is too old: %d.%d or newer is needed", d->version / 10000,
                         d->version / 100 % 100, d->version % 100, OLDEST / 10000, OLDEST / 100 % 100);
        goto out;
    }
    if (device_json) {
        status = describe(d, device_json, err);
    } else {
        cudnnStatus_t s = d->cudnnCreate(&d->handle);
        if (s) { /* parts of it missing, for one: as good as not there */
            (void)lk_cudnn_refused(d, err, s, "starting cuDNN");
            if (err) err->code = LK_ERR_UNSUPPORTED;
            status = LK_ERR_UNSUPPORTED;
        }
    }
    if (status) goto out;
    *dnn = d;
    return LK_OK;
out:
    lk_cudnn_close(d);
    return status;
}

void lk_cudnn_close(lk_cudnn *dnn)
{
    if (!dnn) return;
    if (dnn->described) (void)dnn->cudnnBackendDestroyDescriptor(dnn->described);
    if (dnn->handle) (void)dnn->cudnnDestroy(dnn->handle);
    /* The library stays: it has handed destructors to the process and cannot be unloaded safely. */
    free(dnn);
}
