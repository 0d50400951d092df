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

typedef struct rig_options {
    const char *model;
    int stage;
    int accumulation;      /* 0: 1 */
    int overlap;           /* stages 2 and 3: two buckets, and a transfer stream at every stage */
    uint64_t bucket;       /* 0: 500,000,000 elements */
    const char *optimizer; /* NULL: RIG_ADAM */
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
