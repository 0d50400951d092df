/* zerobit info: what this build and this machine offer. */
#include "tools/command.h"
#include "tools/options.h"

#include "verify/json_writer.h"

#include <stdio.h>
#include <unistd.h>
#include <zerobit/kernels.h>
#include <zerobit/version.h>
#if ZB_WITH_CUDA
#include <zerobit/cuda.h>
#endif

typedef struct capability {
    const char *name;
    int found; /* by the build */
    int used;  /* by a back end */
} capability;

/* What the build found; what no back end of this version uses is said. */
static const capability capabilities[] = {
    { "mpi", ZB_FOUND_MPI, ZB_WITH_MPI },
    { "cuda", ZB_FOUND_CUDA, ZB_WITH_CUDA },
    { "nccl", ZB_FOUND_NCCL, ZB_WITH_NCCL },
};
enum { CAPABILITY_COUNT = sizeof capabilities / sizeof capabilities[0] };

static zb_status print_json(const char *simd)
{
    zb_json_writer json = { .indented = 1 };
    zb_json_begin_object(&json, NULL);
    zb_json_put_string(&json, "zerobit_version", ZB_VERSION);
    zb_json_put_string(&json, "simd", simd);
    zb_json_put_int(&json, "cores", sysconf(_SC_NPROCESSORS_ONLN));
    zb_json_begin_array(&json, "communicators");
    zb_json_put_string(&json, NULL, "self");
    zb_json_put_string(&json, NULL, "sim");
    if (ZB_WITH_MPI) zb_json_put_string(&json, NULL, "mpi");
    if (ZB_WITH_NCCL) zb_json_put_string(&json, NULL, "nccl");
    zb_json_end_array(&json);
    zb_json_begin_array(&json, "devices");
    zb_json_put_string(&json, NULL, "cpu");
    if (ZB_WITH_CUDA) zb_json_put_string(&json, NULL, "cuda");
    zb_json_end_array(&json);
    zb_json_begin_object(&json, "found");
    for (int i = 0; i < CAPABILITY_COUNT; i++)
        zb_json_put_bool(&json, capabilities[i].name, capabilities[i].found);
    zb_json_end_object(&json);
    zb_json_end_object(&json);
    zb_status status = zb_json_writer_finish(&json);
    if (status == ZB_OK) puts(json.text);
    zb_json_writer_destroy(&json);
    return status;
}

#if ZB_WITH_CUDA
/* What this machine has, or why it has none. */
static void print_gpus(void)
{
    int count = 0;
    zb_cuda_description d;
    if (zb_cuda_device_count(&count) != ZB_OK) printf("GPUs           %s\n", zb_error_message());
    for (int i = 0; i < count; i++)
        if (zb_cuda_describe(i, &d) == ZB_OK)
            printf(
                "GPU %-10d %s, compute capability %d.%d, %zu of %zu MiB free, driver %d.%d, run-time %d.%d\n",
                i, d.name, d.compute_capability / 10, d.compute_capability % 10, d.free_bytes >> 20,
                d.memory_bytes >> 20, d.driver_version / 1000, d.driver_version % 1000 / 10,
                d.runtime_version / 1000, d.runtime_version % 1000 / 10);
        else
            printf("GPU %-10d %s\n", i, zb_error_message());
}
#else
static void print_gpus(void) {}
#endif

static void print_text(const char *simd)
{
    printf("zerobit        %s\n", ZB_VERSION);
    printf("simd           %s\n", simd);
    printf("cores          %ld\n", sysconf(_SC_NPROCESSORS_ONLN));
    printf("communicators  self, sim%s%s\n", ZB_WITH_MPI ? ", mpi" : "", ZB_WITH_NCCL ? ", nccl" : "");
    printf("devices        cpu%s\n", ZB_WITH_CUDA ? ", cuda" : "");
    print_gpus();
    for (int i = 0; i < CAPABILITY_COUNT; i++)
        printf("%-14s %s\n", capabilities[i].name,
               !capabilities[i].found ? "not found"
               : capabilities[i].used ? "found when this was built"
                                      : "found when this was built; no back end uses it yet");
}

exit_code command_info(int argc, char **argv)
{
    int json = 0, help = 0;
    const option_spec options[] = {
        { "--json", OPTION_FLAG, &json, NULL, "as JSON", 0, 0 },
        { 0 },
    };
    const command_spec spec = { "info", "Says what this build and this machine offer.", { NULL }, options };
    zb_status status = options_parse(&spec, argc, argv, NULL, &help);
    if (status == ZB_OK && help) {
        options_print_help(&spec);
        return EXIT_EQUAL;
    }
    const char *simd = status == ZB_OK ? zb_simd_level() : NULL;
    if (status == ZB_OK && simd == NULL) status = ZB_INVALID_ARGUMENT; /* said by zb_simd_level */
    if (status == ZB_OK && json)
        status = print_json(simd);
    else if (status == ZB_OK)
        print_text(simd);
    return status == ZB_OK ? EXIT_EQUAL : command_failed(spec.name, status);
}
