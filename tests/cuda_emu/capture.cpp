/* Captures and graphs of the emulation. A launch is kept with its arguments by value, as CUDA keeps it: what a kernel reads through its
 * pointers is read when the graph runs. What CUDA refuses while a stream captures is refused here, and one thing that it allows: a copy
 * from or to host memory, pinned or not. A recording would repeat it from the same address, where another step's data lies by then. */
#include "tests/cuda_emu/capture.h"

#include <stdlib.h>
#include <string.h>

#include <mutex>
#include <set>

#include "tests/cuda_emu/control.h"
#include "tests/cuda_emu/emu.h"

static struct captures {
    std::mutex lock;
    std::set<struct CUstream_st *> streams; /* that capture */
    lk_emu_counts counts;
} &state = *new captures();

static bool asked_for(void)
{
    const char *text = getenv("LK_EMU_LATE");
    return text && strcmp(text, "1") == 0;
}

static struct lateness {
    std::recursive_mutex lock; /* held while late work runs: a stream's may wait for another's */
    std::set<struct CUstream_st *> streams;
    bool late = asked_for();
} &later = *new lateness();

LK_EMU_EXPORT void lk_emu_set_late(bool late)
{
    lk_emu_catch_up_all();
    later.late = late;
}

void lk_emu_stream_begins(struct CUstream_st *s)
{
    std::lock_guard<std::recursive_mutex> lock(later.lock);
    later.streams.insert(s);
}

void lk_emu_stream_ends(struct CUstream_st *s)
{
    std::lock_guard<std::recursive_mutex> lock(later.lock);
    lk_emu_catch_up(s, s->queued);
    later.streams.erase(s);
}

void lk_emu_catch_up(struct CUstream_st *s, int64_t n)
{
    std::lock_guard<std::recursive_mutex> lock(later.lock);
    while (s->done < n && !s->queue.empty()) {
        lk_emu_node node = std::move(s->queue.front());
        s->queue.pop_front();
        s->done++;
        lk_error err = {};
        if (node(&err) && !s->failed.code) s->failed = err;
    }
}

void lk_emu_catch_up_all(void)
{
    std::lock_guard<std::recursive_mutex> lock(later.lock);
    for (struct CUstream_st *s : later.streams) lk_emu_catch_up(s, s->queued);
}

lk_status lk_emu_late_failure(struct CUstream_st *s, lk_error *err)
{
    std::lock_guard<std::recursive_mutex> lock(later.lock);
    lk_error failed = s->failed;
    s->failed.code = LK_OK;
    return failed.code ? lk_fail(err, failed.code, "%s", failed.message) : LK_OK;
}

void lk_emu_count(int64_t lk_emu_counts::*what, int64_t n)
{
    std::lock_guard<std::mutex> lock(state.lock);
    state.counts.*what += n;
}

LK_EMU_EXPORT void lk_emu_get_counts(lk_emu_counts *out)
{
    std::lock_guard<std::mutex> lock(state.lock);
    *out = state.counts;
}

bool lk_emu_captures(const struct CUstream_st *s) { return s && (s->capturing || s->branch_of); }

struct CUstream_st *lk_emu_capture_of(struct CUstream_st *s) { return !s ? NULL : s->capturing ? s : s->branch_of; }

void lk_emu_branch(struct CUstream_st *s, struct CUstream_st *of)
{
    std::lock_guard<std::mutex> lock(state.lock);
    s->branch_of = of;
    of->branches.insert(s);
}

void lk_emu_join(struct CUstream_st *s, struct CUstream_st *branch)
{
    std::lock_guard<std::mutex> lock(state.lock);
    for (lk_emu_node &node : branch->nodes) s->nodes.push_back(std::move(node));
    branch->nodes.clear();
    branch->branch_of = NULL;
    s->branches.erase(branch);
}

bool lk_emu_keeps(const struct CUstream_st *s) { return s && (lk_emu_captures(s) || later.late); }

void lk_emu_keep_node(struct CUstream_st *s, lk_emu_node node)
{
    if (lk_emu_captures(s)) {
        s->nodes.push_back(std::move(node));
        return;
    }
    std::lock_guard<std::recursive_mutex> lock(later.lock);
    s->queue.push_back(std::move(node));
    s->queued++;
}

void lk_emu_keep_launch(struct CUstream_st *s, const lk_emu_launch_shape *shape, lk_emu_body *check, lk_emu_body *body,
                        std::shared_ptr<void> arguments)
{
    check(arguments.get());
    if (!lk_emu_launch_fits(shape)) return; /* lk_rt_launched says why */
    lk_emu_launch_shape kept = *shape;
    lk_emu_keep_node(s, [kept, check, body, arguments](lk_error *err) {
        check(arguments.get()); /* memory that was given back since */
        lk_emu_launch(&kept, body, arguments.get());
        return lk_rt_launched(kept.what, err);
    });
}

lk_status lk_emu_forbid(struct CUstream_st *s, const char *what, lk_error *err)
{
    std::lock_guard<std::mutex> lock(state.lock);
    for (struct CUstream_st *capturing : state.streams) {
        if (s ? capturing != lk_emu_capture_of(s) : capturing->by != std::this_thread::get_id()) continue;
        lk_fail(&capturing->broken, LK_ERR_INTERNAL, "%s while a stream captures", what);
        return lk_fail(err, LK_ERR_INTERNAL, "%s while a stream captures", what);
    }
    return LK_OK;
}

lk_status lk_rt_capture_begin(lk_rt_stream s, lk_error *err)
{
    LK_TRY(lk_emu_forbid(s, "another capture begins", err));
    std::lock_guard<std::mutex> lock(state.lock);
    s->capturing = true;
    s->by = std::this_thread::get_id();
    s->nodes.clear();
    s->broken.code = LK_OK;
    state.streams.insert(s);
    return LK_OK;
}

lk_status lk_rt_capture_end(lk_rt_stream s, lk_rt_graph *g, lk_error *err)
{
    if (g) *g = NULL;
    std::lock_guard<std::mutex> lock(state.lock);
    if (!s->capturing) return lk_fail(err, LK_ERR_INTERNAL, "the end of a capture that never began");
    s->capturing = false;
    state.streams.erase(s);
    for (struct CUstream_st *branch : s->branches) {
        branch->branch_of = NULL;
        branch->nodes.clear();
        lk_fail(&s->broken, LK_ERR_INTERNAL, "a stream that branched off was never joined");
    }
    s->branches.clear();
    std::vector<lk_emu_node> nodes = std::move(s->nodes);
    s->nodes.clear();
    if (s->broken.code) return lk_fail(err, s->broken.code, "the capture failed: %s", s->broken.message);
    if (!g) return LK_OK;
    *g = new CUgraphExec_st{std::move(nodes)};
    state.counts.recordings++;
    return LK_OK;
}

lk_status lk_rt_graph_launch(lk_rt_graph g, lk_rt_stream s, lk_error *err)
{
    LK_TRY(lk_emu_forbid(s, "a graph is launched", err));
    lk_emu_count(&lk_emu_counts::replays, 1);
    for (const lk_emu_node &node : g->nodes) {
        if (lk_emu_keeps(s))
            lk_emu_keep_node(s, node);
        else
            LK_TRY(node(err));
    }
    return LK_OK;
}

void lk_rt_graph_destroy(lk_rt_graph g) { delete g; }
