"""Generated strings against the `tokenizers` library and transformers' conversions of folders without tokenizer.json.

Run:  python tests/golden/make_tokenizer_strings.py                     writes the sample and the small tokenizers it needs
      python tests/golden/make_tokenizer_strings.py --compare PROGRAM [N [NAME...]]
with PROGRAM = build/release/tests/test_data_tokenizer_strings: N (100,000) strings for every tokenizer (or those named), the shared ones (LK_SHARED) and full-sized
ones trained here included, compared id for id; prints one line a tokenizer and says whether any string differs.
Needs tokenizers, sentencepiece and transformers. Writes
  tokenizers/{tekken,gpt4o,gemma,dbrx,parts,unigram}.json           other pipelines, trained on this folder's own sentences
  tokenizers/slow_{llama,llama_legacy,gemma,unigram}/               tokenizer.model and tokenizer_config.json
  tokenizers/slow_{gpt2,qwen2}/                                     vocab.json, merges.txt and tokenizer_config.json
  tokenizer_strings.json                                            texts as hexadecimal, ids by tokenizer
"""

import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from golden import HERE, shared, versions
from make_tokenizers import CORPUS, LLAMA3, QWEN, TEXTS, added, bytelevel, trained, with_bytes

OWN = HERE / "tokenizers"
WORD, UP, LOW = r"[^\r\n\p{L}\p{N}]?", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
APOS, TAIL = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = f"{WORD}{UP}*{LOW}+|{WORD}{UP}+{LOW}*|\\p{{N}}|{TAIL}"
GPT4O = f"{WORD}{UP}*{LOW}+{APOS}?|{WORD}{UP}+{LOW}*{APOS}?|\\p{{N}}{{1,3}}|{TAIL}"
CL100K = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"

# ---- strings ----

SCRIPTS = [(0x20, 0x7F), (0xA0, 0x24F), (0x250, 0x2FF), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x52F), (0x530, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F),
           (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x218F), (0x2190, 0x27BF), (0x3000, 0x30FF), (0x4E00, 0x9FFF),
           (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xF900, 0xFAFF), (0xFB00, 0xFDFF), (0xFE00, 0xFEFF), (0xFF00, 0xFFEF), (0x10000, 0x100FF), (0x1D400, 0x1D7FF),
           (0x1F000, 0x1FAFF), (0x20000, 0x200FF), (0x2F800, 0x2F8FF), (0xE0000, 0xE01EF), (0x10FF00, 0x10FFFF)]
SPACES = [" "] * 8 + ["\n"] * 4 + ["\t", "\t", "\r", "\r\n", "\u00a0", "\u3000", "\u2028", "\u2029", "\x0b", "\x0c", "\x85", "\u180e", "\u200b", "\u2003", "\ufeff", "\u202f"]
EMOJI = ["🙂", "👩", "👨", "👧", "❤", "✈", "🇩", "🇪", "🇫", "🇷", "👍", "🏴", "#", "1", "🧑", "🫠", "🪿", "🐦"]
JOINERS = ["\u200d", "\ufe0f", "\ufe0e", "🏽", "🏿", "\u20e3", "\U000e0067", "\U000e007f"]
CODE = ["def ", "return ", "if (", ") {", "}", "    ", "\t", "\n", "\n\n", " == ", "!=", "->", "::", "i++", "0x1F", "1e-9", "// x", "/* */", "#include <a.h>", "\"s\\n\"", "'c'", "a[i]",
        "foo_bar", "fooBar", "CONSTANT", ";", ",", "();", "<T>", "&&", "||", "<?php", "</div>", "http://a.b/c?d=e&f=1", "$x", "@y", "`z`", "{{ }}", "{% if %}"]
WORDS = " ".join(t for t in CORPUS if t.isascii()).split() + ["I'm", "they'VE", "we'll", "O'Neil", "don’t", "naïve", "CAFÉ", "straße", "Ĳssel", "ǅungla", "ﬁn", "１２３", "Ⅷ", "½"]
MARKS = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|eot_id|>", "TAG", "[lone]", "<bos>", "<eos>", "<pad>", "<start_of_turn>", "<mask>",
         "<|im_", "end|>", "<0x41>", "▁", "▁▁", "Ġ", "##", "[INST]", "<x>"]


def any_char(r):
    while True:
        c = r.randrange(0x110000) if r.random() < 0.5 else r.randrange(0x3000)
        if not 0xD800 <= c < 0xE000:
            return chr(c)


def scripts(r):
    lo, hi = r.choice(SCRIPTS)
    out = [chr(r.randint(lo, hi)) for _ in range(r.randint(1, 12))]
    if r.random() < 0.4:
        out.insert(r.randrange(len(out) + 1), chr(r.randint(0x300, 0x36F)))
    return "".join(c for c in out if not 0xD800 <= ord(c) < 0xE000)


def emoji(r):
    return "".join(r.choice(EMOJI) + (r.choice(JOINERS) if r.random() < 0.6 else "") for _ in range(r.randint(1, 5)))


def spaces(r):
    return "".join(r.choice(SPACES) * (r.randint(1, 5) if r.random() < 0.3 else 1) for _ in range(r.randint(1, 8)))


def words(r):
    sep = r.choice([" ", " ", " ", "  ", ", ", "-", "\n", ""])
    out = []
    for _ in range(r.randint(1, 8)):
        w = r.choice(WORDS)
        out.append(r.choice([w, w, w, w.upper(), w.capitalize(), w[: r.randint(1, len(w))]]))
    return sep.join(out)


def number(r):
    return r.choice(["", "-", "+", "$", " "]) + "".join(r.choice("0123456789.,:e") for _ in range(r.randint(1, 14)))


def malformed(r):
    base = bytearray("".join(r.choice([words, emoji, scripts])(r) for _ in range(2)).encode())
    for _ in range(r.randint(1, 4)):
        at = r.randrange(len(base) + 1)
        k = r.randrange(4)
        if k == 0:
            base[at:at] = bytes(r.randrange(256) for _ in range(r.randint(1, 4)))
        elif k == 1:
            base[at:at] = r.choice([b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\xf0\x9f\x99", b"\xff", b"\x80", b"\xe0\x80\x80", b"\xf8\x88\x80\x80\x80"])
        elif k == 2 and len(base) > 1:
            del base[r.randrange(len(base))]
        else:
            base = base[:at]
    return bytes(base)


def one(r):
    """One string, as bytes that need not be UTF-8."""
    kinds = [lambda q: "".join(any_char(q) for _ in range(q.randint(1, 10))), scripts, emoji, spaces, words, words, number,
             lambda q: "".join(q.choice(CODE) for _ in range(q.randint(2, 12))), lambda q: q.choice(MARKS)]
    k = r.random()
    if k < 0.08:
        return malformed(r)
    if k < 0.5:
        return r.choice(kinds)(r).encode()
    out = ""
    for _ in range(r.randint(2, 6)):
        out += r.choice(kinds)(r) + r.choice(["", "", " ", "\n"])
    return out.encode()


def strings(n, seed):
    r = random.Random(seed)
    return [one(r) for _ in range(n)]


# ---- tokenizers ----

def unigram(normalizer, pre, dec, size=220, special=("<pad>", "</s>", "<unk>")):
    tok = Tokenizer(models.Unigram())
    tok.normalizer, tok.pre_tokenizer, tok.decoder = normalizer, pre, dec
    tok.train_from_iterator([t for t in CORPUS if "<" not in t] * 2, trainers.UnigramTrainer(vocab_size=size, show_progress=False, special_tokens=list(special), unk_token="<unk>"))
    return tok


def pipelines():
    """Small tokenizers whose tokenizer.json stands in the tree."""
    out = {}
    for name, pattern in (("tekken", TEKKEN), ("gpt4o", GPT4O), ("dbrx", CL100K)):
        out[name] = bytelevel(pattern, 380, [])
        out[name].add_special_tokens(["<s>", "</s>", "[INST]"])
        out[name].add_tokens(added())
    state = json.loads(out["tekken"].to_str())
    state["model"]["ignore_merges"] = True
    out["tekken"] = Tokenizer.from_str(json.dumps(state))

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    gemma = trained(models.BPE(), 260, [], special, normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"),
                    decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]))
    state = json.loads(gemma.to_str())
    pieces = special + [f"<0x{b:02X}>" for b in range(256)] + ["▁▁", "▁▁▁", "\n\n", "<start_of_turn>", "<end_of_turn>"]
    pieces += [p for p, _ in sorted(state["model"]["vocab"].items(), key=lambda kv: kv[1]) if p not in pieces] + ["\n"]
    state["model"]["vocab"] = {p: i for i, p in enumerate(pieces)}
    state["model"]["merges"] += [["▁", "▁"], ["▁▁", "▁"], ["\n", "\n"]]
    state["model"].update(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    for a in state["added_tokens"]:
        a["id"] = state["model"]["vocab"][a["content"]]
    out["gemma"] = Tokenizer.from_str(json.dumps(state))
    out["gemma"].add_special_tokens(["<start_of_turn>", "<end_of_turn>"])
    out["gemma"].add_tokens([AddedToken("▁▁", normalized=False), AddedToken("\n\n", normalized=False)])
    out["gemma"].post_processor = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", 2)])

    # every other component at once, each where it can be seen
    norm = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s{2,}"), " "),
                                 normalizers.Strip(left=True, right=True)])
    pre = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Digits(False)])
    out["parts"] = trained(models.BPE(unk_token="<unk>"), 200, [], ["<unk>"], norm, pre, decoders.Fuse())
    out["parts"].add_tokens(added())
    out["parts"].post_processor = processors.Sequence([])

    out["unigram"] = unigram(normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]),
                             pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]), decoders.Metaspace(prepend_scheme="always"))
    out["unigram"].add_tokens(added())
    out["unigram"].post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B:1 </s>:1", special_tokens=[("</s>", 1)])
    return out


RULES = "\n".join(["41\t61", "C9\tE9", "65 301\tE9", "FB01\t66 69", "2460\t31", "3000\t20", "A0\t20", "200B\t", "1F642\t3A 29"]) + "\n"


def sentencepiece(folder, name, config, **kw):
    """A folder with a SentencePiece model trained on this folder's sentences."""
    import sentencepiece as spm

    path = folder / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    kw = {"byte_fallback": True, "split_digits": True, "allow_whitespace_only_pieces": True, "remove_extra_whitespaces": False, "minloglevel": 2,
          "num_threads": 1, "hard_vocab_limit": False, **kw}
    model, home = io.BytesIO(), os.getcwd()
    with tempfile.TemporaryDirectory() as tmp:
        os.chdir(tmp)  # the model keeps the name of the rules' file
        if kw.pop("rules", None):
            Path("rules.tsv").write_text(RULES)
            kw["normalization_rule_tsv"] = "rules.tsv"
        spm.SentencePieceTrainer.train(sentence_iterator=iter(kw.pop("corpus", CORPUS * 2)), model_writer=model, **kw)
        os.chdir(home)
    (path / "tokenizer.model").write_bytes(model.getvalue())
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config) + "\n")
    return path


LLAMA_CONFIG = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
                "added_tokens_decoder": {"0": {"content": "<unk>", "special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False},
                                         "1": {"content": "<s>", "special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False},
                                         "2": {"content": "</s>", "special": True, "normalized": False, "lstrip": False, "rstrip": True, "single_word": False}}}


def folders(where, corpus=None, size=430):
    """Folders without tokenizer.json, and the class that reads each."""
    from transformers import GemmaTokenizer, GPT2Tokenizer, LlamaTokenizer, Qwen2Tokenizer, TokenizersBackend

    more = {"corpus": corpus} if corpus else {}
    identity = {"normalization_rule_name": "identity", **more}
    out = {}
    out["slow_llama"] = (sentencepiece(where, "slow_llama", LLAMA_CONFIG, model_type="bpe", vocab_size=size, **identity), LlamaTokenizer)
    legacy = {**LLAMA_CONFIG, "legacy": True, "add_eos_token": True}
    del legacy["added_tokens_decoder"]
    out["slow_llama_legacy"] = (sentencepiece(where, "slow_llama_legacy", legacy, model_type="bpe", vocab_size=size + 20, user_defined_symbols=["TAG", "[lone]"], **identity), LlamaTokenizer)
    out["slow_gemma"] = (sentencepiece(where, "slow_gemma", {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>",
                                                             "eos_token": "<eos>"},
                                       model_type="bpe", vocab_size=size + 10, pad_id=0, eos_id=1, bos_id=2, unk_id=3, bos_piece="<bos>", eos_piece="<eos>", add_dummy_prefix=False,
                                       user_defined_symbols=["<mask>", "<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "▁▁", "▁▁▁"], **identity), GemmaTokenizer)
    rules = {"normalization_rule_name": "nmt_nfkc", **more} if corpus else {"rules": True}
    out["slow_unigram"] = (sentencepiece(where, "slow_unigram", None, model_type="unigram", vocab_size=size, **rules), TokenizersBackend)
    for name, pattern, cls, config in (("slow_gpt2", None, GPT2Tokenizer, {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}),
                                       ("slow_qwen2", QWEN, Qwen2Tokenizer, {"tokenizer_class": "Qwen2Tokenizer", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": None,
                                                                             "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_bos_token": False})):
        tok = bytelevel(pattern or r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", 400, ["<|endoftext|>"] if name == "slow_gpt2" else [])
        path = where / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        tok.model.save(str(path))
        (path / "tokenizer_config.json").write_text(json.dumps(config) + "\n")
        out[name] = (path, cls)
    return out


def library_ids(tok, texts):
    """tok is a tokenizers.Tokenizer; malformed bytes are repaired as Python does."""
    out = []
    for i in range(0, len(texts), 2000):
        out += [e.ids for e in tok.encode_batch([t.decode("utf-8", "replace") for t in texts[i : i + 2000]], add_special_tokens=True)]
    return out


def from_folder(path, cls):
    tok = cls.from_pretrained(str(path))
    return tok._tokenizer


# ---- comparing ----

def ours(program, path, texts, tmp):
    """[(ids, decoded text)], seconds; None where our encoder failed."""
    (tmp / "texts").write_bytes(b"".join(struct.pack("<I", len(t)) + t for t in texts))
    done = subprocess.run([program, str(path), str(tmp / "texts"), str(tmp / "ids")], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    raw, at, out = (tmp / "ids").read_bytes(), 0, []
    for _ in texts:
        (n,) = struct.unpack_from("<I", raw, at)
        at += 4
        if n == 0xFFFFFFFF:
            out.append((None, None))
            continue
        ids = list(struct.unpack_from(f"<{n}i", raw, at))
        (size,) = struct.unpack_from("<I", raw, at + 4 * n)
        at += 4 * n + 4 + size
        out.append((ids, raw[at - size : at].decode()))
    return out, float(done.stdout)


def candidates(tmp):
    """name -> (what our program opens, tokenizers.Tokenizer). Everything in the tree, the shared ones, and full-sized ones."""
    out = {}
    for name in ("qwen", "llama3", "gpt2", "spm", "metaspace", *pipelines()):
        path = OWN / f"{name}.json"
        out[name] = (path, Tokenizer.from_file(str(path)))
    for name, (path, cls) in folders(OWN).items():
        out[name] = (path, from_folder(path, cls))
    root = shared()
    for name, path in {"minimind": "tokenizers/minimind", "small_qwen": "tokenizers/small/tiny_bpe_tokenizer.json", "small_llama3": "tokenizers/small/tokenizer.json",
                       "gemma_cropped": "tokenizers/small/tokenizer_gemma_cropped.json", "stories260K": "models/stories260K/tokenizer.json"}.items():
        if (root / path).exists():
            file = root / path / "tokenizer.json" if (root / path).is_dir() else root / path
            out[f"shared_{name}"] = (file, Tokenizer.from_file(str(file)))
    from transformers import GPT2Tokenizer, Qwen2Tokenizer

    if (root / "tokenizers/gpt2").is_dir():
        real = tmp / "gpt2"
        real.mkdir()
        shutil.copy(root / "tokenizers/gpt2/gpt2_vocab.json", real / "vocab.json")
        shutil.copy(root / "tokenizers/gpt2/gpt2_merges.txt", real / "merges.txt")
        (real / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
        out["shared_gpt2"] = (real, from_folder(real, GPT2Tokenizer))
    if (root / "tokenizers/qwen2.5").is_dir():
        out["shared_qwen2.5"] = (root / "tokenizers/qwen2.5", from_folder(root / "tokenizers/qwen2.5", Qwen2Tokenizer))
    books = root / "data/tinyshakespeare"
    text = next((p for p in sorted(books.glob("*.txt"))), None) if books.is_dir() else None
    if text:
        lines = [line for line in text.read_text().split("\n") if line][:20000] + CORPUS
        for name, (path, cls) in folders(tmp / "large", lines, 4000).items():
            if name not in ("slow_gpt2", "slow_qwen2"):
                out[f"large_{name}"] = (path, from_folder(path, cls))
    return out


def compare(program, n, names):
    total = bad = 0
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        texts = strings(n, 2026)
        size = sum(map(len, texts))
        print(f"{n} strings, {size} bytes, {sum(1 for t in texts if t.decode('utf-8', 'replace').encode() != t)} of them malformed")
        for name, (path, tok) in candidates(tmp).items():
            if names and name not in names:
                continue
            try:
                got, seconds = ours(program, path, texts, tmp)
            except RuntimeError as e:
                print(f"{name}: REFUSED: {e}")
                bad += 1
                continue
            begin = time.process_time()
            want = library_ids(tok, texts)
            theirs = time.process_time() - begin
            back = tok.decode_batch(want, skip_special_tokens=True)
            wrong = [i for i in range(n) if got[i] != (want[i], back[i])]
            print(f"{name}: {n - len(wrong)} of {n} equal; {size / 1e6 / seconds:.1f} MB/s, the library {size / 1e6 / theirs:.2f}", flush=True)
            for i in wrong[:4]:
                print(f"    {texts[i]!r}\n      got  {got[i]}\n      want {want[i], back[i]}")
            total += n
            bad += len(wrong)
    print(f"{total} strings, {bad} differ")
    return bad != 0


def write_sample():
    dump = lambda v: json.dumps(v, ensure_ascii=False, separators=(",", ":"))
    for name, tok in pipelines().items():
        (OWN / f"{name}.json").write_text(dump(json.loads(tok.to_str())) + "\n", encoding="utf-8")
    folders(OWN)
    texts = [t for t in strings(160, 7) if len(t) <= 100]
    blocks = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (path, tok) in candidates(Path(folder)).items():
            if name.startswith("large_") or name == "shared_gpt2":
                continue
            root = "shared" if name.startswith("shared_") else "golden"
            relative = Path(path).relative_to(shared() if root == "shared" else HERE)
            ids = ",\n".join(map(dump, library_ids(tok, texts)))
            blocks.append(f'{dump(name)}:{{"root":{dump(root)},"path":{dump(str(relative))},"ids":[\n{ids}\n]}}')
    text = '{"versions":' + dump(versions("tokenizers", "transformers", "sentencepiece")) + ',\n"texts":[\n' + ",\n".join(dump(t.hex()) for t in texts) + '],\n"tokenizers":{\n' + ",\n".join(blocks) + "}}\n"
    json.loads(text)
    path = HERE / "tokenizer_strings.json"
    path.write_text(text, encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size} bytes, {len(texts)} texts, {len(blocks)} tokenizers")


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] == "--compare":
        sys.exit(compare(sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 100_000, sys.argv[4:]))
    write_sample()
