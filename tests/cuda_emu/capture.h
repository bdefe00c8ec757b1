/* What streams keep instead of doing it at once, between the parts of the emulation.
 *
 * Captures: what is told to a stream between lk_rt_capture_begin and lk_rt_capture_end is kept for a graph, and done at every
 * lk_rt_graph_launch. Late streams (LK_EMU_LATE=1 in the environment, or lk_emu_set_late): all work waits until somebody waits for it,
 * which is as late as a GPU may be. A stream that branches off a capture is as late as it may be too: its work comes where it is joined. So
 * host memory that a queued copy still reads, and is written too early, shows; as does a result that is read without waiting. */
#ifndef LK_TESTS_CUDA_EMU_CAPTURE_H
#define LK_TESTS_CUDA_EMU_CAPTURE_H

#include <deque>
#include <functional>
#include <set>
#include <thread>
#include <vector>

#include "kernels/cuda/runtime.h"
#include "tests/cuda_emu/counts.h"

typedef std::function<lk_status(lk_error *)> lk_emu_node;

struct CUstream_st {
    bool capturing;
    std::thread::id by;
    struct CUstream_st *branch_of; /* it waited for an event of this one, which captures: its work is the capture's, from its join on */
    std::vector<lk_emu_node> nodes;
    std::set<struct CUstream_st *> branches;
    lk_error broken; /* what ended the capture early: its end says so */
    std::deque<lk_emu_node> queue;
    int64_t queued, done; /* so far */
    lk_error failed;      /* of what was done late, until a wait reports it */
};

struct CUgraphExec_st {
    std::vector<lk_emu_node> nodes;
};

bool lk_emu_captures(const struct CUstream_st *s);
/* The stream whose capture this one's work belongs to, itself or the one it branched off; NULL: none. */
struct CUstream_st *lk_emu_capture_of(struct CUstream_st *s);
void lk_emu_branch(struct CUstream_st *s, struct CUstream_st *of);
void lk_emu_join(struct CUstream_st *s, struct CUstream_st *branch);
void lk_emu_keep_node(struct CUstream_st *s, lk_emu_node node);
/* Whether the stream's work is kept, for a graph or for later: then lk_emu_keep_node takes it. */
bool lk_emu_keeps(const struct CUstream_st *s);
/* Does what waits on the stream, up to the n-th thing it was ever told. */
void lk_emu_catch_up(struct CUstream_st *s, int64_t n);
void lk_emu_catch_up_all(void);
void lk_emu_stream_begins(struct CUstream_st *s);
void lk_emu_stream_ends(struct CUstream_st *s);
/* The failure of late work, once. */
lk_status lk_emu_late_failure(struct CUstream_st *s, lk_error *err);
/* This may not be done while the stream, or any stream of this thread when s is NULL, captures: LK_OK, or the capture is broken. */
lk_status lk_emu_forbid(struct CUstream_st *s, const char *what, lk_error *err);
/* Counters, under a lock of their own. */
void lk_emu_count(int64_t lk_emu_counts::*what, int64_t n);

#endif
