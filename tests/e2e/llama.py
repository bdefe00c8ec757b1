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


def tensors(path):
    """{name: tensor} of a file, by the gguf package."""
    import gguf

    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def decoded(tensor):
    import gguf

    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)


def quantize(path, out, kind):
    """llama.cpp's own tool: a file's matrices in another type."""
    import ctypes

    from llama_cpp import llama_cpp as low

    low.llama_backend_init()
    params = low.llama_model_quantize_default_params()
    params.ftype, params.nthread = {"q8_0": 7, "q4_0": 2, "q4_k_m": 15}[kind], 1
    done = low.llama_model_quantize(str(path).encode(), str(out).encode(), ctypes.byref(params))
    if done:
        raise SystemExit(f"{path}: llama_model_quantize to {kind} ended with {done}")


def widen(path, out):
    """The same file with what the gguf package decodes each tensor to, in fp32: the weights without their type's arithmetic."""
    import gguf

    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        items = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, 0 if field.name == "general.file_type" else field.contents(), field.types[0], sub_type=items)
    for t in reader.tensors:
        writer.add_tensor(t.name, np.ascontiguousarray(decoded(t)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
