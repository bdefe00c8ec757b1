/* kernels/cuda/runtime.h over the CUDA runtime, which is linked statically: it finds the driver by itself when first asked, so this module
 * loads on a machine without one and lk_rt_open can say what is missing. Every refusal of the runtime is reported with its name and text
 * and then cleared, so that it does not show up again as the fault of the next kernel launch. (Errors after which the device is lost
 * cannot be cleared: every later call repeats them, and that is right.) */
#include "kernels/cuda/runtime.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <cuda_runtime_api.h>

enum { OLDEST_MAJOR = 8, OLDEST_MINOR = 0 };

__attribute__((format(printf, 3, 4))) static lk_status refused(lk_error *err, cudaError_t e, const char *format, ...)
{
    char what[256];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    (void)cudaGetLastError();
    lk_status code = e == cudaErrorMemoryAllocation ? LK_ERR_MEMORY : LK_ERR_INTERNAL;
    return lk_fail(err, code, "%s: %s (%s)", what, cudaGetErrorString(e), cudaGetErrorName(e));
}

/* ---------------------------------------------------------------------------------------------------------------- the device */

/* Why there is no device to use, in one line with what to do. */
static lk_status no_device(lk_error *err, cudaError_t e, int driver)
{
    int wants = CUDART_VERSION;
    (void)cudaGetLastError();
    if (e == cudaErrorInsufficientDriver && driver > 0)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "the NVIDIA driver supports CUDA %d.%d, this module needs %d.%d: update the driver",
                       driver / 1000, driver % 1000 / 10, wants / 1000, wants % 1000 / 10);
    if (e == cudaErrorInsufficientDriver)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "no NVIDIA driver here: libcuda.so.1 was not found; install the driver");
    if (e == cudaErrorStubLibrary)
        return lk_fail(
            err, LK_ERR_UNSUPPORTED,
            "no NVIDIA driver here: the libcuda.so.1 that was found is the toolkit's stub; take its folder out of LD_LIBRARY_PATH");
    if (e == cudaErrorNoDevice)
        return lk_fail(err, LK_ERR_UNSUPPORTED,
                       "there is an NVIDIA driver but no GPU to use: see nvidia-smi, CUDA_VISIBLE_DEVICES and the container's devices");
    if (e == cudaErrorSystemDriverMismatch || e == cudaErrorCompatNotSupportedOnDevice)
        return lk_fail(err, LK_ERR_UNSUPPORTED,
                       "the NVIDIA kernel module and libcuda are of different versions (%s): reboot, or reinstall "
                       "the driver",
                       cudaGetErrorString(e));
    return lk_fail(err, LK_ERR_UNSUPPORTED, "the NVIDIA driver does not start: %s (%s); see nvidia-smi", cudaGetErrorString(e),
                   cudaGetErrorName(e));
}

int lk_rt_device_count(void)
{
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess) {
        (void)cudaGetLastError();
        return 0;
    }
    return n;
}

lk_status lk_rt_open(int ordinal, lk_rt_device *device, lk_error *err)
{
    int driver = 0, runtime = 0, n = 0;
    cudaError_t e;
    memset(device, 0, sizeof *device);
    if ((e = cudaDriverGetVersion(&driver))) return no_device(err, e, 0);
    if ((e = cudaRuntimeGetVersion(&runtime))) return refused(err, e, "asking for the version of the CUDA runtime");
    e = cudaGetDeviceCount(&n);
    if (e || n == 0) return no_device(err, e ? e : cudaErrorNoDevice, driver);
    if (ordinal < 0 || ordinal >= n)
        return lk_fail(err, LK_ERR_UNSUPPORTED,
                       "there is no GPU %d: this machine has %d, numbered from 0 (CUDA_VISIBLE_DEVICES may hide some)", ordinal, n);

    struct cudaDeviceProp *p = &(struct cudaDeviceProp){0};
    if ((e = cudaGetDeviceProperties(p, ordinal))) return refused(err, e, "asking for the properties of GPU %d", ordinal);
    if (p->major < OLDEST_MAJOR || (p->major == OLDEST_MAJOR && p->minor < OLDEST_MINOR))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "GPU %d (%s) is sm_%d%d; sm_%d%d or newer is needed: use another GPU or the CPU", ordinal,
                       p->name, p->major, p->minor, OLDEST_MAJOR, OLDEST_MINOR);
    /* Selecting the device creates its context: what can go wrong with that (no memory, exclusive mode) shows here, with the GPU's name. */
    e = cudaSetDevice(ordinal);
    if (!e) e = cudaFree(NULL);
    if (e == cudaErrorDevicesUnavailable)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "GPU %d (%s) is busy: another process uses it exclusively (nvidia-smi shows which)",
                       ordinal, p->name);
    if (e) return refused(err, e, "starting GPU %d (%s)", ordinal, p->name);
    size_t free_bytes = 0, total_bytes = 0;
    if ((e = cudaMemGetInfo(&free_bytes, &total_bytes))) return refused(err, e, "asking for the free memory of GPU %d", ordinal);

    device->ordinal = ordinal;
    device->major = p->major;
    device->minor = p->minor;
    device->sms = p->multiProcessorCount;
    device->memory = total_bytes;
    device->memory_free = free_bytes;
    device->shared_per_block = p->sharedMemPerBlockOptin;
    device->driver = driver;
    device->runtime = runtime;
    snprintf(device->name, sizeof device->name, "%s", p->name);
    return LK_OK;
}

lk_status lk_rt_use(int ordinal, lk_error *err)
{
    cudaError_t e = cudaSetDevice(ordinal);
    return e ? refused(err, e, "making GPU %d current", ordinal) : LK_OK;
}

size_t lk_rt_memory_free(void)
{
    size_t free_bytes = 0, total_bytes = 0;
    if (cudaMemGetInfo(&free_bytes, &total_bytes)) {
        (void)cudaGetLastError();
        return 0;
    }
    return free_bytes;
}

/* -------------------------------------------------------------------------------------------------------------------- memory */

lk_status lk_rt_malloc(void **p, size_t bytes, lk_error *err)
{
    *p = NULL;
    cudaError_t e = cudaMalloc(p, bytes);
    if (!e) return LK_OK;
    *p = NULL;
    (void)cudaGetLastError();
    if (e == cudaErrorMemoryAllocation)
        return lk_fail(err, LK_ERR_MEMORY,
                       "the GPU has no room for %zu MB more (%zu MB are free): take shorter or fewer rows, or a smaller model",
                       bytes / 1000000, lk_rt_memory_free() / 1000000);
    return refused(err, e, "taking %zu bytes of GPU memory", bytes);
}

void lk_rt_free(void *p)
{
    if (p && cudaFree(p)) (void)cudaGetLastError(); /* a lost device: its memory went with it */
}

lk_status lk_rt_host_malloc(void **p, size_t bytes, lk_error *err)
{
    *p = NULL;
    cudaError_t e = cudaHostAlloc(p, bytes, cudaHostAllocDefault);
    if (!e) return LK_OK;
    *p = NULL;
    return refused(err, e, "taking %zu bytes of pinned host memory", bytes);
}

void lk_rt_host_free(void *p)
{
    if (p && cudaFreeHost(p)) (void)cudaGetLastError();
}

/* Whether `from` is pageable memory that this GPU reads in place (hosts whose page tables the GPU shares): a copy queued from there may run
 * after the call has returned. Elsewhere the runtime puts pageable memory aside before it returns. */
static bool read_in_place(const void *from)
{
    int device = 0, shares = 0;
    if (cudaGetDevice(&device) || cudaDeviceGetAttribute(&shares, cudaDevAttrPageableMemoryAccessUsesHostPageTables, device)) {
        (void)cudaGetLastError();
        return true; /* waiting is always right */
    }
    if (!shares) return false;
    struct cudaPointerAttributes a;
    if (cudaPointerGetAttributes(&a, from)) {
        (void)cudaGetLastError();
        return true;
    }
    return a.type == cudaMemoryTypeUnregistered;
}

lk_status lk_rt_copy(void *to, const void *from, size_t bytes, lk_rt_stream s, lk_error *err)
{
    if (!bytes) return LK_OK;
    cudaError_t e = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, s);
    if (e) return refused(err, e, "copying %zu bytes to or from the GPU", bytes);
    if (read_in_place(from) && (e = cudaStreamSynchronize(s))) return refused(err, e, "copying %zu bytes from host memory", bytes);
    return LK_OK;
}

lk_status lk_rt_set(void *p, int byte, size_t bytes, lk_rt_stream s, lk_error *err)
{
    if (!bytes) return LK_OK;
    cudaError_t e = cudaMemsetAsync(p, byte, bytes, s);
    return e ? refused(err, e, "filling %zu bytes of GPU memory", bytes) : LK_OK;
}

/* -------------------------------------------------------------------------------------------------------- streams and events */

lk_status lk_rt_stream_create(lk_rt_stream *s, lk_error *err)
{
    *s = NULL;
    cudaError_t e = cudaStreamCreateWithFlags(s, cudaStreamNonBlocking);
    return e ? refused(err, e, "creating a CUDA stream") : LK_OK;
}

void lk_rt_stream_destroy(lk_rt_stream s)
{
    if (s && cudaStreamDestroy(s)) (void)cudaGetLastError();
}

lk_status lk_rt_stream_sync(lk_rt_stream s, lk_error *err)
{
    cudaError_t e = cudaStreamSynchronize(s);
    return e ? refused(err, e, "work queued on the GPU failed") : LK_OK;
}

/* With timing, for lk_rt_event_seconds; what that costs is nothing beside the few events of a layer. */
lk_status lk_rt_event_create(lk_rt_event *e, lk_error *err)
{
    *e = NULL;
    cudaError_t r = cudaEventCreateWithFlags(e, cudaEventDefault);
    return r ? refused(err, r, "creating a CUDA event") : LK_OK;
}

void lk_rt_event_destroy(lk_rt_event e)
{
    if (e && cudaEventDestroy(e)) (void)cudaGetLastError();
}

lk_status lk_rt_event_record(lk_rt_event e, lk_rt_stream s, lk_error *err)
{
    cudaError_t r = cudaEventRecord(e, s);
    return r ? refused(err, r, "recording a CUDA event") : LK_OK;
}

lk_status lk_rt_stream_wait(lk_rt_stream s, lk_rt_event e, lk_error *err)
{
    cudaError_t r = cudaStreamWaitEvent(s, e, 0);
    return r ? refused(err, r, "making a CUDA stream wait for an event") : LK_OK;
}

lk_status lk_rt_event_wait(lk_rt_event e, lk_error *err)
{
    cudaError_t r = cudaEventSynchronize(e);
    return r ? refused(err, r, "work queued on the GPU failed") : LK_OK;
}

lk_status lk_rt_event_seconds(double *seconds, lk_rt_event from, lk_rt_event to, lk_error *err)
{
    float ms = 0;
    cudaError_t r = cudaEventSynchronize(to);
    if (!r) r = cudaEventElapsedTime(&ms, from, to);
    if (r) return refused(err, r, "timing between two CUDA events");
    *seconds = ms / 1000.0;
    return LK_OK;
}

/* -------------------------------------------------------------------------------------------------------------------- graphs */

/* Thread-local: another thread that loads an adapter on a stream of its own is not disturbed, and does not disturb. */
lk_status lk_rt_capture_begin(lk_rt_stream s, lk_error *err)
{
    cudaError_t e = cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal);
    return e ? refused(err, e, "beginning to record a CUDA graph") : LK_OK;
}

lk_status lk_rt_capture_end(lk_rt_stream s, lk_rt_graph *g, lk_error *err)
{
    cudaGraph_t kept = NULL;
    if (g) *g = NULL;
    cudaError_t e = cudaStreamEndCapture(s, &kept);
    if (e) return refused(err, e, "recording a CUDA graph");
    if (g) e = cudaGraphInstantiate(g, kept, 0);
    (void)cudaGraphDestroy(kept);
    if (!e) return LK_OK;
    *g = NULL;
    return refused(err, e, "making a CUDA graph of what was recorded");
}

lk_status lk_rt_graph_launch(lk_rt_graph g, lk_rt_stream s, lk_error *err)
{
    cudaError_t e = cudaGraphLaunch(g, s);
    return e ? refused(err, e, "launching a CUDA graph") : LK_OK;
}

void lk_rt_graph_destroy(lk_rt_graph g)
{
    if (g && cudaGraphExecDestroy(g)) (void)cudaGetLastError();
}

/* ------------------------------------------------------------------------------------------------------------------- kernels */

lk_status lk_rt_launched(const char *what, lk_error *err)
{
    cudaError_t e = cudaGetLastError();
    if (!e) return LK_OK;
    if (e == cudaErrorNoKernelImageForDevice || e == cudaErrorInvalidDeviceFunction)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "launching %s: this module has no code for this GPU (%s); build it with its architecture",
                       what, cudaGetErrorString(e));
    return refused(err, e, "launching %s", what);
}

lk_status lk_rt_allow_shared(const void *kernel, size_t bytes, lk_error *err)
{
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    return e ? refused(err, e, "allowing a kernel %zu bytes of shared memory", bytes) : LK_OK;
}
