/* Read, tokenise, check, store. The checks run as the documents pass by; only their verdicts wait for the end. The cache key is a text
 * that names everything the store depends on: it is compared, not hashed, so that a doubt can be looked into with h5dump. */
#include "train/dataset.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/sha256.h"
#include "data/tokenize.h"

enum { KEY_VERSION = 2 };

/* ---------------------------------------------------------------------------------------------- the cache */

static lk_status make_key(char **key, const lk_dataset_options *o, lk_error *err)
{
    cJSON *root = cJSON_CreateObject(), *list = cJSON_AddArrayToObject(root, "sources");
    lk_status status = LK_OK;
    for (int i = 0; i < o->n_sources && !status; i++) {
        const lk_source *s = &o->sources[i];
        char hex[65];
        if ((status = lk_sha256_file(s->path, hex, err))) break;
        const char *name = strrchr(s->path, '/');
        cJSON *one = cJSON_CreateObject();
        cJSON_AddStringToObject(one, "name", name ? name + 1 : s->path); /* the ending decides how it is unpacked */
        cJSON_AddStringToObject(one, "sha256", hex);
        cJSON_AddNumberToObject(one, "format", s->format);
        if (s->prompt_field) cJSON_AddStringToObject(one, "prompt", s->prompt_field);
        if (s->completion_field) cJSON_AddStringToObject(one, "completion", s->completion_field);
        cJSON_AddItemToArray(list, one);
    }
    cJSON_AddStringToObject(root, "tokenizer", lk_tokenizer_digest(o->tokenizer));
    cJSON_AddStringToObject(root, "template", lk_chat_name(o->chat));
    cJSON_AddStringToObject(root, "loss_on", o->loss_on);
    cJSON_AddNumberToObject(root, "max_length", (double)o->max_length);
    cJSON_AddNumberToObject(root, "vocab", (double)o->vocab);
    cJSON_AddNumberToObject(root, "version", KEY_VERSION);
    *key = status ? NULL : cJSON_PrintUnformatted(root);
    cJSON_Delete(root);
    if (!status && !*key) status = lk_fail(err, LK_ERR_MEMORY, "%s: no memory", o->what);
    return status;
}

static const struct {
    const char *name;
    size_t offset;
} report_fields[] = {
    {"examples", offsetof(lk_dataset_report, examples)}, {"documents", offsetof(lk_dataset_report, documents)},
    {"tokens", offsetof(lk_dataset_report, tokens)},     {"supervised", offsetof(lk_dataset_report, supervised)},
    {"cut", offsetof(lk_dataset_report, cut)},           {"split", offsetof(lk_dataset_report, split)},
    {"masked", offsetof(lk_dataset_report, masked)},     {"cut_away", offsetof(lk_dataset_report, cut_away)},
};
enum { FIELDS = sizeof report_fields / sizeof *report_fields };

static int64_t *field(lk_dataset_report *r, int i) { return (int64_t *)(void *)((char *)r + report_fields[i].offset); }

static lk_status write_report(lk_store_writer *w, lk_dataset_report *r, lk_error *err)
{
    char text[500] = "{";
    for (int i = 0; i < FIELDS; i++) {
        size_t n = strlen(text);
        snprintf(text + n, sizeof text - n, "%s\"%s\":%" PRId64, i ? "," : "", report_fields[i].name, *field(r, i));
    }
    size_t n = strlen(text);
    snprintf(text + n, sizeof text - n, "}");
    return lk_store_attribute(w, "report", text, err);
}

static bool read_report(lk_store *s, lk_dataset_report *r)
{
    char *text = NULL;
    cJSON *root = NULL;
    bool read = !lk_store_get_attribute(s, "report", &text, NULL) && !lk_json_parse(&root, text, strlen(text), "report", NULL);
    for (int i = 0; i < FIELDS && read; i++)
        read = !lk_json_int(root, report_fields[i].name, 0, INT64_MAX / 2, field(r, i), "report", NULL);
    cJSON_Delete(root);
    free(text);
    r->reused = true;
    return read;
}

/* Opens a store of the same key; a missing, foreign or damaged one leaves d->store NULL. */
static void try_reuse(lk_dataset *d, const char *path, const char *key)
{
    char *stored = NULL;
    lk_error err = {0};
    if (!lk_path_exists(path) || lk_store_open(&d->store, path, &err)) {
        if (err.message[0]) lk_log(LK_LOG_WARN, "%s; it is made again", err.message);
        d->store = NULL;
        return;
    }
    bool same = !lk_store_get_attribute(d->store, "key", &stored, NULL) && !strcmp(stored, key) && read_report(d->store, &d->report);
    /* The digest reads every chunk and so checks every sum: damage shows here, not in the middle of the run. */
    if (same && lk_store_digest(d->store, d->digest, &err)) {
        lk_log(LK_LOG_WARN, "%s; it is made again", err.message);
        same = false;
    }
    free(stored);
    if (same) return;
    lk_store_close(d->store);
    d->store = NULL;
    d->report = (lk_dataset_report){0};
}

/* ---------------------------------------------------------------------------------------------- making the store */

typedef struct making {
    const lk_dataset_options *o;
    lk_dataset_report *report;
    lk_store_writer *writer;
    lk_reader *reader;
    lk_loss_on loss_on;
    bool chat_seen, end_seen; /* conversations; a supervised end of turn in one */
    bool truncated;           /* of the current example */
    int64_t pieces;           /* documents that the current example gave */
} making;

static lk_status check_ids(const making *m, const int32_t *ids, int64_t n, lk_error *err)
{
    int32_t bos = lk_tokenizer_bos(m->o->tokenizer);
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= m->o->vocab)
            return lk_fail(err, LK_ERR_FORMAT,
                           "%s: %s: token id %d, but the model's vocabulary ends at %" PRId64
                           ": tokenizer and model do not belong together",
                           m->o->what, lk_reader_place(m->reader), ids[i], m->o->vocab - 1);
    if (bos >= 0 && n >= 2 && ids[0] == bos && ids[1] == bos)
        return lk_fail(err, LK_ERR_FORMAT,
                       "%s: %s: the document begins with two BOS tokens (%d): the text brings one that the template adds already; take it "
                       "out of the text",
                       m->o->what, lk_reader_place(m->reader), bos);
    return LK_OK;
}

static lk_status keep(void *context, const int32_t *ids, const uint8_t *mask, int64_t n, lk_error *err)
{
    making *m = context;
    int64_t supervised = 0;
    int32_t end = lk_chat_end_of_turn(m->o->chat);
    LK_TRY(check_ids(m, ids, n, err));
    for (int64_t i = 1; i < n; i++) {
        supervised += mask[i];
        if (mask[i] && ids[i] == end) m->end_seen = true;
    }
    m->pieces++;
    if (supervised == 0) {
        if (m->truncated)
            m->report->cut_away++;
        else
            m->report->masked++;
        return LK_OK;
    }
    m->report->documents++;
    m->report->tokens += n;
    m->report->supervised += supervised;
    return lk_store_append(m->writer, ids, mask, n, err);
}

/* The sink learns only afterwards whether the document was cut, so conversations and completions go through the call that says so first. */
static lk_status add_example(making *m, const lk_example *ex, lk_error *err)
{
    const lk_dataset_options *o = m->o;
    m->pieces = 0;
    m->truncated = false;
    m->report->examples++;
    if (ex->kind == LK_EXAMPLE_MESSAGES) m->chat_seen = true;
    if (ex->kind == LK_EXAMPLE_TEXT) {
        bool truncated;
        LK_TRY(lk_tokenize_documents(o->tokenizer, o->chat, ex, m->loss_on, o->max_length, keep, m, &truncated, err));
        m->report->split += m->pieces > 1;
        return LK_OK;
    }
    int32_t *ids = NULL;
    uint8_t *mask = NULL;
    int64_t n = 0;
    LK_TRY(lk_tokenize_example(o->tokenizer, o->chat, ex, m->loss_on, o->max_length, &ids, &mask, &n, &m->truncated, err));
    m->report->cut += m->truncated;
    lk_status status = n > 0 ? keep(m, ids, mask, n, err) : LK_OK;
    if (n == 0) m->report->masked++;
    free(ids);
    free(mask);
    return status;
}

static lk_status read_source(making *m, const lk_source *source, lk_error *err)
{
    lk_example ex;
    LK_TRY(lk_reader_open(&m->reader, source, err));
    lk_status status;
    while (!(status = lk_reader_next(m->reader, &ex, err)) && ex.kind != LK_EXAMPLE_END) {
        lk_error why = {0};
        if ((status = add_example(m, &ex, &why))) {
            /* Most errors below do not know which line they are about. */
            const char *place = lk_reader_place(m->reader);
            if (strstr(why.message, place))
                status = lk_fail(err, status, "%s", why.message);
            else
                status = lk_fail(err, status, "%s: %s: %s", m->o->what, place, why.message);
            break;
        }
        if (m->o->stop && *m->o->stop) {
            status = lk_fail(err, LK_ERR_INTERRUPTED, "stopped while %s was being tokenised", m->o->what);
            break;
        }
    }
    lk_reader_close(m->reader);
    m->reader = NULL;
    return status;
}

static lk_status verdict(const making *m, lk_error *err)
{
    const lk_dataset_report *r = m->report;
    const char *what = m->o->what;
    if (r->examples == 0) return lk_fail(err, LK_ERR_FORMAT, "%s: the dataset is empty", what);
    if (r->documents == 0)
        return lk_fail(err, LK_ERR_FORMAT,
                       "%s: nothing to learn: of %" PRId64 " examples %" PRId64
                       " have no supervised token (data.loss_on is \"%s\") and %" PRId64 " lost theirs to data.max_length %" PRId64,
                       what, r->examples, r->masked, m->o->loss_on, r->cut_away, m->o->max_length);
    if (r->masked)
        lk_log(LK_LOG_WARN, "%s: %" PRId64 " of %" PRId64 " examples have no supervised token and are left out", what, r->masked,
               r->examples);
    if (r->cut_away)
        lk_log(LK_LOG_WARN,
               "%s: %" PRId64 " of %" PRId64 " examples are left out: what they would teach lies beyond data.max_length %" PRId64, what,
               r->cut_away, r->examples, m->o->max_length);
    if (r->cut > r->cut_away)
        lk_log(LK_LOG_WARN, "%s: %" PRId64 " of %" PRId64 " examples are cut at data.max_length %" PRId64, what, r->cut - r->cut_away,
               r->examples, m->o->max_length);
    if (m->chat_seen && !m->end_seen && lk_chat_end_of_turn(m->o->chat) >= 0 && m->loss_on != LK_LOSS_ALL)
        lk_log(LK_LOG_WARN, "%s: the end-of-turn token is never supervised: the model will not learn to stop", what);
    if (m->chat_seen && lk_chat_end_of_turn(m->o->chat) < 0 && m->loss_on != LK_LOSS_ALL)
        lk_log(LK_LOG_WARN, "%s: the chat template ends an assistant's turn with no token of its own: the model will not learn to stop",
               what);
    if (m->chat_seen && lk_chat_is_dated(m->o->chat))
        lk_log(LK_LOG_WARN, "%s: the chat template writes the date of the day; this run keeps the one its data were tokenised on", what);
    return LK_OK;
}

static lk_status fill(making *m, const char *key, lk_error *err)
{
    for (int i = 0; i < m->o->n_sources; i++) LK_TRY(read_source(m, &m->o->sources[i], err));
    LK_TRY(verdict(m, err));
    LK_TRY(lk_store_attribute(m->writer, "key", key, err));
    LK_TRY(lk_store_attribute(m->writer, "sources", key, err));
    LK_TRY(lk_store_attribute(m->writer, "tokenizer_digest", lk_tokenizer_digest(m->o->tokenizer), err));
    LK_TRY(lk_store_attribute(m->writer, "template", lk_chat_name(m->o->chat), err));
    return write_report(m->writer, m->report, err);
}

static lk_status make_store(lk_dataset *d, const lk_dataset_options *o, const char *key, lk_error *err)
{
    char folder[4096];
    making m = {.o = o,
                .report = &d->report,
                .loss_on = !strcmp(o->loss_on, "all")          ? LK_LOSS_ALL
                           : !strcmp(o->loss_on, "completion") ? LK_LOSS_COMPLETION
                                                               : LK_LOSS_ASSISTANT};
    LK_TRY(lk_path_folder(folder, sizeof folder, o->path, err));
    LK_TRY(lk_folder_create(folder, err));
    LK_TRY(lk_store_create(&m.writer, o->path, err));
    lk_status status = fill(&m, key, err);
    if (status) {
        lk_store_abort(m.writer);
        return status;
    }
    LK_TRY(lk_store_commit(m.writer, err));
    LK_TRY(lk_store_open(&d->store, o->path, err));
    return lk_store_digest(d->store, d->digest, err);
}

lk_status lk_dataset_open(lk_dataset *d, const lk_dataset_options *o, lk_error *err)
{
    char *key;
    memset(d, 0, sizeof *d);
    LK_TRY(make_key(&key, o, err));
    try_reuse(d, o->path, key);
    lk_status status = d->store ? LK_OK : make_store(d, o, key, err);
    free(key);
    if (status) lk_dataset_close(d);
    return status;
}

void lk_dataset_close(lk_dataset *d)
{
    if (d->store) lk_store_close(d->store);
    d->store = NULL;
}

lk_status lk_dataset_estimate(const lk_source *sources, int n_sources, int64_t max_length, int64_t *documents, lk_error *err)
{
    *documents = 0;
    for (int i = 0; i < n_sources; i++) {
        lk_reader *reader;
        lk_example ex;
        lk_status status;
        LK_TRY(lk_reader_open(&reader, &sources[i], err));
        while (!(status = lk_reader_next(reader, &ex, err)) && ex.kind != LK_EXAMPLE_END)
            *documents += 1 + (ex.kind == LK_EXAMPLE_TEXT ? (int64_t)strlen(ex.text) / (2 * max_length) : 0);
        lk_reader_close(reader);
        LK_TRY(status);
    }
    return LK_OK;
}
