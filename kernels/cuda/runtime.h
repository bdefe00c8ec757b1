/* The few services of the CUDA runtime that the backend uses. kernels/cuda/native/runtime.c is the real one; tests/cuda_emu/runtime.cpp
 * answers the same calls on the host (streams run at once, device memory is guarded host memory). Everything above this line of the backend
 * is the same source in both builds.
 *
 *     lk_rt_device d;
 *     LK_TRY(lk_rt_open(0, &d, err));                       -- makes device 0 current for the calling thread
 *     LK_TRY(lk_rt_malloc(&p, bytes, err)); ... lk_rt_free(p);
 *
 * All work goes to streams; lk_rt_stream is a cudaStream_t. Functions report the runtime's own words and what was attempted. */
#ifndef LK_KERNELS_CUDA_RUNTIME_H
#define LK_KERNELS_CUDA_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st *lk_rt_stream;
typedef struct CUevent_st *lk_rt_event;
typedef struct CUgraphExec_st *lk_rt_graph;

typedef struct lk_rt_device {
    int ordinal;
    int major, minor; /* compute capability */
    int sms;          /* multiprocessors */
    size_t memory, memory_free;
    size_t shared_per_block; /* most dynamic shared memory a block may opt in to */
    int driver, runtime;     /* 13000 = 13.0 */
    char name[80];
} lk_rt_device;

/* LK_ERR_UNSUPPORTED: no driver, driver older than this module's runtime, no such device, or one older than sm_80; the message says
 * which and what to do. */
lk_status lk_rt_open(int ordinal, lk_rt_device *device, lk_error *err);
int lk_rt_device_count(void);                    /* 0 without a driver */
lk_status lk_rt_use(int ordinal, lk_error *err); /* makes this device current for the calling thread */
/* Device memory free right now, of the current device. */
size_t lk_rt_memory_free(void);

lk_status lk_rt_malloc(void **p, size_t bytes, lk_error *err); /* 256-byte aligned, not zeroed; LK_ERR_MEMORY */
void lk_rt_free(void *p);
lk_status lk_rt_host_malloc(void **p, size_t bytes, lk_error *err); /* pinned host memory */
void lk_rt_host_free(void *p);

lk_status lk_rt_stream_create(lk_rt_stream *s, lk_error *err); /* does not wait for the default stream */
void lk_rt_stream_destroy(lk_rt_stream s);
lk_status lk_rt_stream_sync(lk_rt_stream s, lk_error *err); /* failures of earlier kernels surface here */
lk_status lk_rt_event_create(lk_rt_event *e, lk_error *err);
void lk_rt_event_destroy(lk_rt_event e);
lk_status lk_rt_event_record(lk_rt_event e, lk_rt_stream s, lk_error *err);
lk_status lk_rt_stream_wait(lk_rt_stream s, lk_rt_event e, lk_error *err); /* later work of s waits for e */
lk_status lk_rt_event_wait(lk_rt_event e, lk_error *err); /* the calling thread waits; failures of earlier kernels surface here */
lk_status lk_rt_event_seconds(double *seconds, lk_rt_event from, lk_rt_event to, lk_error *err); /* waits for `to` */

/* Any direction, judged by the pointers. From pageable host memory the source may be reused on return; from pinned memory only
 * after the stream has passed. */
lk_status lk_rt_copy(void *to, const void *from, size_t bytes, lk_rt_stream s, lk_error *err);
lk_status lk_rt_set(void *p, int byte, size_t bytes, lk_rt_stream s, lk_error *err);

/* What is told to s between begin and end is kept instead of done: launches with their arguments by value, copies within device memory.
 * A stream that waits for an event recorded on s meanwhile branches off: its work is kept too, and s has to wait for an event of it before
 * the end. Whatever waits, takes or gives memory, or copies from or to host memory may not be called in between and breaks the capture. end
 * gives the graph, ready to launch, or NULL with the failure; with g NULL it throws away what was kept. A graph may be destroyed only when
 * the stream has passed its last launch. */
lk_status lk_rt_capture_begin(lk_rt_stream s, lk_error *err);
lk_status lk_rt_capture_end(lk_rt_stream s, lk_rt_graph *g, lk_error *err);
lk_status lk_rt_graph_launch(lk_rt_graph g, lk_rt_stream s, lk_error *err);
void lk_rt_graph_destroy(lk_rt_graph g); /* NULL is fine */

/* After a launch: LK_OK, or what the launch itself complained of; `what` names the kernel. */
lk_status lk_rt_launched(const char *what, lk_error *err);
/* Lets a kernel use `bytes` of dynamic shared memory (more than 48 KiB wants asking). */
lk_status lk_rt_allow_shared(const void *kernel, size_t bytes, lk_error *err);

#ifdef __cplusplus
}
#endif
#endif
