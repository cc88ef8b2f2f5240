/* Four sequences of one paged cache: three branches of a prompt and one that stands alone, attended in place; then the
 * same from a cache of token trees. cc branches.c -I ../include -L ../../../target/debug -ldeft_c -lm */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "deft.h"

#define CHECK(call)                                                     \
    do {                                                                \
        int32_t status = (call);                                        \
        if (status != DEFT_OK) {                                        \
            fprintf(stderr, "%s: %s\n", #call, deft_last_error());      \
            exit(1);                                                    \
        }                                                               \
    } while (0)

enum { Q_HEADS = 4, KV_HEADS = 2, DIM = 64, PAGE = 16, BLOCKS = 8, SEQUENCES = 4, STRIDE = 3 };

static float noise(unsigned seed) {
    seed = (seed + 1) * 2654435761u;
    return (float)(seed >> 8) / (1 << 23) - 1.0f;
}

static deft_tensor rows(float *data, int64_t count, int64_t heads) {
    deft_tensor tensor = {.data = data, .device = DEFT_CPU, .dtype = DEFT_F32, .ndim = 3,
                          .shape = {count, heads, DIM}, .strides = {heads * DIM, DIM, 1}};
    return tensor;
}

/* K or V of one tensor [blocks, 2, page, heads, dim]. */
static deft_tensor half(float *data, int which) {
    const int64_t size = PAGE * KV_HEADS * DIM;
    deft_tensor tensor = {.data = data + which * size, .device = DEFT_CPU, .dtype = DEFT_F32, .ndim = 4,
                          .shape = {BLOCKS, PAGE, KV_HEADS, DIM},
                          .strides = {2 * size, KV_HEADS * DIM, DIM, 1}};
    return tensor;
}

static const float *row(const float *kv, int which, int block, int slot, int head) {
    return kv + (((block * 2 + which) * PAGE + slot) * KV_HEADS + head) * DIM;
}

int main(void) {
    if (deft_abi_version() != DEFT_ABI_VERSION) {
        fprintf(stderr, "deft.h is not of this library\n");
        return 1;
    }
    static float kv[BLOCKS * 2 * PAGE * KV_HEADS * DIM], q[SEQUENCES * Q_HEADS * DIM];
    static float out[SEQUENCES * Q_HEADS * DIM];
    for (size_t i = 0; i < sizeof kv / sizeof *kv; i++) kv[i] = noise((unsigned)i);
    for (size_t i = 0; i < sizeof q / sizeof *q; i++) q[i] = noise((unsigned)i + 77777u);

    const int32_t ids[SEQUENCES * STRIDE] = {5, 2, 7, 5, 2, 0, 5, 2, 4, 1, -1, -1};
    const int32_t lens[SEQUENCES] = {40, 33, 48, 9};
    const deft_block_tables tables = {.ids = ids, .lens = lens, .sequences = SEQUENCES, .stride = STRIDE,
                                      .page_size = PAGE};
    deft_plan *plan;
    CHECK(deft_plan_new(Q_HEADS, KV_HEADS, DIM, DEFT_F32, -1, &tables, &plan));
    uint64_t tokens[2];
    CHECK(deft_plan_tokens(plan, tokens));
    printf("%d tokens, %d of them different\n", (int)tokens[0], (int)tokens[1]);

    deft_tensor q_tensor = rows(q, SEQUENCES, Q_HEADS), out_tensor = rows(out, SEQUENCES, Q_HEADS);
    deft_tensor k = half(kv, 0), v = half(kv, 1);
    CHECK(deft_paged_tree_attention(plan, &q_tensor, &k, &v, &out_tensor, NULL, 0, 0, 0));

    /* The definition, in double. */
    double worst = 0;
    for (int s = 0; s < SEQUENCES; s++)
        for (int h = 0; h < Q_HEADS; h++) {
            double sum = 0, right[DIM] = {0};
            for (int t = 0; t < lens[s]; t++) {
                const int block = ids[s * STRIDE + t / PAGE], head = h / (Q_HEADS / KV_HEADS);
                const float *key = row(kv, 0, block, t % PAGE, head), *value = row(kv, 1, block, t % PAGE, head);
                double logit = 0;
                for (int d = 0; d < DIM; d++) logit += (double)q[(s * Q_HEADS + h) * DIM + d] * key[d];
                const double weight = exp(logit / 8);
                sum += weight;
                for (int d = 0; d < DIM; d++) right[d] += weight * value[d];
            }
            for (int d = 0; d < DIM; d++)
                worst = fmax(worst, fabs(right[d] / sum - out[(s * Q_HEADS + h) * DIM + d]));
        }
    printf("largest error %.0e\n", worst);
    if (worst > 1e-5) return 1;

    k.strides[3] = 2; /* refused by name, and nothing is written */
    if (deft_paged_tree_attention(plan, &q_tensor, &k, &v, &out_tensor, NULL, 0, 0, 0) != DEFT_INVALID) return 1;
    printf("%s\n", deft_last_error());
    deft_plan_free(plan);

    /* The same prompt and branches in a cache of token trees. */
    const deft_cache_shape shape = {.capacity_bytes = 1 << 20, .layers = 1, .q_heads = Q_HEADS,
                                    .kv_heads = KV_HEADS, .head_dim = DIM, .dtype = DEFT_F32, .gpu = -1};
    deft_cache *cache;
    deft_batch *batch;
    uint64_t root, leaves[2];
    const uint32_t count = 32, one[2] = {1, 1};
    static float prompt[2][32 * KV_HEADS * DIM], ends[2 * KV_HEADS * DIM];
    CHECK(deft_cache_new(&shape, &cache));
    CHECK(deft_insert_root(cache, &root));
    CHECK(deft_batch_new(cache, &root, &count, 1, &batch));
    for (int which = 0; which < 2; which++)
        for (int t = 0; t < 32; t++)
            for (int i = 0; i < KV_HEADS * DIM; i++)
                prompt[which][t * KV_HEADS * DIM + i] = row(kv, which, ids[t / PAGE], t % PAGE, 0)[i];
    deft_tensor keys = rows(prompt[0], 32, KV_HEADS), values = rows(prompt[1], 32, KV_HEADS);
    CHECK(deft_append(cache, 0, batch, &keys, &values, 0));
    deft_batch_free(batch);
    CHECK(deft_fork(cache, root, 2, leaves));
    CHECK(deft_batch_new(cache, leaves, one, 2, &batch));
    for (int i = 0; i < 2 * KV_HEADS * DIM; i++) ends[i] = noise((unsigned)i);
    keys = values = rows(ends, 2, KV_HEADS);
    CHECK(deft_append(cache, 0, batch, &keys, &values, 0));
    q_tensor = rows(q, 2, Q_HEADS), out_tensor = rows(out, 2, Q_HEADS);
    CHECK(deft_attend(cache, 0, batch, &q_tensor, &out_tensor, NULL, 0));
    CHECK(deft_batch_advance(cache, batch, 1, NULL));
    CHECK(deft_prune(cache, leaves[0]));
    if (deft_prune(cache, leaves[0]) != DEFT_INVALID) return 1;
    printf("%s\n", deft_last_error());
    deft_batch_free(batch);
    deft_cache_free(cache);
    return 0;
}
