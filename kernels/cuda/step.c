/* See step.h. The first step of its kind is captured, made into a graph and launched; the next ones are launched only.
 *
 * What it saves, for Llama-3.1-8B: a step of decoding is 10 launches a layer and 5 beside them, 325, with adapters on every linear layer
 * 581; at some 2.5 us of the host's time each, 0.8 to 1.5 ms a step, where one token takes the device 1.1 ms (computed from 4.65 GB at
 * 4.3 TB/s). A repeated step is one copy of tables (tables.h: 1 KB to some ten) and one launch for the host, and the device goes from
 * kernel to kernel without the gap of a launch.
 *
 * What it costs: capturing, as long as calling the operations once, and making the graph, some milliseconds for as many nodes; host and
 * device memory of about a kilobyte a node. Kinds are few: buckets of rows, powers of two of splits, classes of ranks; those least used go
 * beyond LK_CUDA_MOST_RECORDINGS.
 *
 * When the driver refuses to record, the step fails, which its caller reports, and later ones run without (as all do with LK_CUDA_GRAPHS=0
 * in the environment).
 *
 * Rejected: updating one graph in place (cudaGraphExecUpdate walks all nodes, some 0.2 ms); a graph without classes whose kernels find
 * their counts on the device and loop (a persistent grid gives up the order of blocks that keeps memory busy). */
#include "kernels/cuda/step.h"

#include <string.h>

#include "kernels/cuda/cuda.h"

static lk_cuda_recording *find(lk_cuda_steps *s, uint64_t key, const lk_cuda_bounds *bounds)
{
    for (int i = 0; i < s->n; i++)
        if (s->kept[i].key == key && memcmp(&s->kept[i].bounds, bounds, sizeof *bounds) == 0) return &s->kept[i];
    return NULL;
}

/* A place for one more. The stream has passed what goes. */
static lk_cuda_recording *place(lk_cuda *cu)
{
    lk_cuda_steps *s = &cu->steps;
    if (s->n < LK_CUDA_MOST_RECORDINGS) return &s->kept[s->n++];
    lk_cuda_recording *oldest = &s->kept[0];
    for (int i = 1; i < s->n; i++)
        if (s->kept[i].used < oldest->used) oldest = &s->kept[i];
    lk_error ignored;
    (void)lk_rt_stream_sync(cu->stream, &ignored); /* a failure stays and shows where somebody asks */
    lk_rt_graph_destroy(oldest->graph);
    return oldest;
}

lk_status lk_cuda_step_begin(lk_backend *be, uint64_t key, bool *queued)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_cuda_steps *s = &cu->steps;
    if (s->off || !cu->tables.batch || !cu->tables.whole) return LK_OK;
    if (s->recording) return lk_fail(&be->error, LK_ERR_INTERNAL, "step_begin: the step before it has not ended");
    lk_cuda_recording *r = find(s, key, &cu->tables.bounds);
    if (r) {
        LK_TRY(lk_rt_graph_launch(r->graph, cu->stream, &be->error));
        r->used = ++s->steps;
        *queued = true;
        return LK_OK;
    }
    s->now = (lk_cuda_recording){.key = key, .bounds = cu->tables.bounds};
    LK_TRY(lk_rt_capture_begin(cu->stream, &be->error));
    s->recording = true;
    be->error.code = LK_OK; /* so that the end knows whether an operation failed */
    return LK_OK;
}

lk_status lk_cuda_step_end(lk_backend *be)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_cuda_steps *s = &cu->steps;
    if (!s->recording) return LK_OK;
    s->recording = false;
    lk_error ignored;
    if (be->error.code) {
        (void)lk_rt_capture_end(cu->stream, NULL, &ignored); /* what the operation said is the cause */
        return be->error.code;
    }
    lk_status status = lk_rt_capture_end(cu->stream, &s->now.graph, &be->error);
    if (!status) status = lk_rt_graph_launch(s->now.graph, cu->stream, &be->error);
    if (status) {
        s->off = true;
        lk_rt_graph_destroy(s->now.graph);
        return lk_error_prefix(&be->error, status, "this step could not be recorded, later ones run without");
    }
    s->now.used = ++s->steps;
    *place(cu) = s->now;
    return LK_OK;
}

void lk_cuda_step_forget(lk_backend *be)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_cuda_steps *s = &cu->steps;
    if (s->n == 0) return;
    lk_error ignored;
    (void)lk_rt_stream_sync(cu->stream, &ignored);
    for (int i = 0; i < s->n; i++) lk_rt_graph_destroy(s->kept[i].graph);
    s->n = 0;
}
