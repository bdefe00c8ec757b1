/* The program as a user meets it: usage errors with suggestions and exit codes, and generation, quantising, merging, inspecting and
 * tokenising against golden values of transformers and PEFT. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "tests/check.h"
#include "tests/program.h"

#define GOLDEN LK_SOURCE_DIR "/tests/golden"

static void test_usage(void **state)
{
    (void)state;
    check_program_says(0, "lorikeet 0", "--version");
    check_program_says(0, "Commands:", "--help");
    check_program_says(0, "--max-tokens", "generate --help");
    check_program_says(2, "did you mean 'serve'", "srve");
    check_program_says(2, "did you mean --adapter?", "generate x --adaptor y");
    check_program_says(2, "wants a whole number", "generate x --seed many");
    check_program_says(2, "wants a value", "generate x --prompt");
    check_program_says(2, "exactly one of", "generate " GOLDEN "/models/chat-tiny");
    check_program_says(2, "usage: lorikeet train", "train");
    check_program_says(2, "one argument too many: c", "quantize a c -o b");
    check_program_says(2, "--quant is nf4, nf4-head or none", "logits " GOLDEN "/models/chat-tiny --ids 1 -o x --quant q8");
    check_program_says(2, "--dtype is bf16 or f32", "logits " GOLDEN "/models/chat-tiny --ids 1 -o x --dtype f64");
    check_program_says(2, "cannot read 'x2'", "logits " GOLDEN "/models/chat-tiny --ids 1,x2 -o x");
    check_program_says(1, "is not a model folder", "generate /nonexistent --prompt-ids 1");
    setenv("LK_CUDA_MODULE", "", 1); /* none, whatever is built beside this program */
    check_program_says(1, "no CUDA", "generate " GOLDEN "/models/chat-tiny --prompt-ids 1 --device cuda");
    check_program_says(1, "no CUDA", "plan " LK_SOURCE_DIR "/recipes/demo/harbor.json --for cuda");
    check_program_says(2, "use cpu, cuda, cuda:N or auto", "plan " LK_SOURCE_DIR "/recipes/demo/harbor.json --for gpu");
    check_program_says(1, "outside the model's vocabulary", "logits " GOLDEN "/models/chat-tiny --ids 999999 -o /tmp/x.safetensors");
    check_program_says(0, "\"text\":\"\",\"ids\":[",
                       "generate " GOLDEN "/models/llama-tiny --prompt-ids 5,42 --max-tokens 3 --json"); /* no tokenizer */
    check_program_says(0, "cpu", "doctor");
    check_program_says(2, "--into is auto, original, dequantized or nf4", "merge a b -o c --into q8");
    check_program_says(2, "--combine is cat, linear", "merge a b c -o d --combine mean");
    check_program_says(2, "--weights wants 2 numbers", "merge a b c -o d --weights 1");
    check_program_says(2, "--check is for merged models", "merge a b c -o d --as adapter --check x");
    check_program_says(2, "--to is safetensors|gguf|", "export a -o b --to zip");
}

/* Chats with the base and with two adapters: transformers' greedy ids over the same NF4 weights (served.json). */
static void test_generate(void **state)
{
    (void)state;
    lk_error err = {0};
    cJSON *golden;
    CHECK_OK(lk_json_read(&golden, GOLDEN "/served.json", 4 << 20, &err), &err);
    char *folder = check_temporary("cli_generate");
    int compared = 0;
    const cJSON *chat;
    cJSON_ArrayForEach(chat, lk_json_get(golden, "chats"))
    {
        char path[4200];
        snprintf(path, sizeof path, "%s/messages.json", folder);
        char *text = cJSON_PrintUnformatted(lk_json_get(chat, "messages"));
        check_write_file(path, text, strlen(text));
        free(text);
        const cJSON *want;
        cJSON_ArrayForEach(want, lk_json_get(chat, "greedy"))
        {
            char adapter[300] = "";
            if (*want->string) snprintf(adapter, sizeof adapter, "--adapter " GOLDEN "/adapters/%s", want->string);
            check_run r =
                check_program("generate " GOLDEN "/models/chat-tiny %s --messages %s --dtype f32 --max-tokens 24 --json --log-level error",
                              adapter, path);
            if (r.code) fail_msg("%s", r.err);
            cJSON *got;
            CHECK_OK(lk_json_parse(&got, r.out, strlen(r.out), "stdout", &err), &err);
            const cJSON *ids = lk_json_get(got, "ids"), *expected = lk_json_get(want, "ids");
            int n = cJSON_GetArraySize(ids), m = cJSON_GetArraySize(expected);
            /* The golden run does not stop; ours ends before the first of the two ids that generation_config.json calls the end. */
            int end = 0;
            while (end < m && cJSON_GetArrayItem(expected, end)->valueint != 420 && cJSON_GetArrayItem(expected, end)->valueint != 422)
                end++;
            for (int i = 0; i < n; i++) assert_int_equal(cJSON_GetArrayItem(ids, i)->valueint, cJSON_GetArrayItem(expected, i)->valueint);
            assert_int_equal(n, end);
            assert_string_equal(lk_json_get(got, "finish_reason")->valuestring, end < m ? "stop" : "length");
            assert_int_equal(lk_json_get(got, "prompt_tokens")->valueint, cJSON_GetArraySize(lk_json_get(chat, "ids")));
            compared++;
            cJSON_Delete(got);
            check_run_free(&r);
        }
    }
    assert_true(compared >= 3);
    cJSON_Delete(golden);
    free(folder);
}

static void test_folders(void **state)
{
    (void)state;
    char *out = check_temporary("cli_folders");
    check_program_says(0, "4-bit NF4", "quantize " GOLDEN "/models/llama-tiny -o %s/q", out);
    check_program_says(1, "not empty", "quantize " GOLDEN "/models/llama-tiny -o %s/q", out);
    check_program_says(0, "\"quantization\":\"nf4\"", "inspect %s/q --json", out);
    check_program_says(0, "\"kind\":\"adapter\"", "inspect " GOLDEN "/adapters/r8_all --json");
    check_program_says(0, "\"fits\":true", "inspect " GOLDEN "/options/dora --base %s/q --json", out);
    check_program_says(0, "another base model", "inspect " GOLDEN "/options/dora --base " GOLDEN "/models/qwen2-tiny");
    check_program_says(0, "not signed", "export " GOLDEN "/adapters/r8_all -o %s/b.tar.zst --to bundle", out);
    check_program_says(0, "\"signed_by\":\"nobody\"", "inspect %s/b.tar.zst --json", out);
    check_program_says(0, "20 tensors in q8_0", "export " GOLDEN "/models/chat-tiny -o %s/m.gguf --to gguf --type q8_0", out);
    check_program_says(0, "\"kind\":\"gguf\",\"architecture\":\"llama\"", "inspect %s/m.gguf --json", out);
    check_program_says(0, "factors of", "export " GOLDEN "/models/llama-tiny " GOLDEN "/adapters/r8_all -o %s/a.gguf --to gguf-lora", out);
    check_program_says(0, "\"kind\":\"gguf adapter\"", "inspect %s/a.gguf --json", out);
    check_program_says(1, "general.type is \"adapter\": not a model", "generate %s/a.gguf --prompt hello", out);
    check_program_says(0, "\"finish_reason\":\"length\"", "generate %s/m.gguf --prompt hello --max-tokens 3 --json", out);
    check_program_says(0, "merged into its original weights",
                       "merge %s/m.gguf " GOLDEN "/adapters/chat_a -o %s/gm --into original --check 'Hello world'", out, out);
    check_program_says(0, "4-bit NF4", "quantize %s/m.gguf -o %s/gq", out, out);
    check_program_says(0, "20 tensors in q4_0", "export %s/m.gguf -o %s/m4.gguf --to gguf --type q4_0", out, out);
    check_program_says(0, "\"text\":\"Hello world\"", "tokenize %s/gq --text 'Hello world' --json", out);
    check_program_says(0, "ollama create", "export %s/m.gguf -o %s/go --to ollama", out, out);
    check_program_says(0, "20 tensors in f16", "export " GOLDEN "/models/chat-tiny -o %s/s --to safetensors --type f16 --shard-size 60K",
                       out);
    check_program_says(0, "\"parameters\":101184", "inspect %s/s --json", out);
    check_program_says(1, "in bf16, f16 or f32, not 'q8_0'", "export " GOLDEN "/models/chat-tiny -o %s/t --to safetensors --type q8_0",
                       out);
    check_program_says(0, "ollama create", "export " GOLDEN "/models/chat-tiny " GOLDEN "/adapters/chat_a -o %s/o --to ollama", out);
    check_program_says(1, "not empty", "export " GOLDEN "/models/chat-tiny -o %s/o --to ollama", out);
    check_program_says(1, "gguf-lora needs BASE and ADAPTER", "export " GOLDEN "/adapters/r8_all -o %s/b.gguf --to gguf-lora", out);
    check_program_says(1, "is neither a model folder", "inspect %s/nothing", out);
    check_program_says(0, "dequantised 4-bit", "merge %s/q %s/b.tar.zst -o %s/m --dtype f32", out, out, out);
    check_program_says(1, "only 4-bit weights", "merge %s/q " GOLDEN "/adapters/r8_all -o %s/m2 --into original", out, out);
    check_program_says(0, "drift of the logits from the 4-bit base",
                       "merge " GOLDEN "/models/chat-tiny " GOLDEN "/adapters/chat_a " GOLDEN
                       "/adapters/chat_b -o %s/c --into nf4 --combine svd --rank 4 --check 'Hello world'",
                       out);
    /* The merged folder without adapter and the 4-bit one with it: the same logits. */
    check_program_says(0, "logits of 5", "logits %s/m --ids 5,9,100,33,7 --quant none --dtype f32 -o %s/a.safetensors", out, out);
    check_program_says(0, "logits of 5",
                       "logits %s/q --adapter " GOLDEN "/adapters/r8_all --ids 5,9,100,33,7 --dtype f32 -o %s/b.safetensors", out, out);
    check_program_says(0, "\"name\":\"logits\"", "inspect %s/a.safetensors --json", out);
    free(out);
}

static void test_tokenize(void **state)
{
    (void)state;
    check_program_says(0, "\"text\":\"Hello world\"", "tokenize " GOLDEN "/models/chat-tiny --text 'Hello world' --json");
    check_program_says(2, "exactly one of", "tokenize " GOLDEN "/models/chat-tiny");
    char *folder = check_temporary("cli_tokenize");
    char path[4200];
    snprintf(path, sizeof path, "%s/m.json", folder);
    const char *messages = "[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":\"Yes\"}]";
    check_write_file(path, messages, strlen(messages));
    check_program_says(0, "trained", "tokenize " GOLDEN "/models/chat-tiny --messages %s", path);
    check_program_says(0, "\ttrained", "tokenize " GOLDEN "/models/chat-tiny --chat --messages %s", path); /* no terminal, no colour */
    check_program_says(0, "\033[30;42mgreen", "tokenize " GOLDEN "/models/chat-tiny --chat --color always --messages %s", path);
    check_program_says(0, "\xe2\x86\xb5\033[0m\n", "tokenize " GOLDEN "/models/chat-tiny --chat --color always --text 'a b'");
    check_program_says(0, "\\x1b", "tokenize " GOLDEN "/models/chat-tiny --chat --color always --text '\033[2J'"); /* not obeyed */
    check_program_says(2, "--color must be", "tokenize " GOLDEN "/models/chat-tiny --text a --chat --color red");
    check_program_says(2, "--color goes with", "tokenize " GOLDEN "/models/chat-tiny --text a --color always");
    check_program_says(1, "a non-empty array", "tokenize " GOLDEN "/models/chat-tiny --messages " GOLDEN "/models/chat-tiny/config.json");
    free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_usage), cmocka_unit_test(test_generate), cmocka_unit_test(test_folders),
                                       cmocka_unit_test(test_tokenize)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
