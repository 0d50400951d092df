/* An engine in a world of one, with all that it borrows: what the tests of whole steps start from. */
#ifndef ZB_TESTS_ENGINE_RIG_H
#define ZB_TESTS_ENGINE_RIG_H

#include <zerobit/engine.h>

#include "tests/engine/models.h"
#include "tests/engine/probe.h"

#define RIG_ADAM                                                                                             \
    "{\"type\": \"Adam\", \"params\": {\"lr\": 0.01, \"betas\": [0.8, 0.99], \"weight_decay\": 0.1}}"
#define RIG_SGD      "{\"type\": \"SGD\", \"params\": {\"lr\": 0.1}}"
#define RIG_MOMENTUM "{\"type\": \"SGD\", \"params\": {\"lr\": 0.1, \"momentum\": 0.9, \"nesterov\": true}}"

/* When parameters are gathered, as keys of zero_optimization: a little of everything; DeepSpeed's defaults,
 * by which models as small as these stay whole. */
#define RIG_SOME_STAY                                                                                        \
    "\"param_persistence_threshold\": 3, \"prefetch_bucket_size\": 20, \"max_live_parameters\": 60, "        \
    "\"max_reuse_distance\": 30"
#define RIG_ALL_STAY "\"param_persistence_threshold\": 100000"
#define RIG_NONE_STAYS                                                                                       \
    "\"param_persistence_threshold\": 0, \"prefetch_bucket_size\": 0, \"max_reuse_distance\": 0"

/* An arithmetic plan, and how it is carried out, as members of the config. */
typedef struct rig_plan {
    const char *name;
    const char *semantics; /* NULL: standard */
    const char *zero;      /* keys of zero_optimization, or NULL */
    const char *rest;      /* keys of the config, or NULL */
    unsigned stages;       /* set of stages at which it is allowed and differs from the plans before */
} rig_plan;

/* One for every transport, for every change of type on the way and for every rule of the boundary step. */
extern const rig_plan rig_plans[];
extern const int rig_plan_count;

typedef struct rig_options {
    const char *model;
    const rig_plan *plan; /* NULL: standard, fp32 */
    int stage;
    int accumulation;      /* 0: 1 */
    int overlap;           /* stages 2 and 3: two buckets, and a transfer stream at every stage */
    uint64_t bucket;       /* 0: 500,000,000 elements */
    const char *optimizer; /* NULL: RIG_ADAM */
    const char *gathering; /* stage 3; NULL: RIG_SOME_STAY */
    int recorded;          /* stage 3: the first micro-batch records the order, as DeepSpeed's does */
    int64_t dataset_size;  /* 0: 7 samples */
    int drop_last;
    int lazy; /* collectives finish as late as they may */
} rig_options;

enum { RIG_MICRO_BATCH = 2 };

typedef struct rig {
    uint64_t live; /* allocations before any of this */
    zb_config *config;
    zb_model *model;
    zb_dataset *dataset;
    probe_device device;
    probe_comm comm;
    zb_engine_options options;
    zb_engine *engine; /* NULL until rig_start */
} rig;

/* "tied stage 2 x 3 overlap bucket 1 lazy"; static, until the next call. */
const char *rig_name(const rig_options *options);

/* The config of these options, for any world. */
zb_config *rig_config(const rig_options *options);

void rig_open(rig *rig, const rig_options *options);
/* zb_initialize, which must succeed. */
void rig_start(rig *rig);
void rig_train(rig *rig, int steps);
/* Also checks that nothing is left: on the device, or of any allocation. */
void rig_close(rig *rig);

/* The weights, all parameters end to end, and the size of that. The caller frees them with free(). */
float *rig_weights(rig *rig);
size_t rig_weights_bytes(const rig *rig);

#endif
