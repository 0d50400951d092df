/* Everything at once. */
#ifndef ZEROBIT_ZEROBIT_H
#define ZEROBIT_ZEROBIT_H

#include <zerobit/collective.h>
#include <zerobit/comm.h>
#include <zerobit/config.h>
#include <zerobit/data.h>
#include <zerobit/device.h>
#include <zerobit/engine.h>
#include <zerobit/estimate.h>
#include <zerobit/kernels.h>
#include <zerobit/loss_scaler.h>
#include <zerobit/memory.h>
#include <zerobit/model.h>
#include <zerobit/observe.h>
#include <zerobit/orders.h>
#include <zerobit/plan.h>
#include <zerobit/random.h>
#include <zerobit/reduction.h>
#include <zerobit/ref.h>
#include <zerobit/replay.h>
#include <zerobit/route.h>
#include <zerobit/schedule.h>
#include <zerobit/sim.h>
#include <zerobit/status.h>
#include <zerobit/trace.h>
#include <zerobit/types.h>
#include <zerobit/verify.h>
#include <zerobit/version.h>

#endif
