/* A stand-in for NVIDIA's driver, libcuda.so.1, on a machine without one: everything succeeds and does nothing. cuDNN can then make
 * execution plans for a device that is described to it (test_sdpa_plans.c): it compiles their kernels by NVRTC, "loads" them here, and
 * never runs one. What is here is what cuDNN 9 and NVRTC 13 look up by name; a name that is missing shows as "Could not load symbol". */
#include <stddef.h>

typedef int result; /* CUresult; 0 is CUDA_SUCCESS */

#define NOTHING(name)  \
    result name(void); \
    result name(void) { return 0; }

NOTHING(cuInit)
NOTHING(cuDeviceGet)
NOTHING(cuDeviceGetCount)
NOTHING(cuGetErrorName)
NOTHING(cuGetErrorString)
NOTHING(cuCtxGetCurrent)
NOTHING(cuCtxGetLimit)
NOTHING(cuCtxPopCurrent)
NOTHING(cuCtxPushCurrent)
NOTHING(cuStreamGetCtx)
NOTHING(cuLinkCreate)
NOTHING(cuLinkAddData)
NOTHING(cuLinkComplete)
NOTHING(cuLinkDestroy)
NOTHING(cuLaunchKernel)
NOTHING(cuLaunchKernelEx)
NOTHING(cuLaunchCooperativeKernel)
NOTHING(cuLibraryLoadFromFile)
NOTHING(cuLibraryUnload)
NOTHING(cuKernelSetAttribute)
NOTHING(cuKernelGetAttribute)
NOTHING(cuOccupancyMaxPotentialClusterSize)

result cuDriverGetVersion(int *version);
result cuDriverGetVersion(int *version)
{
    *version = 13000;
    return 0;
}

/* Handles only have to differ from NULL. */
static int something;

result cuLibraryLoadData(void **library, const void *code, void *a, void *b, unsigned n, void *c, void *d, unsigned m);
result cuLibraryLoadData(void **library, const void *code, void *a, void *b, unsigned n, void *c, void *d, unsigned m)
{
    (void)code, (void)a, (void)b, (void)n, (void)c, (void)d, (void)m;
    *library = &something;
    return 0;
}

result cuLibraryGetKernel(void **kernel, void *library, const char *name);
result cuLibraryGetKernel(void **kernel, void *library, const char *name)
{
    (void)library, (void)name;
    *kernel = &something;
    return 0;
}

/* Tables of further functions, asked for by NVRTC. A table begins with its size in bytes; one that holds nothing but its size says that
 * this driver is older than what is asked about, and NVRTC goes on without. */
result cuGetExportTable(const void **table, const void *id);
result cuGetExportTable(const void **table, const void *id)
{
    static const size_t empty[64] = {16};
    (void)id;
    *table = empty;
    return 0;
}
