/* kernels/cuda/runtime.h on the host: device memory is ordinary memory between guards, filled with poison; streams do what they are told at
 * once and in order. Guards are looked at when a block is freed or copied, and all of them whenever a stream is waited for; with
 * LK_EMU_CHECK=1 in the environment after every launch as well, which then names the kernel that did it.
 *
 * With LK_EMU_LATE=1 streams are as late as they may be instead (capture.h).
 *
 * LK_EMU_DEVICE says which GPU it is (control.h). LK_EMU_MEMORY is the device's size in bytes, 4 GiB when unset; beyond it allocations fail
 * as they do on a full GPU. */
#include "base/ranks.h"
#include "kernels/cuda/runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <map>
#include <mutex>

#include "tests/cuda_emu/capture.h"
#include "tests/cuda_emu/control.h"
#include "tests/cuda_emu/guard.h"

enum { ALIGNMENT = 256 };

struct block {
    unsigned char *p; /* what the caller has */
    size_t bytes;
    bool host; /* pinned */
};

/* Never destroyed, so that it is there for whoever frees last; `state` below reports at unload. */
static struct memory {
    std::mutex lock;
    std::map<const unsigned char *, block> blocks;
    size_t device_bytes;
    int64_t streams, events;
    bool damaged;
    char damage[400];
} &state = *new memory();

struct CUevent_st {
    bool recorded;
    lk_rt_stream capture; /* NULL, or recorded on `stream` while that belonged to this one's capture */
    lk_rt_stream stream;  /* that has reached it when it has done so many things */
    int64_t after;
    struct timespec at;
};

static size_t device_memory(void)
{
    const char *text = getenv("LK_EMU_MEMORY");
    return text ? (size_t)strtoull(text, NULL, 10) : (size_t)4 << 30;
}

static bool check_each_launch(void)
{
    const char *text = getenv("LK_EMU_CHECK");
    return text && strcmp(text, "1") == 0;
}

/* ---- guards */

static size_t after_bytes(size_t bytes) { return (ALIGNMENT - bytes % ALIGNMENT) % ALIGNMENT + LK_EMU_GUARD; }

/* Notes the first damage; `when` is where it was found. */
static void check_block(const block *b, const char *when)
{
    size_t n = after_bytes(b->bytes), after = lk_guard_damage(b->p + b->bytes, n);
    size_t before = lk_guard_damage(b->p - LK_EMU_GUARD, LK_EMU_GUARD);
    if ((after == n && before == LK_EMU_GUARD) || state.damaged) return;
    state.damaged = true;
    char place[60];
    if (after < n)
        snprintf(place, sizeof place, "%zu bytes past its end", after);
    else
        snprintf(place, sizeof place, "%zu bytes before its beginning", LK_EMU_GUARD - before);
    snprintf(state.damage, sizeof state.damage,
             "guard bytes of a block of %zu bytes of %s memory were overwritten %s; found %s, the last kernel was %s "
             "(LK_EMU_CHECK=1 checks after each)",
             b->bytes, b->host ? "pinned" : "device", place, when, lk_emu_last_kernel());
    lk_guard_set(b->p - LK_EMU_GUARD, LK_EMU_GUARD); /* reported once */
    lk_guard_set(b->p + b->bytes, n);
}

static void check_all(const char *when)
{
    for (const auto &entry : state.blocks) check_block(&entry.second, when);
}

/* The block that p lies in or ends, or NULL. */
static const block *block_of(const void *p)
{
    auto next = state.blocks.upper_bound((const unsigned char *)p);
    if (next == state.blocks.begin()) return NULL;
    const block *b = &std::prev(next)->second;
    return (const unsigned char *)p <= b->p + b->bytes ? b : NULL;
}

bool lk_emu_is_device(const void *p)
{
    std::lock_guard<std::mutex> lock(state.lock);
    return block_of(p) != NULL;
}

bool lk_emu_is_device_range(const void *p, size_t bytes)
{
    std::lock_guard<std::mutex> lock(state.lock);
    const block *b = block_of(p);
    return b && bytes <= b->bytes - (size_t)((const unsigned char *)p - b->p);
}

/* Anything to report: the emulator's complaint first, then damage. */
static lk_status outcome(const char *what, lk_error *err)
{
    char text[900];
    if (lk_emu_take_failure(text, sizeof text)) return lk_fail(err, LK_ERR_INTERNAL, "%s: %s", what, text);
    std::lock_guard<std::mutex> lock(state.lock);
    if (!state.damaged) return LK_OK;
    state.damaged = false;
    return lk_fail(err, LK_ERR_INTERNAL, "%s: %s", what, state.damage);
}

/* ---- the device */

/* One for every rank; they are alike, and a process uses one at a time. */
enum { DEVICES = LK_MAX_RANKS };

lk_status lk_rt_open(int ordinal, lk_rt_device *device, lk_error *err)
{
    if (ordinal < 0 || ordinal >= DEVICES) return lk_fail(err, LK_ERR_UNSUPPORTED, "device %d: the emulation has %d", ordinal, DEVICES);
    memset(device, 0, sizeof *device);
    device->ordinal = ordinal;
    device->major = lk_emu_device_model()->major;
    device->minor = lk_emu_device_model()->minor;
    device->sms = 4;
    device->memory = device_memory();
    device->memory_free = lk_rt_memory_free();
    device->shared_per_block = lk_emu_device_model()->shared;
    device->driver = device->runtime = 13000;
    snprintf(device->name, sizeof device->name, "emulated");
    return LK_OK;
}

int lk_rt_device_count(void) { return DEVICES; }

lk_status lk_rt_use(int ordinal, lk_error *err)
{
    return ordinal < DEVICES ? LK_OK : lk_fail(err, LK_ERR_INTERNAL, "there is no device %d", ordinal);
}

size_t lk_rt_memory_free(void)
{
    std::lock_guard<std::mutex> lock(state.lock);
    size_t all = device_memory();
    return all > state.device_bytes ? all - state.device_bytes : 0;
}

/* ---- memory */

static lk_status take(void **p, size_t bytes, bool host, lk_error *err)
{
    *p = NULL;
    LK_TRY(lk_emu_forbid(NULL, "taking memory", err));
    std::lock_guard<std::mutex> lock(state.lock);
    size_t all = device_memory();
    if (!host && (bytes > all || state.device_bytes > all - bytes))
        return lk_fail(err, LK_ERR_MEMORY, "no room for %zu bytes of device memory: %zu of %zu are taken", bytes, state.device_bytes, all);
    size_t front = (LK_EMU_GUARD + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    void *base = NULL;
    if (posix_memalign(&base, ALIGNMENT, front + bytes + after_bytes(bytes)))
        return lk_fail(err, LK_ERR_MEMORY, "no host memory for %zu bytes of emulated %s memory", bytes, host ? "pinned" : "device");
    block b = {(unsigned char *)base + front, bytes, host};
    memset(b.p, LK_EMU_POISON, bytes);
    lk_guard_set(b.p - LK_EMU_GUARD, LK_EMU_GUARD);
    lk_guard_set(b.p + bytes, after_bytes(bytes));
    state.blocks[b.p] = b;
    if (!host) state.device_bytes += bytes;
    *p = b.p;
    return LK_OK;
}

static void give(void *p, bool host)
{
    if (!p) return;
    (void)lk_emu_forbid(NULL, "giving memory back", NULL); /* the end of the capture says so */
    lk_emu_catch_up_all();                                 /* as cudaFree waits for the device */
    std::lock_guard<std::mutex> lock(state.lock);
    auto found = state.blocks.find((const unsigned char *)p);
    if (found == state.blocks.end() || found->second.host != host) {
        if (!state.damaged)
            snprintf(state.damage, sizeof state.damage, "%p was freed as %s memory, which it is not (or no longer)", p,
                     host ? "pinned" : "device");
        state.damaged = true; /* the next synchronisation says so */
        return;
    }
    block b = found->second;
    check_block(&b, "when it was freed");
    state.blocks.erase(found);
    if (!host) state.device_bytes -= b.bytes;
    lk_guard_lift(b.p - LK_EMU_GUARD, LK_EMU_GUARD + b.bytes + after_bytes(b.bytes));
    memset(b.p, LK_EMU_POISON, b.bytes); /* use after free shows even without a sanitizer */
    free(b.p - (LK_EMU_GUARD + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
}

lk_status lk_rt_malloc(void **p, size_t bytes, lk_error *err) { return take(p, bytes, false, err); }
void lk_rt_free(void *p) { give(p, false); }
lk_status lk_rt_host_malloc(void **p, size_t bytes, lk_error *err) { return take(p, bytes, true, err); }
void lk_rt_host_free(void *p) { give(p, true); }

/* ---- streams and events */

lk_status lk_rt_stream_create(lk_rt_stream *s, lk_error *err)
{
    (void)err;
    *s = new CUstream_st();
    lk_emu_stream_begins(*s);
    std::lock_guard<std::mutex> lock(state.lock);
    state.streams++;
    return LK_OK;
}

void lk_rt_stream_destroy(lk_rt_stream s)
{
    if (!s) return;
    lk_emu_stream_ends(s);
    delete s;
    std::lock_guard<std::mutex> lock(state.lock);
    state.streams--;
}

lk_status lk_rt_stream_sync(lk_rt_stream s, lk_error *err)
{
    LK_TRY(lk_emu_forbid(s, "waiting for a stream", err));
    if (s)
        lk_emu_catch_up(s, s->queued);
    else
        lk_emu_catch_up_all();
    if (s) LK_TRY(lk_emu_late_failure(s, err));
    {
        std::lock_guard<std::mutex> lock(state.lock);
        check_all("when a stream was waited for");
    }
    return outcome("waiting for the device", err);
}

lk_status lk_rt_event_create(lk_rt_event *e, lk_error *err)
{
    *e = (lk_rt_event)calloc(1, sizeof **e);
    if (!*e) return lk_fail(err, LK_ERR_MEMORY, "no memory for an event");
    std::lock_guard<std::mutex> lock(state.lock);
    state.events++;
    return LK_OK;
}

void lk_rt_event_destroy(lk_rt_event e)
{
    if (!e) return;
    free(e);
    std::lock_guard<std::mutex> lock(state.lock);
    state.events--;
}

lk_status lk_rt_event_record(lk_rt_event e, lk_rt_stream s, lk_error *)
{
    e->recorded = true;
    e->capture = lk_emu_capture_of(s);
    e->stream = s;
    e->after = s ? s->queued : 0;
    clock_gettime(CLOCK_MONOTONIC, &e->at);
    return LK_OK;
}

/* An event that was never recorded is no wait, as in CUDA. */
lk_status lk_rt_stream_wait(lk_rt_stream s, lk_rt_event e, lk_error *err)
{
    lk_rt_stream other = e->stream, capture = lk_emu_capture_of(s);
    if (e->recorded && e->capture) {
        if (!e->capture->capturing || (capture && capture != e->capture))
            return lk_fail(err, LK_ERR_INTERNAL, "waiting for an event of another capture, or of one that has ended");
        if (!capture)
            lk_emu_branch(s, e->capture);
        else if (s == capture && other != s && other->branch_of == s)
            lk_emu_join(s, other);
        return LK_OK;
    }
    LK_TRY(lk_emu_forbid(s, "waiting for an event", err));
    int64_t after = e->after;
    if (e->recorded && other && other != s && lk_emu_keeps(s))
        lk_emu_keep_node(s, [other, after](lk_error *) { return lk_emu_catch_up(other, after), LK_OK; });
    else if (e->recorded && other)
        lk_emu_catch_up(other, after);
    return LK_OK;
}

lk_status lk_rt_event_wait(lk_rt_event e, lk_error *err)
{
    LK_TRY(lk_emu_forbid(NULL, "waiting for an event", err));
    if (!e->recorded) return lk_fail(err, LK_ERR_INTERNAL, "waiting for an event that was never recorded");
    if (!e->stream) return lk_rt_stream_sync(NULL, err);
    lk_emu_catch_up(e->stream, e->after);
    LK_TRY(lk_emu_late_failure(e->stream, err));
    return outcome("waiting for an event", err);
}

lk_status lk_rt_event_seconds(double *seconds, lk_rt_event from, lk_rt_event to, lk_error *err)
{
    if (!from->recorded || !to->recorded) return lk_fail(err, LK_ERR_INTERNAL, "time between events of which one was never recorded");
    if (to->stream) lk_emu_catch_up(to->stream, to->after);
    *seconds = (double)(to->at.tv_sec - from->at.tv_sec) + 1e-9 * (double)(to->at.tv_nsec - from->at.tv_nsec);
    return LK_OK;
}

/* ---- copies and launches */

/* A range that begins in a block must end in it. */
static lk_status check_range(const char *what, const void *p, size_t bytes, lk_error *err)
{
    std::lock_guard<std::mutex> lock(state.lock);
    const block *b = block_of(p);
    if (!b) return LK_OK; /* ordinary host memory */
    size_t at = (size_t)((const unsigned char *)p - b->p);
    if (bytes > b->bytes - at)
        return lk_fail(err, LK_ERR_INTERNAL, "%s %zu bytes at offset %zu of a block of %zu bytes of %s memory", what, bytes, at, b->bytes,
                       b->host ? "pinned" : "device");
    check_block(b, what);
    return LK_OK;
}

/* Host memory, pinned or not. */
static bool is_host(const void *p)
{
    std::lock_guard<std::mutex> lock(state.lock);
    const block *b = block_of(p);
    return !b || b->host;
}

static bool is_pageable(const void *p)
{
    std::lock_guard<std::mutex> lock(state.lock);
    return !block_of(p);
}

lk_status lk_rt_copy(void *to, const void *from, size_t bytes, lk_rt_stream s, lk_error *err)
{
    if (bytes == 0) return LK_OK;
    bool reads_host = is_host(from);
    if (reads_host || is_host(to)) LK_TRY(lk_emu_forbid(s, reads_host ? "copying from host memory" : "copying to host memory", err));
    lk_status status = check_range("copying to", to, bytes, err);
    if (!status) status = check_range("copying from", from, bytes, err);
    if (status) return status;
    if (reads_host && s) {
        lk_emu_count(&lk_emu_counts::host_copies, 1);
        lk_emu_count(&lk_emu_counts::host_bytes, (int64_t)bytes);
    }
    if (!lk_emu_keeps(s)) {
        memmove(to, from, bytes);
        return outcome("copying", err);
    }
    if (is_pageable(from)) { /* put aside, as the runtime does */
        std::vector<unsigned char> kept((const unsigned char *)from, (const unsigned char *)from + bytes);
        lk_emu_keep_node(s, [=](lk_error *) { return memcpy(to, kept.data(), bytes), LK_OK; });
    } else {
        lk_emu_keep_node(s, [=](lk_error *later) { return lk_rt_copy(to, from, bytes, NULL, later); });
    }
    return is_pageable(to) ? lk_rt_stream_sync(s, err) : LK_OK;
}

lk_status lk_rt_set(void *p, int byte, size_t bytes, lk_rt_stream s, lk_error *err)
{
    if (bytes == 0) return LK_OK;
    if (!lk_emu_is_device(p)) return lk_fail(err, LK_ERR_INTERNAL, "setting %zu bytes of memory that is not the device's", bytes);
    lk_status status = check_range("setting", p, bytes, err);
    if (status) return status;
    if (lk_emu_keeps(s)) {
        lk_emu_keep_node(s, [=](lk_error *later) { return lk_rt_set(p, byte, bytes, NULL, later); });
        return LK_OK;
    }
    memset(p, byte, bytes);
    return outcome("setting", err);
}

lk_status lk_rt_launched(const char *what, lk_error *err)
{
    if (check_each_launch()) {
        std::lock_guard<std::mutex> lock(state.lock);
        check_all("after it was launched");
    }
    char text[900];
    if (lk_emu_take_failure(text, sizeof text)) return lk_fail(err, LK_ERR_INTERNAL, "%s: %s", what, text);
    return check_each_launch() ? outcome(what, err) : LK_OK;
}

lk_status lk_rt_allow_shared(const void *kernel, size_t bytes, lk_error *err)
{
    size_t most = lk_emu_device_model()->shared;
    if (bytes > most)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "a kernel wants %zu bytes of shared memory; the device has %zu a block", bytes, most);
    lk_emu_allow_shared(kernel, bytes);
    return LK_OK;
}

/* ---- what is left */

int64_t lk_emu_leaks(void)
{
    std::lock_guard<std::mutex> lock(state.lock);
    return (int64_t)state.blocks.size() + state.streams + state.events;
}

__attribute__((destructor)) static void report_leaks(void)
{
    int64_t alive = lk_emu_leaks();
    if (alive) fprintf(stderr, "cuda emulation: %lld blocks, streams or events were never freed\n", (long long)alive);
}
