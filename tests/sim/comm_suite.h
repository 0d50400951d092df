/*
 * What every communicator back end must do, run through a back end's own way of running ranks. Each rank
 * works out from the case alone what it must receive, in plain loops, and compares bits (NaNs are equal).
 */
#ifndef ZB_TESTS_COMM_SUITE_H
#define ZB_TESTS_COMM_SUITE_H

#include <stdint.h>
#include <zerobit/comm.h>

typedef zb_status comm_suite_main(void *user, zb_comm *comm);

/* Runs `main` on every rank of a world; ZB_OK when it was ZB_OK on all of them. */
typedef zb_status comm_suite_runner(void *backend, comm_suite_main *main, void *user);

typedef struct comm_suite_case {
    const char *name;
    comm_suite_main *main; /* `user` is the uint64_t seed */
} comm_suite_case;

extern const comm_suite_case comm_suite_cases[];
extern const int comm_suite_case_count;

#endif
