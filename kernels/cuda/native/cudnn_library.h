/* cuDNN, found when it is wanted: the module is loaded also where cuDNN is not installed, and attention then runs on its own kernels.
 *
 *     lk_cudnn *dnn;
 *     LK_TRY(lk_cudnn_open(&dnn, NULL, err));              -- for the device that is current
 *     LK_TRY(lk_cudnn_open(&dnn, json, err));              -- for a device described in cuDNN's own words: plans can be made, not run
 *
 * A described device is how tests make every attention plan without a GPU. cuDNN still asks libcuda.so.1 a few things; where there is no
 * driver tests/cuda_native/driver.c stands in for it. */
#ifndef LK_KERNELS_CUDA_NATIVE_CUDNN_LIBRARY_H
#define LK_KERNELS_CUDA_NATIVE_CUDNN_LIBRARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cudnn.h>

#include "base/status.h"

/* Every function of cuDNN that is used here. */
#define LK_CUDNN_FUNCTIONS(X)       \
    X(cudnnGetVersion)              \
    X(cudnnGetErrorString)          \
    X(cudnnGetLastErrorString)      \
    X(cudnnCreate)                  \
    X(cudnnDestroy)                 \
    X(cudnnSetStream)               \
    X(cudnnBackendCreateDescriptor) \
    X(cudnnBackendDestroyDescriptor) X(cudnnBackendSetAttribute) X(cudnnBackendGetAttribute) X(cudnnBackendFinalize) X(cudnnBackendExecute)

typedef struct lk_cudnn {
    void *library;
    size_t version;                     /* 91900 = 9.19.0 */
    cudnnHandle_t handle;               /* NULL for a described device */
    cudnnBackendDescriptor_t described; /* NULL for a real one */
#define LK_CUDNN_POINTER(name) __typeof__(name) *name;
    LK_CUDNN_FUNCTIONS(LK_CUDNN_POINTER)
#undef LK_CUDNN_POINTER
} lk_cudnn;

/* LK_ERR_UNSUPPORTED: libcudnn.so.9 is not there, or older than what this module was built with knows to be right. */
lk_status lk_cudnn_open(lk_cudnn **dnn, const char *device_json, lk_error *err);
void lk_cudnn_close(lk_cudnn *dnn); /* NULL is fine */

/* Fails with "WHAT: cuDNN says ..." and the last error's own text. */
lk_status lk_cudnn_refused(const lk_cudnn *dnn, lk_error *err, cudnnStatus_t s, const char *what);

#endif
