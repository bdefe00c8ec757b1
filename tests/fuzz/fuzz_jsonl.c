/* Any bytes as a line of a dataset, the first byte choosing the format: an error, or an example whose strings can be read. */
#include <stdlib.h>

#include "data/reader.h"
#include "tests/fuzz/seeds.h"

static const fuzz_seed seeds[] = {
    FUZZ_SEED("0{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"q\"},"
              "{\"role\":\"assistant\",\"content\":\"a\\n\\u00e9\\ud83d\\ude00\",\"weight\":0}]}"),
    FUZZ_SEED("0{\"tools\":\"[{}]\",\"documents\":[{\"a\":1.0}],\"chat_template_kwargs\":{\"x\":1},\"messages\":[{\"role\":\"assistant\","
              "\"content\":null,\"tool_calls\":[{}]},{\"role\":\"tool\",\"content\":[{\"type\":\"text\",\"text\":\"t\"}]}]}"),
    FUZZ_SEED("1{\"prompt\":\"p\",\"completion\":\"c\"}"),
    FUZZ_SEED("2{\"text\":\"t \\\\ \\\" \\u2028\"}"),
    FUZZ_SEED("3{\"instruction\":\"i\",\"input\":\"n\",\"output\":\"o\",\"system\":\"s\",\"history\":[]}"),
    FUZZ_SEED("4{\"conversations\":[{\"from\":\"human\",\"value\":\"q\"},{\"from\":\"gpt\",\"value\":\"a\"}],\"system\":\"\"}"),
};
FUZZ_MUTATOR(seeds)

static size_t length(const char *text) { return text ? strlen(text) : 0; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    lk_error err = {0};
    lk_arena arena = {0};
    lk_example ex = {0};
    const lk_source source = {.path = "fuzz", .format = (lk_data_format)(data[0] % 5)};
    if (!lk_example_parse(&ex, &arena, &source, (const char *)data + 1, size - 1, "fuzz:1", &err)) {
        size_t total = length(ex.prompt) + length(ex.completion) + length(ex.text);
        for (const cJSON *m = ex.messages ? ex.messages->child : NULL; m; m = m->next) {
            const cJSON *role = cJSON_GetObjectItemCaseSensitive(m, "role");
            if (!cJSON_IsString(role)) abort();
            total += length(cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(m, "content")));
        }
        if (total > size + 2 || ex.kind == LK_EXAMPLE_END) abort();
        lk_example_free(&ex);
    }
    lk_arena_free(&arena);
    return 0;
}
