/* `lorikeet inspect --base`: what fits a base, what does not and why, for everything that can be inspected. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/check.h"
#include "tests/program.h"

#define GOLDEN LK_SOURCE_DIR "/tests/golden"
#define CHAT   GOLDEN "/models/chat-tiny"
#define LLAMA  GOLDEN "/models/llama-tiny"
#define QWEN   GOLDEN "/models/qwen2-tiny"

static void test_models(void **state)
{
    (void)state;
    char *out = check_temporary("inspect_models");
    check_program_says(0, "\"fits\":true,\"same_identity\":true}", "inspect " CHAT " --base " CHAT " --json");
    check_program_says(0, "\"fits\":false,\"why_not\":\"another model: vocab_size is 424, in " LLAMA " 163 (llama and llama)\"",
                       "inspect " CHAT " --base " LLAMA " --json");
    check_program_says(0, "4-bit NF4", "quantize " CHAT " -o %s/q", out);
    check_program_says(0, "\"fits\":true,\"same_identity\":true}", "inspect %s/q --base " CHAT " --json", out);

    /* a GGUF file is the same model, rounded, under an identity of its own */
    check_program_says(0, "in q4_0", "export " CHAT " -o %s/m.gguf --to gguf --type q4_0", out);
    check_program_says(0, "\"fits\":true,\"same_identity\":false,\"difference\":0.0889", "inspect %s/m.gguf --base " CHAT " --json", out);
    check_program_says(0, "\"fits\":true,\"same_identity\":true}", "inspect %s/m.gguf --base %s/m.gguf --json", out, out);
    check_program_says(0, "why_not          another model: ", "inspect %s/m.gguf --base " QWEN, out);
    check_program_says(0, "is not a model folder", "inspect %s/m.gguf --base %s/nothing", out, out);

    /* the same sizes, other weights */
    check_program_says(0, "matrices of", "merge " CHAT " " GOLDEN "/adapters/chat_a " GOLDEN "/adapters/chat_b -o %s/far --weights 90,90",
                       out);
    check_program_says(0, "another model of the same sizes: model.layers.", "inspect %s/far --base " CHAT, out);
    free(out);
}

static void test_adapters(void **state)
{
    (void)state;
    char *out = check_temporary("inspect_adapters");
    check_program_says(0, "\"fits\":true", "inspect " GOLDEN "/adapters/r8_all --base " LLAMA " --json");
    check_program_says(0, "\"fits\":false,\"why_not\":\"", "inspect " GOLDEN "/adapters/r8_all --base " QWEN " --json");
    check_program_says(0, "not signed", "export " GOLDEN "/adapters/r8_all -o %s/b.tar.zst --to bundle", out);
    check_program_says(0, "\"fits\":true", "inspect %s/b.tar.zst --base " LLAMA " --json", out);
    check_program_says(0, "\"fits\":false,\"why_not\":\"", "inspect %s/b.tar.zst --base " QWEN " --json", out);

    check_program_says(0, "factors of", "export " LLAMA " " GOLDEN "/adapters/r8_all -o %s/a.gguf --to gguf-lora", out);
    check_program_says(0, "{\"name\":\"blk.0.ffn_down.weight.lora_a\",\"shape\":[8,128]}", "inspect %s/a.gguf --json", out);
    check_program_says(0, "\"fits\":true}", "inspect %s/a.gguf --base " LLAMA " --json", out);
    check_program_says(0, "\"why_not\":\"an adapter for llama models; " QWEN " is qwen2 to llama.cpp\"",
                       "inspect %s/a.gguf --base " QWEN " --json", out);
    check_program_says(0, "is not for a [64,", "inspect %s/a.gguf --base " GOLDEN "/models/mistral-tiny --json", out);
    check_program_says(0, "tensors in f16", "export " LLAMA " -o %s/m.gguf --to gguf", out);
    check_program_says(0, "\"fits\":true}", "inspect %s/a.gguf --base %s/m.gguf --json", out, out);
    free(out);
}

static void test_tensors(void **state)
{
    (void)state;
    check_program_says(0, "\"fits\":true}", "inspect " LLAMA "/model.safetensors --base " LLAMA " --json");
    check_program_says(0, "\"why_not\":\"lm_head.weight has another shape in " QWEN "\"",
                       "inspect " LLAMA "/model.safetensors --base " QWEN " --json");
    check_program_says(0, "is part of a PEFT adapter: inspect its folder",
                       "inspect " GOLDEN "/adapters/r8_all/adapter_model.safetensors --base " LLAMA " --json");
    check_program_says(0, "has no tensor all_zero_2x64.absmax", "inspect " GOLDEN "/nf4.safetensors --base " LLAMA " --json");
}

static void test_checkpoints(void **state)
{
    (void)state;
    char *out = check_temporary("inspect_checkpoints"), path[4200], text[1200];
    snprintf(path, sizeof path, "%s/data.jsonl", out);
    snprintf(text, sizeof text, "{\"text\": \"Hello world, hello again.\"}\n");
    check_write_file(path, text, strlen(text));
    snprintf(path, sizeof path, "%s/recipe.json", out);
    snprintf(text, sizeof text,
             "{\"base\": {\"path\": \"%s\", \"quant\": \"nf4\"}, \"adapter\": {\"r\": 2, \"targets\": [\"q_proj\"]}, \"data\": {\"train\": "
             "[{\"path\": "
             "\"data.jsonl\", \"format\": \"text\"}], \"max_length\": 32}, \"objective\": \"sft\", \"optim\": {\"name\": \"adamw\", "
             "\"lr\": 1e-3}, \"batch\": {\"rows\": 1, \"accumulate\": 1, \"steps\": 1}, "
             "\"checkpoint\": {\"every\": 1}}",
             CHAT);
    check_write_file(path, text, strlen(text));
    check_program_says(0, NULL, "train %s/recipe.json --out %s/run", out, out);
    check_program_says(0, "\"kind\":\"checkpoint\",\"step\":1,", "inspect %s/run/checkpoints/step-000001.h5 --json", out);
    check_program_says(0, "\"fits\":true}", "inspect %s/run/checkpoints/step-000001.h5 --base " CHAT " --json", out);
    check_program_says(0, "\"why_not\":\"trained on another base (weights ",
                       "inspect %s/run/checkpoints/step-000001.h5 --base " LLAMA " --json", out);
    snprintf(path, sizeof path, "%s/torn.h5", out);
    check_write_file(path, "\x89HDF\r\n\x1a\n torn", 13);
    check_program_says(1, "torn.h5", "inspect %s", path);
    free(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_models), cmocka_unit_test(test_adapters), cmocka_unit_test(test_tensors),
                                       cmocka_unit_test(test_checkpoints)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
