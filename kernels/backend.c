/* Opening a backend by name, and the functions of kernels/ops.h that concern backends, memory and matrices rather than
 * computing. A failed open has no backend to keep its message, so it alone reports through its own lk_error. */
#include "kernels/backend.h"

#include <string.h>

#include "base/log.h"
#include "kernels/cpu/cpu.h"
#include "kernels/module.h"

static bool is_cuda(const char *device)
{
    return strcmp(device, "cuda") == 0 ||
           (strncmp(device, "cuda:", 5) == 0 && device[5] && strspn(device + 5, "0123456789") == strlen(device + 5));
}

/* A GPU where there is one that works. Whoever has a driver or a module probably wanted it, so they are told what is in its way; a machine
 * with neither hears nothing. A backend that was found and then failed (no memory left on the device) is not replaced by another. */
static lk_status open_auto(lk_backend **be, const lk_backend_options *options, lk_error *err)
{
    lk_error why = {0};
    lk_status status = options->cpu_tier ? LK_ERR_NOT_FOUND : lk_module_open(be, options, &why);
    if (status == LK_OK) return LK_OK;
    if (status != LK_ERR_NOT_FOUND && status != LK_ERR_UNSUPPORTED) {
        if (err) *err = why;
        return status;
    }
    if (!options->cpu_tier && (status == LK_ERR_UNSUPPORTED || lk_module_driver_present()))
        lk_log(LK_LOG_INFO, "the CPU computes: %s", why.message);
    return lk_cpu_open(be, options, err);
}

lk_status lk_backend_open(lk_backend **be, const lk_backend_options *options, lk_error *err)
{
    *be = NULL;
    const char *device = options->device ? options->device : "auto";
    if (options->compute != LK_F32 && options->compute != LK_BF16)
        return lk_fail(err, LK_ERR_ARGUMENT, "compute type %s: operations compute in f32 or bf16", lk_dtype_name(options->compute));
    if (options->threads < 0) return lk_fail(err, LK_ERR_ARGUMENT, "%d threads: give a positive number, or 0 for all", options->threads);
    if (strcmp(device, "cpu") == 0) return lk_cpu_open(be, options, err);
    if (strcmp(device, "auto") == 0) return open_auto(be, options, err);
    if (is_cuda(device)) return lk_module_open(be, options, err);
    return lk_fail(err, LK_ERR_ARGUMENT, "device \"%s\" is not known; use cpu, cuda, cuda:N or auto", device);
}

void lk_backend_close(lk_backend *be)
{
    if (be) be->ops->close(be);
}

const lk_error *lk_backend_error(const lk_backend *be) { return &be->error; }

lk_status lk_backend_fail(const lk_backend *be, lk_status status, lk_error *err)
{
    if (err) *err = be->error;
    return status;
}

const char *lk_backend_name(const lk_backend *be) { return be->name; }
const char *lk_backend_about(const lk_backend *be) { return be->about; }
int lk_backend_threads(const lk_backend *be) { return be->threads; }
lk_dtype lk_backend_compute(const lk_backend *be) { return be->compute; }
lk_dtype lk_backend_act(const lk_backend *be) { return be->act; }
bool lk_backend_mixes(const lk_backend *be)
{
    const lk_ops *o = be->ops;
    return o->moe_route && o->moe_route_backward && o->moe_combine && o->moe_combine_backward;
}

bool lk_backend_serves(const lk_backend *be)
{
    return be->ops->kv_create && be->ops->kv_write && be->ops->paged_attention && (be->ops->sample || be->ops->sample_begin);
}
bool lk_backend_ahead(const lk_backend *be) { return be->ops->sample_begin != NULL; }
bool lk_backend_records(const lk_backend *be) { return be->ops->step_begin != NULL; }
lk_status lk_backend_use(lk_backend *be) { return be->ops->use ? be->ops->use(be) : LK_OK; }

lk_status lk_loader_open(lk_backend **loader, lk_backend *be, lk_error *err)
{
    *loader = NULL;
    return be->ops->loader_open(loader, be, err);
}

lk_status lk_loader_after(lk_backend *loader, lk_backend *be) { return be->ops->loader_after ? be->ops->loader_after(loader, be) : LK_OK; }

lk_status lk_alloc(lk_backend *be, size_t bytes, void **out)
{
    *out = NULL;
    return be->ops->alloc(be, bytes, out);
}

void lk_free(lk_backend *be, void *p)
{
    if (p) be->ops->free(be, p);
}

size_t lk_allocated(const lk_backend *be) { return be->allocated; }
size_t lk_allocated_peak(const lk_backend *be) { return be->allocated_peak; }

lk_status lk_upload(lk_backend *be, void *device, const void *host, size_t bytes)
{
    return bytes ? be->ops->upload(be, device, host, bytes) : LK_OK;
}

lk_status lk_download(lk_backend *be, void *host, const void *device, size_t bytes)
{
    return bytes ? be->ops->download(be, host, device, bytes) : LK_OK;
}

lk_status lk_zero(lk_backend *be, void *device, size_t bytes) { return bytes ? be->ops->zero(be, device, bytes) : LK_OK; }

lk_status lk_copy(lk_backend *be, void *device_to, const void *device_from, size_t bytes)
{
    return bytes ? be->ops->copy(be, device_to, device_from, bytes) : LK_OK;
}

lk_status lk_sync(lk_backend *be) { return be->ops->sync(be); }

size_t lk_device_memory(const lk_backend *be) { return be->ops->device_memory ? be->ops->device_memory(be) : 0; }

lk_status lk_host_alloc(lk_backend *be, size_t bytes, void **out)
{
    *out = NULL;
    return be->ops->host_alloc(be, bytes, out);
}

void lk_host_free(lk_backend *be, void *p)
{
    if (p) be->ops->host_free(be, p);
}

lk_status lk_transfer_begin(lk_backend *be, int slot, void *to, const void *from, size_t bytes)
{
    if (slot < 0 || slot >= LK_TRANSFER_SLOTS)
        return lk_fail(&be->error, LK_ERR_INTERNAL, "transfer_begin: slot %d of %d", slot, LK_TRANSFER_SLOTS);
    return be->ops->transfer_begin(be, slot, to, from, bytes);
}

lk_status lk_transfer_wait(lk_backend *be, int slot)
{
    if (slot < 0 || slot >= LK_TRANSFER_SLOTS)
        return lk_fail(&be->error, LK_ERR_INTERNAL, "transfer_wait: slot %d of %d", slot, LK_TRANSFER_SLOTS);
    return be->ops->transfer_wait(be, slot);
}

size_t lk_scratch_bytes(const lk_backend *be, const lk_limits *limits) { return be->ops->scratch_bytes(be, limits); }

lk_status lk_reserve(lk_backend *be, const lk_limits *limits) { return be->ops->reserve(be, limits); }

lk_status lk_all_reduce(lk_backend *be, float *x, int64_t n)
{
    if (!be->ranks || n < 1) return LK_OK;
    if (!be->ops->all_reduce) return lk_fail(&be->error, LK_ERR_UNSUPPORTED, "all_reduce: the backend %s does not have it", be->name);
    return be->ops->all_reduce(be, x, n);
}

lk_status lk_matrix_create(lk_backend *be, lk_matrix **out, const lk_matrix_source *source)
{
    *out = NULL;
    lk_dtype type = source->type;
    if (type != LK_F32 && type != LK_BF16 && type != LK_F16 && type != LK_NF4)
        return lk_fail(&be->error, LK_ERR_UNSUPPORTED, "matrix_create: a matrix of type %s; f32, bf16, f16 and nf4 are known",
                       lk_dtype_name(type));
    if (source->n < 1 || source->k < 1)
        return lk_fail(&be->error, LK_ERR_INTERNAL, "matrix_create: a matrix of %lld x %lld", (long long)source->n, (long long)source->k);
    if (!source->data && (source->type != LK_F32 || !be->ops->matrix_set))
        return lk_fail(&be->error, LK_ERR_INTERNAL, "matrix_create: no data");
    if ((type == LK_NF4) != (source->absmax != NULL))
        return lk_fail(&be->error, LK_ERR_INTERNAL, "matrix_create: absmax belongs to nf4 matrices and to no others");
    if ((source->absmax8 != NULL) != (source->absmax2 != NULL) || (source->absmax8 && type != LK_NF4))
        return lk_fail(&be->error, LK_ERR_INTERNAL, "matrix_create: half of a nested form, or one without nf4");
    return be->ops->matrix_create(be, out, source);
}

void lk_matrix_destroy(lk_backend *be, lk_matrix *w)
{
    if (w) be->ops->matrix_destroy(be, w);
}

size_t lk_matrix_bytes(const lk_backend *be, lk_dtype source_type, int64_t n, int64_t k, bool nested)
{
    return be->ops->matrix_bytes(be, source_type, n, k, nested);
}

const void *lk_matrix_data(const lk_backend *be, const lk_matrix *w) { return be->ops->matrix_data ? be->ops->matrix_data(w) : NULL; }

lk_status lk_matrix_lend(lk_backend *be, lk_matrix *w, void *data)
{
    if (!be->ops->matrix_lend || w->type == LK_NF4)
        return lk_fail(&be->error, LK_ERR_UNSUPPORTED, "matrix_lend: the backend %s does not have it for %s", be->name,
                       lk_dtype_name(w->type));
    be->ops->matrix_lend(be, w, data);
    return LK_OK;
}

int64_t lk_matrix_n(const lk_matrix *w) { return w->n; }
int64_t lk_matrix_k(const lk_matrix *w) { return w->k; }
lk_dtype lk_matrix_type(const lk_matrix *w) { return w->type; }
