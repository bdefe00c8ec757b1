/* The CUDA module: the one part of the program that is loaded when it is wanted. Linking it would tie the program to CUDA's libraries and
 * to a driver; with dlopen the same program starts everywhere and says in one line what a machine lacks.
 *
 * dlopen reports a module that is not there and a library that the module needs in the same words, so files are looked up first and the
 * linker's message is read only to name the missing library. */
#include "kernels/module.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda/module.h"

#define MODULE_FILE "liblorikeet_cuda.so"

enum { PATH_BYTES = 4096 };

bool lk_module_driver_present(void)
{
    static const char *const signs[] = {"/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg"};
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++)
        if (access(signs[i], F_OK) == 0) return true;
    return false;
}

/* The program's folder with a slash at its end; empty where the system does not say. */
static void program_folder(char folder[PATH_BYTES])
{
    ssize_t n = readlink("/proc/self/exe", folder, PATH_BYTES - 1);
    folder[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(folder, '/');
    if (slash) slash[1] = '\0';
}

/* path: the file to load, or a bare name for the linker to find. */
static void find_module(char path[PATH_BYTES])
{
    static const char *const places[] = {"", "../lib/"};
    char folder[PATH_BYTES];
    program_folder(folder);
    for (size_t i = 0; i < sizeof places / sizeof *places && *folder; i++) {
        int n = snprintf(path, PATH_BYTES, "%s%s%s", folder, places[i], MODULE_FILE);
        if (n > 0 && n < PATH_BYTES && access(path, F_OK) == 0) return;
    }
    snprintf(path, PATH_BYTES, "%s", MODULE_FILE);
}

static lk_status not_found(lk_error *err)
{
    return lk_fail(err, LK_ERR_NOT_FOUND,
                   "no CUDA module: " MODULE_FILE
                   " is not beside this program, in ../lib or in the library path; build it (./dev build cuda), name it in "
                   "LK_CUDA_MODULE, or use --device cpu");
}

/* Why dlopen refused `path`. The GNU linker says "NAME: cannot open shared object file: ..." of the module and of what it needs alike. */
static lk_status load_failed(const char *path, lk_error *err)
{
    const char *why = dlerror(), *colon = why ? strstr(why, ": cannot open shared object file") : NULL;
    size_t n = colon ? (size_t)(colon - why) : 0;
    if (!colon) return lk_fail(err, LK_ERR_UNSUPPORTED, "CUDA module %s: %s", path, why ? why : "it cannot be loaded");
    if (strlen(path) != n || strncmp(why, path, n) != 0)
        return lk_fail(err, LK_ERR_UNSUPPORTED,
                       "CUDA module %s needs %.*s, which is not found: install CUDA 13's libraries, or put the folder that holds it into "
                       "LD_LIBRARY_PATH",
                       path, (int)n, why);
    if (strchr(path, '/')) return lk_fail(err, LK_ERR_NOT_FOUND, "CUDA module %s: no such file", path);
    return not_found(err);
}

static lk_status load(const lk_cuda_module **module, lk_error *err)
{
    char path[PATH_BYTES];
    const char *named = getenv("LK_CUDA_MODULE");
    if (named && !*named) return not_found(err);
    if (named)
        snprintf(path, sizeof path, "%s", named);
    else
        find_module(path);
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) return load_failed(path, err);
    const lk_cuda_module *m = dlsym(handle, LK_CUDA_MODULE_SYMBOL);
    if (!m)
        lk_fail(err, LK_ERR_UNSUPPORTED, "%s is not a CUDA module of this program: it has no symbol %s", path, LK_CUDA_MODULE_SYMBOL);
    else if (m->abi != LK_CUDA_MODULE_ABI || m->layout != LK_CUDA_MODULE_LAYOUT)
        lk_fail(err, LK_ERR_UNSUPPORTED,
                "CUDA module %s is of another build than this program (interface %u/%u, wanted %u/%u): build both from the same source",
                path, (unsigned)m->abi, (unsigned)m->layout, (unsigned)LK_CUDA_MODULE_ABI, (unsigned)LK_CUDA_MODULE_LAYOUT);
    else {
        *module = m;
        return LK_OK;
    }
    dlclose(handle); /* none of its code has run */
    return LK_ERR_UNSUPPORTED;
}

lk_status lk_module_open(lk_backend **be, const lk_backend_options *options, lk_error *err)
{
    const lk_cuda_module *module;
    LK_TRY(load(&module, err));
    return module->open(be, options, err);
}
