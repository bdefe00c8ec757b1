/* Streams that record, between the parts of the emulation: what is told to a stream between lk_rt_capture_begin and lk_rt_capture_end is
 * kept instead of done, and done at every lk_rt_graph_launch. */
#ifndef LK_TESTS_CUDA_EMU_CAPTURE_H
#define LK_TESTS_CUDA_EMU_CAPTURE_H

#include <functional>
#include <thread>
#include <vector>

#include "kernels/cuda/runtime.h"
#include "tests/cuda_emu/counts.h"

typedef std::function<lk_status(lk_error *)> lk_emu_node;

struct CUstream_st {
    bool capturing;
    std::thread::id by;
    std::vector<lk_emu_node> nodes;
    lk_error broken; /* what ended the capture early: its end says so */
};

struct CUgraphExec_st {
    std::vector<lk_emu_node> nodes;
};

bool lk_emu_captures(const struct CUstream_st *s);
void lk_emu_keep_node(struct CUstream_st *s, lk_emu_node node);
/* This may not be done while the stream, or any stream of this thread when s is NULL, captures: LK_OK, or the capture is broken. */
lk_status lk_emu_forbid(struct CUstream_st *s, const char *what, lk_error *err);
/* Counters, under a lock of their own. */
void lk_emu_count(int64_t lk_emu_counts::*what, int64_t n);

#endif
