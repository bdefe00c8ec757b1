/* SentencePiece's .model files: a protobuf message (sentencepiece_model.proto), of which a handful of fields matter. The wire format is
 * small enough to be read here, bounded at every step; libsentencepiece would bring C++ and protobuf into a library that is C, and its
 * encoder would not be used: ids have to be those of transformers' conversion, which is not what SentencePiece itself gives. */
#include <string.h>

#include "data/tokenizer/internal.h"

typedef struct reader {
    const unsigned char *p, *end;
    const char *where;
    lk_error *err;
} reader;

/* One field: its number, wire type, and value (varints and fixed sizes) or stretch of bytes. */
typedef struct field {
    uint64_t number, value;
    unsigned wire;
    reader bytes;
} field;

static lk_status broken(const reader *r, const char *why)
{
    return lk_fail(r->err, LK_ERR_FORMAT, "%s: not a SentencePiece model: %s", r->where, why);
}

static lk_status varint(reader *r, uint64_t *value)
{
    *value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (r->p == r->end) return broken(r, "it ends inside a number");
        unsigned byte = *r->p++;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) return LK_OK;
    }
    return broken(r, "a number is longer than 64 bits");
}

static lk_status next_field(reader *r, field *f)
{
    uint64_t tag, size;
    LK_TRY(varint(r, &tag));
    *f = (field){.number = tag >> 3, .wire = tag & 7};
    if (f->number == 0) return broken(r, "a field has the number 0");
    switch (f->wire) {
    case 0: return varint(r, &f->value);
    case 2: LK_TRY(varint(r, &size)); break;
    case 1: size = 8; break;
    case 5: size = 4; break;
    default: return broken(r, "a field is of an unknown wire type");
    }
    if (size > (uint64_t)(r->end - r->p)) return broken(r, "a field reaches beyond the end");
    f->bytes = (reader){r->p, r->p + size, r->where, r->err};
    if (f->wire == 5) {
        uint32_t value = 0;
        for (int i = 3; i >= 0; i--) value = value << 8 | r->p[i];
        f->value = value;
    }
    r->p += size;
    return LK_OK;
}

static lk_piece piece_of(const field *f) { return (lk_piece){(const char *)f->bytes.p, (uint32_t)(f->bytes.end - f->bytes.p)}; }

static lk_status read_piece(reader r, lk_tokenizer_entry *e)
{
    field f;
    *e = (lk_tokenizer_entry){.text = "", .type = LK_TOKEN_NORMAL};
    while (r.p < r.end) {
        LK_TRY(next_field(&r, &f));
        if (f.number == 1 && f.wire == 2) {
            e->text = (const char *)f.bytes.p;
            e->size = (size_t)(f.bytes.end - f.bytes.p);
        } else if (f.number == 2 && f.wire == 5) {
            uint32_t bits = (uint32_t)f.value;
            memcpy(&e->score, &bits, sizeof bits);
        } else if (f.number == 3 && f.wire == 0) {
            if (f.value < LK_TOKEN_NORMAL || f.value > LK_TOKEN_BYTE) return broken(&r, "a piece is of an unknown type");
            e->type = (int)f.value;
        }
    }
    if (e->size > LK_TK_MAX_PIECE || lk_utf8_valid_prefix(e->text, e->size) != e->size || (e->size && memchr(e->text, 0, e->size)))
        return broken(&r, "a piece is not UTF-8 text");
    if (e->score != e->score) return broken(&r, "a piece's score is not a number");
    return LK_OK;
}

static lk_status read_trainer(reader r, lk_spm *m)
{
    field f;
    while (r.p < r.end) {
        LK_TRY(next_field(&r, &f));
        int64_t value = (int64_t)f.value;
        if (f.wire == 2) switch (f.number) {
            case 45: m->unk = piece_of(&f); break;
            case 46: m->bos = piece_of(&f); break;
            case 47: m->eos = piece_of(&f); break;
            default: break;
            }
        if (f.wire == 0) switch (f.number) {
            case 3: m->model_type = value; break;
            case 24: m->suffix_spaces = value != 0; break;
            case 35: m->byte_fallback = value != 0; break;
            case 40: m->unk_id = (int32_t)value; break; /* int32 in the message: -1 is written as 64 bits */
            case 41: m->bos_id = (int32_t)value; break;
            case 42: m->eos_id = (int32_t)value; break;
            case 43: m->pad_id = (int32_t)value; break;
            default: break;
            }
    }
    return LK_OK;
}

static lk_status read_normalizer(reader r, lk_spm *m)
{
    field f;
    while (r.p < r.end) {
        LK_TRY(next_field(&r, &f));
        if (f.wire == 2 && f.number == 2 && f.bytes.p < f.bytes.end) m->charsmap = piece_of(&f);
        if (f.wire == 0 && f.number == 3) m->dummy_prefix = f.value != 0;
        if (f.wire == 0 && f.number == 5) m->escape_spaces = f.value != 0;
    }
    return LK_OK;
}

lk_status lk_spm_parse(lk_spm *m, lk_arena *arena, const char *bytes, size_t size, const char *where, lk_error *err)
{
    const unsigned char *start = (const unsigned char *)bytes;
    reader r = {start, start + size, where, err};
    field f;
    /* what the message's definition says of fields that are not there */
    *m = (lk_spm){.model_type = 1,
                  .bos_id = 1,
                  .eos_id = 2,
                  .pad_id = -1,
                  .unk = {"<unk>", 5},
                  .bos = {"<s>", 3},
                  .eos = {"</s>", 4},
                  .dummy_prefix = true,
                  .escape_spaces = true};
    if (size > 4 && memchr(bytes, ' ', size < 64 ? size : 64) && memchr(bytes, '\n', size < 128 ? size : 128) && bytes[0] != '\n')
        return lk_fail(
            err, LK_ERR_UNSUPPORTED,
            "%s: a tiktoken file, not a SentencePiece model; transformers' save_pretrained writes a tokenizer.json, which is read", where);
    while (r.p < r.end) {
        LK_TRY(next_field(&r, &f));
        m->n += f.number == 1 && f.wire == 2;
    }
    if (m->n == 0) return broken(&r, "it has no pieces");
    if (m->n > LK_TK_MAX_IDS) return broken(&r, "it has too many pieces");
    m->entries = lk_arena_alloc(arena, (size_t)m->n * sizeof *m->entries);
    if (!m->entries) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory for %lld pieces", where, (long long)m->n);
    int64_t i = 0;
    r.p = start;
    while (r.p < r.end) {
        LK_TRY(next_field(&r, &f));
        if (f.wire != 2) continue;
        if (f.number == 1) LK_TRY(read_piece(f.bytes, &m->entries[i++]));
        if (f.number == 2) LK_TRY(read_trainer(f.bytes, m));
        if (f.number == 3) LK_TRY(read_normalizer(f.bytes, m));
    }
    return LK_OK;
}
