"""llama.cpp through llama-cpp-python, set up so that its results can be compared: one thread, keys and values in fp32."""

import numpy as np


def load(path, lora=None, n_ctx=256):
    import llama_cpp

    low = llama_cpp.llama_cpp
    if not hasattr(low, "plain_params"):
        low.plain_params = low.llama_model_default_params

        def without_repacking():  # its AMX code needs a permission that a container may lack
            params = low.plain_params()
            params.use_extra_bufts = False
            return params

        low.llama_model_default_params = without_repacking
    return llama_cpp.Llama(str(path), n_ctx=n_ctx, n_threads=1, verbose=False, logits_all=True, type_k=0, type_v=0, flash_attn=False,
                           lora_path=str(lora) if lora else None)


def logits(path, ids, lora=None):
    model = load(path, lora)
    model.eval(list(ids))
    return np.array(model.scores[: len(ids)])


def greedy(path, prompt, n, lora=None):
    model = load(path, lora)
    return model.create_completion(prompt, max_tokens=n, temperature=0)["choices"][0]["text"]


def greedy_ids(path, ids, n, lora=None):
    """n ids behind these, the most likely one each time."""
    model = load(path, lora)
    model.eval(list(ids))
    out = []
    for _ in range(n):
        out.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        model.eval([out[-1]])
    return out
