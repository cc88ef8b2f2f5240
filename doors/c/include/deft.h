/* Tree attention for LLM decoding: queries that share a prefix read its keys and values once.
 *
 * Every function returns DEFT_OK, or says in deft_last_error() which argument was refused, its value and the limit;
 * nothing was changed then. A handle is used by one thread at a time. Work on the CPU is done when a call returns; on a
 * GPU it is enqueued: tensors stay valid until `stream` (a CUstream, 0 on the CPU) has done it. Library: libdeft_c. */
#ifndef DEFT_H
#define DEFT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a function or a struct changes. */
#define DEFT_ABI_VERSION 2

#define DEFT_OK 0
#define DEFT_INVALID 1  /* an argument is refused */
#define DEFT_INTERNAL 2 /* a bug in deft: free the handle, nothing else */

#define DEFT_F16 0
#define DEFT_BF16 1
#define DEFT_F32 2 /* on the CPU only */

#define DEFT_CPU 1 /* as DLPack has them */
#define DEFT_CUDA 2

/* What deft_plan_update and deft_batch_advance did. */
#define DEFT_UNCHANGED 0
#define DEFT_PATCHED 1
#define DEFT_REPLANNED 2

uint32_t deft_abi_version(void);
const char *deft_version(void);
/* The text of this thread's last error; valid until its next one. */
const char *deft_last_error(void);

/* A tensor of up to four dimensions; strides are in elements, the last one is 1. */
typedef struct deft_tensor {
    void *data;
    int32_t device;    /* DEFT_CPU or DEFT_CUDA */
    int32_t device_id; /* which GPU, as the driver counts; not read for the CPU */
    int32_t dtype;
    int32_t ndim;
    int64_t shape[4];
    int64_t strides[4];
} deft_tensor;

/* ---- Your paged cache, in place (CPU and CUDA) ----
 * On a GPU: f16 and bf16, head dimensions 64 and 128, pointers at multiples of 16 bytes, strides multiples of 8 elements;
 * block tables are the host's arrays everywhere. */

/* Sequences of an engine with a paged cache. Those that begin with the same blocks are a tree. */
typedef struct deft_block_tables {
    const int32_t *ids;     /* [sequences, stride]: the blocks of each sequence, in order */
    const int32_t *lens;    /* [sequences]: tokens, those of the queries included */
    const int32_t *queries; /* [sequences]: a sequence's last tokens that have a query; NULL: one each */
    const uint64_t *masks;  /* [rows, mask_words]: bit j: the query sees its sequence's query j; NULL: those up to itself */
    uint64_t sequences;
    uint64_t stride;
    uint64_t mask_words;
    uint32_t page_size; /* tokens of a block; it divides 64 */
    uint32_t reserved;
} deft_block_tables;

typedef struct deft_plan deft_plan;

/* gpu: -1 for the CPU, otherwise a GPU's number: where the tensors of its calls are. */
int32_t deft_plan_new(uint32_t q_heads, uint32_t kv_heads, uint32_t head_dim, int32_t dtype, int32_t gpu,
                      const deft_block_tables *tables, deft_plan **plan);
/* Other tables in place of those before; cheap where sequences have only grown. `update` may be NULL. */
int32_t deft_plan_update(deft_plan *plan, const deft_block_tables *tables, int32_t *update);
/* Enqueues copies of what is new of a plan to its GPU. Attention does it by itself, but not while `stream` is captured as a
 * CUDA graph. `moved` (may be NULL) is 1 where graphs captured before must be captured anew. */
int32_t deft_plan_upload(deft_plan *plan, uintptr_t stream, int32_t *moved);
/* tokens[0]: what queries see, counted once a sequence; tokens[1]: how many different ones. */
int32_t deft_plan_tokens(const deft_plan *plan, uint64_t tokens[2]);
void deft_plan_free(deft_plan *plan);

/* Attention of one layer. q, out: [rows, q_heads, head_dim], contiguous. k, v: [blocks, page_size, kv_heads, head_dim] by
 * their strides, so NHD and HND, apart or in one tensor. lse: NULL or f32 [rows, q_heads]. scale 0: 1 / sqrt(head_dim);
 * soft_cap 0: none. Nothing is written but out and lse. On a GPU the tensors are made and used on `stream`, and the calls of
 * a plan are on streams that come one after the other. */
int32_t deft_paged_tree_attention(deft_plan *plan, const deft_tensor *q, const deft_tensor *k,
                                  const deft_tensor *v, const deft_tensor *out, const deft_tensor *lse,
                                  float scale, float soft_cap, uintptr_t stream);

/* ---- A cache of token trees (CPU and CUDA) ---- */

typedef struct deft_cache_shape {
    uint64_t capacity_bytes;
    uint32_t layers;
    uint32_t q_heads;
    uint32_t kv_heads;
    uint32_t head_dim; /* 64, 80, 96, 112, 128, 192 or 256 */
    int32_t dtype;
    int32_t gpu;    /* -1: the CPU; otherwise a GPU's number */
    float scale;    /* 0: 1 / sqrt(head_dim) */
    float soft_cap; /* 0: none */
} deft_cache_shape;

typedef struct deft_draft_node {
    int32_t parent; /* index within the draft; -1: right below the trunk */
    uint32_t tokens;
} deft_draft_node;

typedef struct deft_cache deft_cache;
/* New tokens of some nodes, a row each, and the plan of their attention. */
typedef struct deft_batch deft_batch;

int32_t deft_cache_new(const deft_cache_shape *shape, deft_cache **cache);
void deft_cache_free(deft_cache *cache);
int32_t deft_insert_root(deft_cache *cache, uint64_t *node);
int32_t deft_fork(deft_cache *cache, uint64_t node, uint64_t count, uint64_t *children);
int32_t deft_prune(deft_cache *cache, uint64_t node);
int32_t deft_insert_draft(deft_cache *cache, uint64_t trunk, const deft_draft_node *draft, uint64_t count,
                          uint64_t *nodes);
/* The draft's tokens along `path` join the trunk, the others are dropped. */
int32_t deft_accept(deft_cache *cache, uint64_t trunk, const uint64_t *path, uint64_t count);

/* Adds tokens[i] tokens to nodes[i]; those of a draft it has already. */
int32_t deft_batch_new(deft_cache *cache, const uint64_t *nodes, const uint32_t *tokens, uint64_t count,
                       deft_batch **batch);
/* The next `tokens` tokens of each of the batch's nodes. `update` may be NULL. */
int32_t deft_batch_advance(deft_cache *cache, deft_batch *batch, uint32_t tokens, int32_t *update);
void deft_batch_free(deft_batch *batch);

/* k, v: [rows, kv_heads, head_dim], contiguous. */
int32_t deft_append(deft_cache *cache, uint32_t layer, const deft_batch *batch, const deft_tensor *k,
                    const deft_tensor *v, uintptr_t stream);
/* q, out: [rows, q_heads, head_dim]; lse: NULL or f32 [rows, q_heads]. */
int32_t deft_attend(deft_cache *cache, uint32_t layer, const deft_batch *batch, const deft_tensor *q,
                    const deft_tensor *out, const deft_tensor *lse, uintptr_t stream);

#ifdef __cplusplus
}
#endif

#endif
