/* Any text for any dialect of tool calls: the same events whether it comes whole or in two pieces, and no byte of it twice. The first byte
 * picks the dialect, the second the cut. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "serve/tool_calls.h"
#include "serve/writer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void drain(lk_tool_parser *p, lk_writer *out)
{
    lk_tool_event e;
    while (lk_tool_parser_next(p, &e)) {
        if (e.call && (!e.name || !*e.name || e.size == 0)) abort();
        if (!e.call && e.size == 0) abort();
        if (e.call) lk_writer_add(out, e.name, strlen(e.name) + 1);
        lk_writer_add(out, e.text, e.size);
        if (e.call) lk_writer_add(out, "", 1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) return 0;
    lk_tool_format format = LK_TOOLS_HERMES + data[0] % 3;
    const char *text = (const char *)data + 2;
    size_t n = size - 2, cut = n ? data[1] % n : 0;
    lk_writer out[2] = {{0}, {0}};
    for (int k = 0; k < 2; k++) {
        lk_error err;
        lk_tool_parser *p;
        if (lk_tool_parser_create(&p, format, data[1] & 1, &err)) abort();
        if (k && !lk_tool_parser_push(p, text, cut, false)) abort();
        if (k) drain(p, &out[k]);
        if (!lk_tool_parser_push(p, text + (k ? cut : 0), n - (k ? cut : 0), true)) abort();
        drain(p, &out[k]);
        lk_tool_parser_destroy(p);
    }
    if (out[0].size != out[1].size || (out[0].size && memcmp(out[0].data, out[1].data, out[0].size))) abort();
    lk_writer_free(&out[0]);
    lk_writer_free(&out[1]);
    return 0;
}
