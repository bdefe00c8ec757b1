/* adapter_config.json from hostile text, beside fixed tensors of every kind: any bytes give an adapter or a checked error. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "data/peft.h"
#include "tests/fuzz/seeds.h"

static const fuzz_seed seeds[] = {
    FUZZ_SEED("{\"peft_type\":\"LORA\",\"r\":1,\"use_dora\":true,\"lora_bias\":true,\"bias\":\"all\",\"modules_to_save\":[\"lm_head\"],"
              "\"trainable_token_indices\":[3]}"),
    FUZZ_SEED(
        "{\"peft_type\":\"LORA\",\"r\":8,\"target_modules\":\".*q_proj\",\"rank_pattern\":{\"q\":1},\"alpha_pattern\":{\"q_proj\":2}}"),
    FUZZ_SEED("{\"peft_type\":\"LORA\",\"target_modules\":[\"q_proj\"],\"exclude_modules\":[\"k\"],\"layers_to_transform\":[0],"
              "\"layers_pattern\":\"layers\",\"init_lora_weights\":\"pissa\"}"),
};
FUZZ_MUTATOR(seeds)

#define L "\"base_model.model.model.layers.0.q_proj."
static const char header[] = "{" L "lora_A.weight\":{\"dtype\":\"F32\",\"shape\":[1,1],\"data_offsets\":[0,4]}," L
                             "lora_B.weight\":{\"dtype\":\"F32\",\"shape\":[1,1],\"data_offsets\":[4,8]}," L
                             "lora_B.bias\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}," L
                             "lora_magnitude_vector\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[12,16]}}";

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static uint8_t weights[8 + sizeof header - 1 + 16];
    uint64_t length = sizeof header - 1;
    memcpy(weights, &length, 8);
    memcpy(weights + 8, header, sizeof header - 1);
    lk_error err = {0};
    lk_peft *peft = NULL;
    lk_status status = lk_peft_open_memory(&peft, "fuzz", (const char *)bytes, size, weights, sizeof weights, &err);
    if (!status != !!peft || (status && !err.message[0])) abort();
    lk_peft_close(peft);
    return 0;
}
