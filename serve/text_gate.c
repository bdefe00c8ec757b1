#include "serve/text_gate.h"

#include <string.h>

void lk_text_gate_init(lk_text_gate *gate, const char *const *stops, int n_stops)
{
    *gate = (lk_text_gate){.stops = stops, .n_stops = n_stops};
}

void lk_text_gate_free(lk_text_gate *gate) { lk_writer_free(&gate->pending); }

static void drop_given(lk_text_gate *gate)
{
    if (gate->given == 0) return;
    size_t rest = gate->pending.size - gate->given;
    memmove(gate->pending.data, gate->pending.data + gate->given, rest + 1);
    gate->pending.size = rest;
    gate->searched = gate->searched > gate->given ? gate->searched - gate->given : 0;
    gate->cut -= gate->matched ? gate->given : 0;
    gate->passed += (int64_t)gate->given;
    gate->given = 0;
}

/* Looks for the longest stop string that ends at `end`. */
static bool match_at(lk_text_gate *gate, size_t end)
{
    for (int i = 0; i < gate->n_stops; i++) {
        size_t length = strlen(gate->stops[i]);
        if (length == 0 || length > end || end - length < gate->searched) continue;
        if (memcmp(gate->pending.data + end - length, gate->stops[i], length)) continue;
        if (!gate->matched || end - length < gate->cut) gate->cut = end - length;
        gate->matched = true;
    }
    return gate->matched;
}

bool lk_text_gate_push(lk_text_gate *gate, const char *bytes, size_t size, bool armed)
{
    drop_given(gate);
    if (gate->matched) return true;
    size_t from = gate->pending.size;
    lk_writer_add(&gate->pending, bytes, size);
    if (gate->pending.failed) return false;
    if (!armed) gate->searched = gate->pending.size;
    for (size_t end = from + 1; end <= gate->pending.size && armed; end++)
        if (match_at(gate, end)) return true;
    return false;
}

/* Offset where the longest end of pending starts that is a beginning of some stop string. */
static size_t hold_from(const lk_text_gate *gate)
{
    size_t hold = gate->pending.size;
    for (int i = 0; i < gate->n_stops; i++) {
        size_t length = strlen(gate->stops[i]);
        size_t start = gate->pending.size >= length ? gate->pending.size - length + 1 : 0;
        if (start < gate->searched) start = gate->searched;
        for (; start < hold; start++)
            if (!memcmp(gate->pending.data + start, gate->stops[i], gate->pending.size - start)) hold = start;
    }
    return hold;
}

void lk_text_gate_take(lk_text_gate *gate, bool all, const char **text, size_t *size)
{
    drop_given(gate);
    size_t end = gate->matched ? gate->cut : all ? gate->pending.size : hold_from(gate);
    *text = gate->pending.data ? gate->pending.data : "";
    *size = gate->given = end;
}

int64_t lk_text_gate_position(const lk_text_gate *gate) { return gate->passed + (int64_t)gate->given; }
