"""Ids and decoded texts of the `tokenizers` library, for shared tokenizers and for small ones trained here.

Run:  python tests/golden/make_tokenizers.py        (needs tokenizers; LK_SHARED=... for the shared ones, which are then left out of the file if absent)
Writes tokenizers/{qwen,llama3,gpt2,spm,metaspace}.json (trained on this folder's own sentences; each a different pipeline, with added tokens of every
flag) and tokenizers.json:
  texts       the inputs
  tokenizers  name -> {"root": "golden" (this folder) or "shared", "path": tokenizer.json, or "vocab" and "merges",
              "cases":  one per text: {"ids", "special" (ids with what the post-processor adds; absent when the same),
                        "text" (decoded from "special", special tokens skipped), "keep" (not skipped; absent when the same)},
              "decode": [{"ids", "text", "keep"}], arbitrary ids: broken characters, lone bytes, special tokens in odd places}
"""

import json
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from golden import HERE, shared, versions

OWN = HERE / "tokenizers"

TEXTS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\t\n ", " \n  \n", "\r\n", "a", " a", "a ", " a ", "  a  b   c    ",
    "Hello", "Hello world", " Hello world", "Hello  world", "Hello, world!", " Hello, World!!", "hello\nworld", "hello \n world\n",
    "Once upon a time, there was a little girl named Lily.", "I'm sure they've said we'll go; it's what he'd do, isn't it? I'M SURE THEY'VE.",
    "don't DON'T don’t ‘quoted’ “double”", "0", "42", "123", "1234", "1234567890 12 345", "3.14159, -2e10 and 0xFF", "١٢٣ ४५६ Ⅷ ½ ²",
    "def f(x):\n    if x > 0:\n        return x ** 2  # square\n\treturn -x\n", "for (int i = 0; i < n; i++) { a[i] += b[i]; }",
    "{\"key\": [1, 2.5, null], \"a b\": \"\\n\"}", "<a href=\"https://example.org/?q=1&r=2\">x</a>", "a_b-c.d/e\\f|g@h#i$j%k^l&m*n",
    "....", "!!!???", "-- --- ----", "~~~\n~~~", "été naïve café", "e\u0301te\u0301 nai\u0308ve", "A\u030a ngstrom \u212b", "Ångström Straße İstanbul ﬁn",
    "нещо на Български", "Ελληνικά", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก", "你好，世界！", "こんにちは世界", "안녕하세요 세계", "中文English混合123text",
    "🙂", "🙂🙃 ok", "👩‍👩‍👧‍👦 family", "🇩🇪🇫🇷", "👍🏽 thumbs", "a\u200bb\u00a0c\u3000d\ufeffe", "\u2028line\u2029para", "x\u0001\u0007\u001by\u007f",
    "<s>", "</s>", "<s> hello </s>", "a<s>b</s>c", "<unk><s>", "<|endoftext|>", "hello<|endoftext|>world", "<|im_start|>user\nHi there!<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|> <|im_end|>", "<|im_start", "<<|im_end|>>", "<|begin_of_text|>x<|eot_id|>", "<0x41>", "▁", "a▁b ▁ c", "##x Ġword Ċ",
    "TAG", "a TAG b", "  TAG  x", "xTAGy TAG", "[lone] x[lone]y [lone]", "tag Tag TAG", "antidisestablishmentarianism " * 3, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\ud7ff\ue000\U0010ffff\U00010348", "word " * 20 + "end", "  leading and trailing  \n",
]

CORPUS = [t for t in TEXTS if t.isascii()] + [
    "The parrot sat on the fence and watched the river run down to the sea.", "Every morning the baker opens the shop and sells warm bread.",
    "Where is my order? Your order was sent on Monday and will arrive this week.", "He said that he would return the book when he had read it.",
    "To compile the program, run make and wait for a minute.", "There are many rivers in the world, and the longest of them run for weeks.",
    "She can sing, but she cannot dance; they can dance, but they will not sing.", "café naïve über straße 你好 世界 🙂",
]

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)


def added():
    """Added tokens of every flag: normalised or not, eating space on either side, only as whole words."""
    return [AddedToken("TAG", normalized=True, special=False, lstrip=True, rstrip=True),
            AddedToken("[lone]", normalized=False, special=False, single_word=True)]


def trained(model, size, alphabet, special, normalizer=None, pre=None, dec=None):
    tok = Tokenizer(model)
    if normalizer:
        tok.normalizer = normalizer
    if pre:
        tok.pre_tokenizer = pre
    tok.train_from_iterator(CORPUS * 2, trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet, special_tokens=special))
    tok.decoder = dec
    return tok


def bytelevel(pattern, size, special, normalizer=None):
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte])
    return trained(models.BPE(), size, pre_tokenizers.ByteLevel.alphabet(), special, normalizer, pre, decoders.ByteLevel())


def with_bytes(tok, size):
    """The trained SentencePiece-style BPE with <0x00>..<0xFF> put in after the three specials, as Llama-2 has them."""
    state = json.loads(tok.to_str())
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    pieces += [p for p, _ in sorted(state["model"]["vocab"].items(), key=lambda kv: kv[1]) if p not in pieces]
    state["model"]["vocab"] = {p: i for i, p in enumerate(pieces)}
    state["model"].update(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    for a in state["added_tokens"]:
        a["id"] = state["model"]["vocab"][a["content"]]
    return Tokenizer.from_str(json.dumps(state))


def build_own():
    OWN.mkdir(exist_ok=True)
    out = {}
    out["qwen"] = bytelevel(QWEN, 420, [], normalizers.NFC())
    out["qwen"].add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])

    out["llama3"] = bytelevel(LLAMA3, 400, [])
    out["llama3"].add_special_tokens(["<|begin_of_text|>", "<|eot_id|>"])
    bos = out["llama3"].token_to_id("<|begin_of_text|>")
    out["llama3"].post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1", special_tokens=[("<|begin_of_text|>", bos)])])
    state = json.loads(out["llama3"].to_str())
    state["model"]["ignore_merges"] = True
    out["llama3"] = Tokenizer.from_str(json.dumps(state))

    pre = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)])
    out["gpt2"] = trained(models.BPE(), 400, pre_tokenizers.ByteLevel.alphabet(), ["<|endoftext|>"], None, pre, decoders.ByteLevel())

    special = ["<unk>", "<s>", "</s>"]
    template = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B:1", special_tokens=[("<s>", 1), ("</s>", 2)])
    bytes_back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    out["spm"] = with_bytes(trained(models.BPE(), 260, [], special, normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
                                    pre_tokenizers.Metaspace(prepend_scheme="never"), decoders.Sequence(bytes_back)), 260)
    state = json.loads(out["spm"].to_str())
    state["pre_tokenizer"] = None  # as Llama-2: merges may cross words
    out["spm"] = Tokenizer.from_str(json.dumps(state))
    out["spm"].post_processor = template

    meta = dict(replacement="▁", prepend_scheme="first", split=False)
    out["metaspace"] = with_bytes(trained(models.BPE(), 260, [], special, None, pre_tokenizers.Metaspace(prepend_scheme="first"),
                                          decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])), 260)
    out["metaspace"].pre_tokenizer = pre_tokenizers.Metaspace(**meta)
    out["metaspace"].post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    for name, tok in out.items():
        tok.add_tokens(added())
        (OWN / f"{name}.json").write_text(json.dumps(json.loads(tok.to_str()), ensure_ascii=False, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
        out[name] = Tokenizer.from_file(str(OWN / f"{name}.json"))
    return out


def from_vocab(folder, stem, pattern, special, normalizer):
    """GPT-2's and Qwen2.5's vocabulary and merges with the pipeline their tokenizer.json has."""
    tok = Tokenizer(models.BPE.from_file(str(folder / f"{stem}vocab.json"), str(folder / f"{stem}merges.txt")))
    if normalizer:
        tok.normalizer = normalizer
    if pattern:
        tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(special)
    return tok


def record(tok, root, seed, **where):
    cases = []
    for text in TEXTS:
        ids = tok.encode(text, add_special_tokens=False).ids
        special = tok.encode(text, add_special_tokens=True).ids
        row = {"ids": ids}
        if special != ids:
            row["special"] = special
        row["text"] = tok.decode(special, skip_special_tokens=True)
        keep = tok.decode(special, skip_special_tokens=False)
        if keep != row["text"]:
            row["keep"] = keep
        cases.append(row)
    rng = random.Random(seed)
    pool = list(range(tok.get_vocab_size()))
    multibyte = sorted({i for t in TEXTS if not t.isascii() for i in tok.encode(t, add_special_tokens=False).ids})
    rows = []
    for k in range(16):
        source = pool if k % 2 else multibyte
        ids = [i for i in (rng.choice(source) for _ in range(rng.randrange(1, 14))) if tok.id_to_token(i) is not None]
        text, keep = tok.decode(ids, skip_special_tokens=True), tok.decode(ids, skip_special_tokens=False)
        if "\0" not in keep:  # cJSON's strings end at a zero byte
            rows.append({"ids": ids, "text": text, **({"keep": keep} if keep != text else {})})
    return {"root": root, **where, "cases": cases, "decode": rows}


def main():
    out = {}
    for i, (name, tok) in enumerate(build_own().items()):
        out[name] = record(tok, "golden", i, path=f"tokenizers/{name}.json")
    root = shared()
    paths = {"minimind": "tokenizers/minimind/tokenizer.json", "small_qwen": "tokenizers/small/tiny_bpe_tokenizer.json",
             "small_llama3": "tokenizers/small/tokenizer.json", "gemma_cropped": "tokenizers/small/tokenizer_gemma_cropped.json",
             "stories260K": "models/stories260K/tokenizer.json"}
    for i, (name, path) in enumerate(paths.items()):
        if (root / path).is_file():
            out[f"shared_{name}"] = record(Tokenizer.from_file(str(root / path)), "shared", 10 + i, path=path)
    for i, (name, stem, pattern, norm) in enumerate((("gpt2", "gpt2_", None, None), ("qwen2.5", "", QWEN, normalizers.NFC()))):
        folder = root / "tokenizers" / name
        if folder.is_dir():
            special = ["<|endoftext|>"] if name == "gpt2" else ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
            out[f"shared_{name}"] = record(from_vocab(folder, stem, pattern, special, norm), "shared", 20 + i,
                                           vocab=f"tokenizers/{name}/{stem}vocab.json", merges=f"tokenizers/{name}/{stem}merges.txt")

    dump = lambda v: json.dumps(v, ensure_ascii=False, separators=(",", ":"))
    lines = ['{"versions":' + dump(versions("tokenizers")) + ",", '"texts":[', ",\n".join(dump(t) for t in TEXTS), "],", '"tokenizers":{']
    blocks = []
    for name, t in out.items():
        head = ",".join(f"{dump(k)}:{dump(v)}" for k, v in t.items() if k not in ("cases", "decode"))
        blocks.append(f'{dump(name)}:{{{head},\n"cases":[\n' + ",\n".join(map(dump, t["cases"])) + '\n],\n"decode":[\n' + ",\n".join(map(dump, t["decode"])) + "\n]}")
    text = "\n".join(lines) + "\n" + ",\n".join(blocks) + "\n}}\n"
    json.loads(text)
    path = HERE / "tokenizers.json"
    path.write_text(text, encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size} bytes, {len(TEXTS)} texts, {len(out)} tokenizers: {list(out)}")


if __name__ == "__main__":
    main()
