/* An epoch's packing is held; a step is a range of its rows. Where an epoch begins depends on how many rows the epochs before it
 * packed into, so those are counted once and remembered. */
#include "train/batch.h"

#include <stdlib.h>
#include <string.h>

#include "data/pack.h"
#include "kernels/philox.h"

typedef struct slot {
    int32_t *ids, *positions, *labels, *doc_starts;
} slot;

struct lk_batches {
    lk_store *store;
    lk_batches_options options;
    int64_t documents;
    int64_t *lengths, *order;
    int64_t *first_steps; /* [n_epochs + 1]: first step of each epoch counted so far */
    int64_t n_epochs, room_epochs;
    lk_pack *pack; /* of packed_epoch */
    int64_t packed_epoch;
    slot *slots; /* [accumulate] */
    lk_micro_batch *micro;
    uint8_t *mask; /* [max_length] */
    int count;
    int64_t tokens, supervised;
    double epoch;
};

static int64_t slot_tokens(const lk_batches_options *o) { return o->rows * o->max_length; }

size_t lk_batches_bytes(const lk_batches_options *o, int64_t documents)
{
    size_t tokens = (size_t)slot_tokens(o);
    size_t slots = (size_t)o->accumulate * (sizeof(slot) + sizeof(lk_micro_batch) + 4 * (4 * tokens + 1));
    /* lengths, order and the store's offsets, and what first-fit packing keeps of a document: its row, its place, its share of the tree */
    return slots + (size_t)o->max_length + (size_t)documents * (3 * 8 + 6 * 8);
}

static lk_status make_slots(lk_batches *b, lk_error *err)
{
    size_t tokens = (size_t)slot_tokens(&b->options);
    b->slots = calloc((size_t)b->options.accumulate, sizeof *b->slots);
    b->micro = calloc((size_t)b->options.accumulate, sizeof *b->micro);
    b->mask = malloc((size_t)b->options.max_length);
    bool made = b->slots && b->micro && b->mask;
    for (int64_t i = 0; made && i < b->options.accumulate; i++) {
        slot *s = &b->slots[i];
        s->ids = malloc(tokens * 4);
        s->positions = malloc(tokens * 4);
        s->labels = malloc(tokens * 4);
        s->doc_starts = malloc((tokens + 1) * 4);
        made = s->ids && s->positions && s->labels && s->doc_starts;
    }
    return made ? LK_OK
                : lk_fail(err, LK_ERR_MEMORY, "no memory for %lld micro-batches of %zu tokens", (long long)b->options.accumulate, tokens);
}

lk_status lk_batches_create(lk_batches **out, lk_store *store, const lk_batches_options *options, lk_error *err)
{
    *out = NULL;
    int64_t n = lk_store_documents(store);
    if (n < 1) return lk_fail(err, LK_ERR_FORMAT, "the dataset has no documents");
    lk_batches *b = calloc(1, sizeof *b);
    if (!b) return lk_fail(err, LK_ERR_MEMORY, "no memory for batches");
    b->store = store;
    b->options = *options;
    b->documents = n;
    b->packed_epoch = -1;
    b->lengths = malloc((size_t)n * sizeof *b->lengths);
    b->order = malloc((size_t)n * sizeof *b->order);
    lk_status status = LK_OK;
    if (!b->lengths || !b->order) status = lk_fail(err, LK_ERR_MEMORY, "no memory for %lld documents", (long long)n);
    for (int64_t i = 0; i < n && !status; i++) b->lengths[i] = lk_store_length(store, i);
    if (!status) status = make_slots(b, err);
    if (status)
        lk_batches_destroy(b);
    else
        *out = b;
    return status;
}

void lk_batches_destroy(lk_batches *b)
{
    if (!b) return;
    for (int64_t i = 0; b->slots && i < b->options.accumulate; i++) {
        free(b->slots[i].ids);
        free(b->slots[i].positions);
        free(b->slots[i].labels);
        free(b->slots[i].doc_starts);
    }
    lk_pack_destroy(b->pack);
    free(b->slots);
    free(b->micro);
    free(b->mask);
    free(b->lengths);
    free(b->order);
    free(b->first_steps);
    free(b);
}

/* ---------------------------------------------------------------------------------------------- epochs */

/* Fisher-Yates from the end. The index is the high half of a 64 x 64 bit product: for any dataset the bias is below 2^-20 of a chance. */
static void shuffle(int64_t *order, int64_t n, uint64_t seed, int64_t epoch)
{
    lk_philox_key key = lk_philox_key_make(seed, LK_STREAM_SHUFFLE);
    for (int64_t i = 0; i < n; i++) order[i] = i;
    for (int64_t i = n - 1; i > 0; i--) {
        uint32_t word[4];
        lk_philox(key, (uint64_t)epoch, (uint64_t)i, word);
        uint64_t draw = (uint64_t)word[1] << 32 | word[0];
        int64_t j = (int64_t)(uint64_t)(((unsigned __int128)draw * (uint64_t)(i + 1)) >> 64);
        int64_t swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
}

static lk_status pack_epoch(lk_batches *b, int64_t epoch, lk_error *err)
{
    if (b->packed_epoch == epoch) return LK_OK;
    lk_pack_destroy(b->pack);
    b->pack = NULL;
    b->packed_epoch = -1;
    if (b->options.shuffle) shuffle(b->order, b->documents, b->options.seed, epoch);
    LK_TRY(lk_pack_create(&b->pack, b->lengths, b->options.shuffle ? b->order : NULL, b->documents, b->options.max_length, err));
    b->packed_epoch = epoch;
    return LK_OK;
}

static int64_t steps_of_rows(const lk_batches *b, int64_t rows)
{
    int64_t each = b->options.rows * b->options.accumulate;
    return (rows + each - 1) / each;
}

/* Makes first_steps[epochs] known. */
static lk_status count_epochs(lk_batches *b, int64_t epochs, lk_error *err)
{
    while (b->n_epochs < epochs || !b->first_steps) {
        if (b->n_epochs + 2 > b->room_epochs) {
            int64_t room = 2 * b->room_epochs + 8;
            int64_t *larger = realloc(b->first_steps, (size_t)room * sizeof *larger);
            if (!larger) return lk_fail(err, LK_ERR_MEMORY, "no memory to count %lld epochs", (long long)epochs);
            if (!b->first_steps) larger[0] = 0;
            b->first_steps = larger;
            b->room_epochs = room;
        }
        if (b->n_epochs >= epochs) break;
        LK_TRY(pack_epoch(b, b->n_epochs, err));
        b->first_steps[b->n_epochs + 1] = b->first_steps[b->n_epochs] + steps_of_rows(b, lk_pack_rows(b->pack));
        b->n_epochs++;
    }
    return LK_OK;
}

lk_status lk_batches_steps(lk_batches *b, int64_t epochs, int64_t *steps, lk_error *err)
{
    LK_TRY(count_epochs(b, epochs, err));
    *steps = b->first_steps[epochs];
    return LK_OK;
}

/* ---------------------------------------------------------------------------------------------- one step */

static lk_status add_document(lk_batches *b, slot *s, lk_micro_batch *m, int64_t document, lk_error *err)
{
    lk_batch *batch = &m->batch;
    int64_t first = batch->n_tokens, n = b->lengths[document];
    LK_TRY(lk_store_read(b->store, document, s->ids + first, b->mask, err));
    for (int64_t t = 0; t < n; t++) {
        bool predicts = t + 1 < n && b->mask[t + 1];
        s->positions[first + t] = (int32_t)t;
        s->labels[first + t] = predicts ? s->ids[first + t + 1] : -1;
        m->supervised += predicts;
    }
    s->doc_starts[batch->n_docs++] = (int32_t)first;
    batch->n_tokens += n;
    s->doc_starts[batch->n_docs] = (int32_t)batch->n_tokens;
    return LK_OK;
}

static lk_status fill_slot(lk_batches *b, int index, int64_t first_row, int64_t end_row, lk_error *err)
{
    slot *s = &b->slots[index];
    lk_micro_batch *m = &b->micro[index];
    *m = (lk_micro_batch){.batch = {.ids = s->ids, .positions = s->positions, .doc_starts = s->doc_starts}, .labels = s->labels};
    for (int64_t row = first_row; row < end_row; row++) {
        const int64_t *documents;
        int64_t n = lk_pack_row(b->pack, row, &documents);
        for (int64_t i = 0; i < n; i++) LK_TRY(add_document(b, s, m, documents[i], err));
    }
    b->tokens += m->batch.n_tokens;
    b->supervised += m->supervised;
    return LK_OK;
}

lk_status lk_batches_load(lk_batches *b, int64_t step, lk_error *err)
{
    int64_t epoch = 0;
    LK_TRY(count_epochs(b, 1, err));
    while (b->first_steps[epoch + 1] <= step) {
        epoch++;
        LK_TRY(count_epochs(b, epoch + 1, err));
    }
    LK_TRY(pack_epoch(b, epoch, err));
    int64_t rows = lk_pack_rows(b->pack), each = b->options.rows * b->options.accumulate;
    int64_t begin = (step - b->first_steps[epoch]) * each, end = begin + each < rows ? begin + each : rows;
    b->count = 0;
    b->tokens = b->supervised = 0;
    for (int64_t row = begin; row < end; row += b->options.rows) {
        int64_t stop = row + b->options.rows < end ? row + b->options.rows : end;
        LK_TRY(fill_slot(b, b->count++, row, stop, err));
    }
    b->epoch = (double)epoch + (double)end / (double)rows;
    return LK_OK;
}

int lk_batches_count(const lk_batches *b) { return b->count; }
const lk_micro_batch *lk_batches_at(const lk_batches *b, int index) { return &b->micro[index]; }
int64_t lk_batches_tokens(const lk_batches *b) { return b->tokens; }
int64_t lk_batches_supervised(const lk_batches *b) { return b->supervised; }
double lk_batches_epoch(const lk_batches *b) { return b->epoch; }
