/*
 * The product: hold the engine against the oracle, to the bit, over stages, worlds and precisions.
 */
#ifndef ZEROBIT_VERIFY_H
#define ZEROBIT_VERIFY_H

#include <signal.h>
#include <stdint.h>
#include <zerobit/comm.h>
#include <zerobit/config.h>
#include <zerobit/data.h>
#include <zerobit/model.h>
#include <zerobit/orders.h>
#include <zerobit/status.h>
#include <zerobit/trace.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct zb_verify_case {
    int stage;
    zb_dtype dtype;
    int world_size;
    const char *ranks;      /* where they run: "sim", or the communicator's name ("mpi"); static */
    const char *device;     /* what they compute on: "cpu", or the factory's name ("cuda"); static */
    zb_plan plan;
    int equality_class;     /* cases of one precision and world with one number, from 0, must agree to the bit: equal plans, and every
                               element added by the same tree */
    int64_t steps_done;     /* optimizer steps that were equal */
    uint64_t values_compared;
    zb_status status;       /* OK; DIFFERENT; else why it could not run */
    int ended;              /* training ended by itself after steps_done steps (ZB_LOSS_SCALE), as the oracle's did; status is OK */
    zb_difference difference; /* left: oracle, right: engine */
    char message[ZB_ERROR_MESSAGE_BYTES]; /* when status is not OK, or ended is set */
    /* Where the first difference is a reduced gradient: was it added in another order, or is it another value? */
    int is_explained;
    zb_verdict verdict;
    char explanation[1024]; /* in words, cut; where is_explained is 0 "", or "not explained: " and why */
    double seconds;
} zb_verify_case;

/**
 * Two classes of one precision and world. They round in different places, so that the reduced gradients of their first step, made from
 * the same weights, may differ by that many roundings, and later steps by what comes of it. Each class is held to its own oracle to
 * the bit; the two oracles are held to this.
 */
typedef struct zb_verify_relation {
    zb_dtype dtype;
    int world_size;
    int class_a, class_b;
    int is_bounded;  /* 0: their plans differ in more than rounding, as `message` says; nothing is demanded */
    int roundings;   /* that both together may be apart, each relative to the sum of the gradients' magnitudes */
    double largest;  /* of |a - b| / bound over all elements; above 1 is a difference. Where the bound is 0 nothing may differ, and an
                        element that does has no part in it, like one that is no number */
    uint64_t elements, elements_differ; /* those that cannot have overflowed; of them those that are not equal */
    zb_status status; /* OK or DIFFERENT */
    char message[512];
} zb_verify_relation;

typedef struct zb_verify_options {
    const zb_config *config;
    const zb_model *model;
    const zb_weights *weights; /* initial values */
    const zb_dataset *dataset; /* none of these four may be NULL */
    const int *stages; int stage_count; /* lists without repetition */
    const int *worlds; int world_count;
    const zb_dtype *dtypes; int dtype_count;
    int64_t steps;
    int contributions; /* also hold what each rank sends of its gradients against the oracle */
    /*
     * NULL: the ranks are simulated. Otherwise this is one rank of a world whose processes all call zb_verify with the same options,
     * and `worlds` is its size alone. The oracle runs in the process of rank 0, which compares; in the others a case tells its status.
     */
    zb_comm *comm;
    /* What each rank computes on; simulated ranks must share one device's memory. NULL: the CPU, where reading dead memory shows. */
    const zb_device_factory *devices;
    int workers;       /* of the simulation; 0: one per core */
    uint64_t sim_seed, sampler_seed;
    const volatile sig_atomic_t *interrupt; /* NULL, or stop between two steps when it becomes non-zero */
    /* Called when a case advances; NULL: nobody listens. done and total count steps over all cases. */
    void (*progress)(void *user, const zb_verify_case *current, int64_t done, int64_t total);
    /* Called where the cases of one precision and world are of several classes, for each two of them that got through their first
       step; NULL: nobody listens. */
    void (*relation)(void *user, const zb_verify_relation *relation);
    void *user;
} zb_verify_options;

/**
 * Run every case: dtype x world x stage, all checked for validity (batch triangle included) before any runs.
 * `cases` has dtype_count * world_count * stage_count entries, filled in that nesting. Returns ZB_OK when all are
 * equal, ZB_DIFFERENT when any differs or fails in the run or two classes are farther apart than rounding, ZB_INTERRUPTED, or why
 * nothing could run.
 */
ZB_API zb_status zb_verify(const zb_verify_options *options, zb_verify_case *cases);

/**
 * What zb_verify does before anything runs: checks the options and every case, and fills in stage, dtype, world_size, ranks, plan and
 * equality_class. Fails as zb_verify, naming the case.
 */
ZB_API zb_status zb_verify_plan(const zb_verify_options *options, zb_verify_case *cases);

#ifdef __cplusplus
}
#endif
#endif
