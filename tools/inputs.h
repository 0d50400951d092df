/* What verify, train and inspect read: config, model, data, weights; with the options that choose them. */
#ifndef TOOLS_INPUTS_H
#define TOOLS_INPUTS_H

#include <stdint.h>
#include <zerobit/config.h>
#include <zerobit/data.h>
#include <zerobit/model.h>

typedef struct input_options {
    const char *config_path;
    const char *model;     /* name or path */
    const char *data;      /* "synthetic", a folder or a file */
    const char *weights;   /* NULL: from the seed */
    const char *semantics; /* by name; NULL: the config's */
    const char *order;     /* of addition, likewise */
    int64_t seed;
    int64_t records;                                /* of synthetic data */
    int64_t train_batch, micro_batch, accumulation; /* 0: not given */
} input_options;

/* clang-format off */
#define INPUT_OPTIONS_DEFAULT { .model = "cifar10-net", .data = "synthetic", .records = 4096 }

/* Rows of an option table (options.h). */
#define OPTION_ROW_SEMANTICS(in)                                                                             \
    { "--semantics", OPTION_TEXT, &(in).semantics, "NAME", "standard or deepspeed-0.19.6 (the config's)", 0, 0 }
#define OPTION_ROW_ORDER(in)                                                                                 \
    { "--order", OPTION_TEXT, &(in).order, "ORDER",                                                          \
      "in which ranks are added: rank, mpi-ring, ... or \"KIND: ORDER; ..\" (the config's)", 0, 0 }
#define OPTION_ROW_MODEL(in)                                                                                 \
    { "--model", OPTION_TEXT, &(in).model, "M",                                                              \
      "cifar10-net, mlp:IN-..-OUT, mlp-mse:.. or a JSON file (cifar10-net)", 0, 0 }
#define OPTION_ROWS_BATCH(in)                                                                                \
    { "--train-batch", OPTION_INT, &(in).train_batch, "T",                                                   \
      "replace the config's batch sizes: samples per step", 1, INT64_MAX },                                  \
    { "--micro-batch", OPTION_INT, &(in).micro_batch, "M",                                                   \
      "replace the config's batch sizes: samples per rank and pass", 1, INT64_MAX },                         \
    { "--accumulation", OPTION_INT, &(in).accumulation, "G",                                                 \
      "replace the config's batch sizes: passes per step", 1, INT64_MAX }
#define OPTION_ROWS_DATA(in)                                                                                 \
    { "--data", OPTION_TEXT, &(in).data, "PATH",                                                             \
      "synthetic, a folder with CIFAR-10's binary batches, or one such file (synthetic)", 0, 0 },            \
    { "--records", OPTION_INT, &(in).records, "N", "how many records synthetic data has (4096)", 1, INT32_MAX }, \
    { "--weights", OPTION_TEXT, &(in).weights, "FILE",                                                       \
      "initial weights, safetensors; otherwise from the seed", 0, 0 },                                       \
    { "--seed", OPTION_INT, &(in).seed, "S",                                                                 \
      "of weights, synthetic data, sampler and simulation (0)", 0, INT64_MAX }
/* clang-format on */

typedef struct inputs {
    zb_config *config;
    zb_model *model;
    zb_dataset *dataset;
    zb_weights weights;
} inputs;

/** The config alone, the batch options applied. */
zb_status inputs_open_config(const input_options *options, inputs *in);
/** Everything. On failure nothing is left open. */
zb_status inputs_open(const input_options *options, inputs *in);
void inputs_close(inputs *in);

#endif
