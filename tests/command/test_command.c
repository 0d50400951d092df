/* The command from outside: exit codes, what it says and where, and what it leaves behind. */
#include "tests/command/run.h"
#include "tests/verify/support.h"

#include <cjson/cJSON.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define CIFAR        ZB_SOURCE_DIR "/examples/configs/cifar10.json"
#define SMALL        CIFAR " --dtypes fp32 --model mlp:12-7-5 --micro-batch 3 "

#define RUNS ZB_SOURCE_DIR "/fixtures/deepspeed-runs/runs.json"

/* --- refusals: nothing on standard output, nothing written --- */

#if ZB_WITH_CUDA
#define NO_CUDA "no GPU here: "
#else
#define NO_CUDA "this build has no CUDA device\n"
#endif
#if ZB_WITH_NCCL
#define NO_NCCL "no GPU here: "
#else
#define NO_NCCL "this build has no NCCL communicator\n"
#endif

#if ZB_WITH_MPI
#define IF_MPI(text) text
#else
#define IF_MPI(text) ""
#endif
#if ZB_WITH_NCCL
#define IF_NCCL(text) text
#else
#define IF_NCCL(text) ""
#endif

static const struct refusal {
    const char *arguments;
    int exit;
    const char *err;
} refusals[] = {
    { "", 2, "zerobit: which command? See zerobit --help\n" },
    { "verfy", 2, "zerobit: unknown command verfy; did you mean verify?\n" },
    { "frobnicate", 2, "zerobit: unknown command frobnicate; see zerobit --help\n" },
    { "explore", 3, "zerobit: explore is not in this version\n" },
    { "plan", 3, "zerobit: plan is not in this version\n" },

    { "verify", 2, "zerobit verify: CONFIG is missing; see zerobit verify --help\n" },
    { "verify " CIFAR " --dtypes fp64 --json @/j", 2, "--dtypes" },
    { "verify " CIFAR " --worlds 0 --json @/j", 2,
      "zerobit verify: --worlds 0: want an integer from 1 to 65536\n" },
    { "verify " CIFAR " --worlds 2,2", 2, "zerobit verify: --worlds: 2 is given twice\n" },
    { "verify " CIFAR " --worlds 65537", 2, "--worlds 65537" },
    { "verify " CIFAR " --stages 4", 2, "zerobit verify: --stages 4: want an integer from 0 to 3\n" },
    { "verify " CIFAR " --stages -1", 2, "zerobit verify: --stages -1: want an integer from 0 to 3\n" },
    { "verify " CIFAR " --stage 2", 2, "unknown option --stage; did you mean --stages?" },
    { "verify " CIFAR " --steps 0", 2, "--steps 0: want an integer from 1" },
    { "verify " CIFAR " --html @/h", 2, "unknown option --html" },
    { "verify " CIFAR " --dtypes fp32 --worlds 1,3 --json @/j --junit @/x", 2, "world 3" },
    { "verify @/nothing.json", 2, "nothing.json: cannot be opened: No such file" },
    { "verify " CIFAR " --dtypes fp32 --model nonsense", 2, "nonsense" },
    { "verify " CIFAR " --dtypes fp32 --data @/nowhere", 2, "nowhere" },
    { "verify " CIFAR " --dtypes fp32 --weights @/nowhere", 2, "nowhere" },
    { "verify " CIFAR " --dtypes fp32 --json @/no/such/place", 2, "no/such/place: cannot be written" },
    { "verify " CIFAR " --dtypes fp32 --json @/r --junit @/r", 2, "--json and --junit are both" },
    { "verify " CIFAR " --dtypes fp32 --junit -", 2, "--junit -: want a file" },
    { "verify " CIFAR " --dtypes fp32 --json @", 2, "Is a directory" },
    { "verify " CIFAR " --dtypes fp32 --junit /dev/null", 2,
      "/dev/null: cannot be written: not a regular file" },
    { "verify " CIFAR " --dtypes fp32 --junit @/no/such/place", 2, "no/such/place: cannot be written" },
#if ZB_WITH_MPI
    { "verify " CIFAR " --against mpi --comm mpi", 2, "--against mpi starts the processes itself" },
    { "verify " CIFAR " --against mpi --shared-gpu", 2, "--shared-gpu with --against mpi" },
    { "verify " CIFAR " --against ref,mpi --order native", 2, "simulated ranks have no MPI to ask" },
    { "verify " CIFAR " --against mpi --mpirun ' '", 2, "--mpirun or ZEROBIT_MPIRUN is blank" },
    { "verify " CIFAR " --against mpi --mpirun nowhere", 3,
      "nowhere is not there: Open MPI's launcher is needed" },
#else
    { "verify " CIFAR " --against mpi", 3, "zerobit verify: this build has no MPI communicator\n" },
    { "train " CIFAR " --comm mpi", 3, "this build has no MPI communicator" },
#endif
    { "verify " CIFAR " --native", 2, "--native without --comm mpi: there is no MPI to ask" },
    { "verify " CIFAR " --order native", 2, "--order native without --comm mpi" },
    { "verify " CIFAR " --order mpi-rng", 2, "--order: the order \"mpi-rng\" is not known; want rank," },
    { "verify " CIFAR " --order mpi-rabenseifner", 2,
      "stage 1, world 1, fp16: mpi-rabenseifner does not offer reduce_scatter_v of 1 ranks" },
    { "train " CIFAR " --stage 1 --order mpi-linear", 2, "mpi-linear does not offer reduce_scatter_v" },
    { "train " CIFAR " --timeout 3", 2, "--timeout without --comm mpi" },
    { "verify " CIFAR " --against ref,cuda", 3, "zerobit verify: " NO_CUDA },
    { "verify " CIFAR " --against ref,nonsense", 2, "--against nonsense: want ref, mpi, cuda or nccl" },

    { "train " CIFAR " --comm nccl", 3, "zerobit train: " NO_NCCL },
    { "verify " CIFAR " --comm nccl", 3, "zerobit verify: " NO_NCCL },
    { "verify " CIFAR " --against nccl", 3, "zerobit verify: " NO_NCCL },
    { "train " CIFAR " --gpus 2", 3, "zerobit train: " NO_NCCL },
    { "train " CIFAR " --gpus 2 --comm mpi", 2, "--gpus starts the processes itself" },
    { "train " CIFAR " --gpus 2 --device cpu", 2, "--device cpu with --gpus: want cuda" },
    { "train " CIFAR " --gpus 2 --world 3", 2, "--world 3 with --gpus 2: each of the processes is a rank" },
    { "train " CIFAR " --comm nccl --device cpu", 2, "--device cpu with --comm nccl: want cuda" },
    { "launch", 2, "nothing is given: want -n N PROGRAM" },
    { "launch --np 2 true", 2, "--np: want -n N PROGRAM" },
    { "launch -n 0 true", 2, "-n 0: want an integer from 1 to 1024" },
    { "launch -n 2x true", 2, "-n 2x: want an integer from 1 to 1024" },
    { "launch -n 2", 2, "PROGRAM is missing behind -n 2" },
    { "launch -n 1 /no/such/program", 127, "/no/such/program cannot be started: No such file or directory" },
    { "train " CIFAR " --shared-gpu", 2, "--shared-gpu without --comm nccl" },
    { "train " CIFAR " --device cuda", 3, "zerobit train: " NO_CUDA },
    { "train " CIFAR " --comm pigeon", 2, "--comm pigeon: want sim, mpi or nccl" },
    { "train " CIFAR " --device gpu", 2, "--device gpu: want cpu or cuda" },
    { "train " SMALL "--trace @/t --save-weights @/t", 2, "--trace and --save-weights are both" },
    { "train " SMALL "--trace @/no/such/place", 2, "no/such/place: cannot be written" },
    { "train " SMALL "--save-weights @/no/such/place", 2, "no/such/place: cannot be written" },
    { "train " CIFAR " --dtypes fp32 --world 3 --trace @/t", 2, "world size 3" },
    { "train " CIFAR " --dtypes fp32,bf16", 2, "a training run has one precision" },

    { "diff @/a", 2, "zerobit diff: B is missing" },
    { "diff @/a @/b", 2, "cannot be read: No such file" },
    { "diff @ @", 2, "not a regular file" },
    { "diff " CIFAR " " CIFAR, 2, "not a whole trace: no trace signature at byte 0" },

    { "explain", 2, "zerobit explain: CONTRIBUTIONS is missing; see zerobit explain --help\n" },
    { "explain @/nothing @/nothing", 2, "nothing: cannot be opened: No such file" },
    { "explain @ @", 2, "not a regular file" },

    { "replay", 2, "RUNS.json is missing" },
    { "replay @/nothing", 2, "nothing: cannot be opened" },
    { "replay " CIFAR, 2, "want an array" },
    { "replay " RUNS " --by magic", 2, "--by magic: want oracle, engine or both" },
    { "replay " RUNS " --json @/no/such/place", 2, "no/such/place: cannot be written" },
    { "replay " RUNS " --run fp32", 2,
      "--run fp32: " RUNS " has no such run, want one of: fp32-s1-w2 fp32-s1" },

    { "inspect", 2, "zerobit inspect: what?" },
    { "inspect bach", 2, "unknown topic bach; did you mean batch?" },
    { "inspect loss-scale " CIFAR, 2, "zerobit inspect loss-scale: --overflow is missing" },
    { "inspect loss-scale --overflow 01", 2, "zerobit inspect loss-scale: CONFIG is missing" },
    { "inspect loss-scale " CIFAR " --overflow 01x1", 2,
      "--overflow: 'x' at character 3: want 0 and 1 only, one for each step" },
    { "inspect loss-scale " CIFAR " --overflow ''", 2, "--overflow: want BITS, not nothing" },
    { "inspect loss-scale " CIFAR " --overflow 0 --stage 4", 2, "--stage 4" },
    { "inspect loss-scale @/nothing --overflow 0", 2, "nothing: cannot be opened" },
    { "inspect quirks", 2, "zerobit inspect quirks: CONFIG is missing" },
    { "inspect quirks @/nothing", 2, "nothing: cannot be opened" },
    { "inspect quirks " CIFAR " --stage 1 --stages 2", 2, "--stage and --stages exclude one another" },
    { "inspect quirks " CIFAR " --stages 4", 2, "--stages 4" },
    { "inspect quirks " CIFAR " --world 3", 2, CIFAR ": batch sizes do not fit: train_batch_size 16" },
    { "inspect quirks " CIFAR " --semantics deepspeed", 2,
      "--semantics deepspeed: want standard or deepspeed-0.19.6" },
    { "verify " CIFAR " --semantics x", 2, "zerobit verify: --semantics x: want standard" },
    { "train " CIFAR " --semantics x", 2, "zerobit train: --semantics x: want standard" },
    { "inspect memory " CIFAR " --params 5 --semantics x", 2, "--semantics x: want standard" },
    { "inspect batch", 2, "zerobit inspect batch: CONFIG is missing" },
    { "inspect batch " CIFAR " --world 3", 2, CIFAR ": batch sizes do not fit: train_batch_size 16" },
    { "inspect batch " CIFAR " --world 0", 2, "--world 0" },
    { "inspect lr @/nothing", 2, "nothing" },
    { "inspect sampler --world 2", 2, "--size is missing" },
    { "inspect sampler --size 5 --world 2 --rank 2", 2, "--rank 2: want 0 to 1 in a world of 2" },
    { "inspect partition " CIFAR " --world 3", 2, CIFAR ": batch sizes do not fit: train_batch_size 16" },
    { "inspect partition " CIFAR " --stage 4", 2, "--stage 4" },
    { "inspect partition " CIFAR " --model nonsense", 2, "nonsense" },
    { "inspect memory " CIFAR, 2, "--model or --params is missing" },
    { "inspect memory " CIFAR " --params 5 --model cifar10-net", 2, "exclude one another" },
    { "inspect memory " CIFAR " --params 5 --world 3", 2, "world size 3" },
    { "inspect memory " CIFAR " --params 5 --dtypes fp16,bf16", 2, "--dtypes: want one precision" },

    { "info --jason", 2, "zerobit info: unknown option --jason; did you mean --json?" },
    { "info x", 2, "unexpected \"x\"" },
    { "inspect batch ''", 2, "zerobit inspect batch: CONFIG: want a path, not nothing" },
    { "generate-cifar10 ''", 2, "zerobit generate-cifar10: FILE: want a path, not nothing" },
    { "generate-cifar10", 2, "FILE is missing" },
    { "generate-cifar10 @/x --records 0", 2, "--records 0" },
    { "generate-cifar10 @/no/such/place", 2, "no/such/place" },
};

static void check_refusal(void **state)
{
    const struct refusal *r = *state;
    folder_create(NULL);
    outcome o = run(r->arguments);
    if (o.exit != r->exit || o.out[0] != '\0' || strstr(o.err, r->err) == NULL)
        fail_msg("%s\nexit %d, want %d\nstdout: %s\nstderr: %s\nwant:   %s", r->arguments, o.exit, r->exit,
                 o.out, o.err, r->err);
    assert_int_equal(folder_entries(), 0);
    outcome_free(&o);
    folder_remove(NULL);
}

/* --- what works --- */

static void help_is_everywhere(void **state)
{
    (void)state;
    expect("--help", 0, "usage: zerobit COMMAND", "");
    expect("--version", 0, "zerobit ", "");
    static const char *const commands[] = { "verify",
                                            "train",
                                            "diff",
                                            "explain",
                                            "inspect",
                                            "inspect batch",
                                            "inspect lr",
                                            "inspect loss-scale",
                                            "inspect sampler",
                                            "inspect partition",
                                            "inspect memory",
                                            "inspect quirks",
                                            "info",
                                            "generate-cifar10" };
    for (size_t i = 0; i < COUNT(commands); i++) {
        char line[64], usage[64];
        snprintf(line, sizeof line, "%s --help", commands[i]);
        snprintf(usage, sizeof usage, "usage: zerobit %s", commands[i]);
        expect(line, 0, usage, "");
    }
}

static void verify_reports_equal(void **state)
{
    (void)state;
    expect("verify " SMALL "--worlds 1,3 --steps 3 --json @/j --junit @/x", 0,
           "8 cases, all equal to the bit", "");
    size_t bytes;
    char *text = (char *)read_whole(in_folder("j"), &bytes);
    cJSON *json = cJSON_ParseWithLength(text, bytes);
    assert_true(cJSON_IsTrue(cJSON_GetObjectItem(json, "equal")));
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(json, "cases")), 8);
    cJSON_Delete(json);
    free(text);
    expect("verify " SMALL "--worlds 2 --stages 3 --steps 2 --quiet --json -", 0, "\"equal\": true", "");
    expect("verify " SMALL "--worlds 2 --stages 3 --steps 2 --quiet", 0, "", "");
    expect("verify " SMALL "--worlds 3 --accumulation 2 --steps 2 --workers 1 --seed 5", 0, "3 x 2", "");
}

static void verify_of_the_example(void **state)
{
    (void)state;
    expect("verify " CIFAR " --steps 2", 0, "0      8  fp16 ", "");
    expect("verify " CIFAR " --dtypes fp32,fp16,bf16 --steps 2", 0, "48 cases, all equal to the bit", "");
    expect("verify " CIFAR " --dtypes fp32 --steps 2 --worlds 3,5,7 --micro-batch 4", 0,
           "12 cases, all equal", "");
}

static void training_runs_are_compared(void **state)
{
    (void)state;
    expect("train " SMALL "--world 3 --steps 3 --stage 0 --trace @/a", 0, "step      3  loss ", "");
    expect("train " SMALL "--world 3 --steps 3 --stage 2 --trace @/b --save-weights @/w", 0, "b: the trace",
           "");
    expect("diff @/a @/b", 0, "equal: ", "");
    expect("diff @/a @/b --quiet", 0, "", "");
    expect("train " SMALL "--world 3 --steps 3 --stage 2 --seed 1 --trace @/c", 0, "", "");
    expect("diff @/a @/c", 1, "after initialize, rank 0, fp32 weight fc", "");
    /* The weights of a run are where the next one begins. */
    expect("train " SMALL "--world 1 --steps 1 --stage 0 --weights @/w --trace @/d", 0, "", "");
    expect("verify " SMALL "--weights @/w --worlds 2 --steps 1", 0, "all equal", "");
    /* The same run is the same file. */
    expect("train " SMALL "--world 3 --steps 3 --stage 2 --workers 1 --trace @/b2", 0, "", "");
    size_t bytes_a, bytes_b;
    unsigned char *a = read_whole(in_folder("b"), &bytes_a), *b = read_whole(in_folder("b2"), &bytes_b);
    assert_int_equal(bytes_a, bytes_b);
    assert_memory_equal(a, b, bytes_a);
    free(b);

    expect("train " SMALL "--trace @/a", 2, "", "/a exists; --force replaces it");
    expect("train " SMALL "--save-weights @/w", 2, "", "/w exists; --force replaces it");
    expect("train " SMALL "--steps 1 --trace @/a --force", 0, "", "");
    write_whole(in_folder("b"), a, bytes_a - 1);
    free(a);
    expect("diff @/a @/b", 2, "", "not a whole trace");
}

static void generated_data_is_read(void **state)
{
    (void)state;
    expect("generate-cifar10 @/x.bin --records 40 --seed 3", 0, "x.bin: 40 records", "");
    expect("generate-cifar10 @/x.bin --records 40", 2, "", "x.bin: exists already");
    expect("verify " CIFAR " --dtypes fp32 --steps 2 --worlds 2 --data @/x.bin", 0, "all equal", "");
    expect("verify " SMALL "--data @/x.bin", 2, "", "input");
}

/* The file with one digit of the first recorded weight changed. */
static void recorded_runs_are_replayed(void **state)
{
    (void)state;
    expect("replay " RUNS, 0, "40 replays, all equal to the bit: 7,457 values in", "");
    expect("replay " RUNS " --run fp16-s0-w2", 0,
           "fp16-s0-w2                            2      4  equal      equal                  512 ", "");
    size_t bytes;
    char *text = (char *)read_whole(RUNS, &bytes);
    text[bytes] = '\0';
    char *weight = strstr(strstr(text, "\"hp\""), "[[\"") + 3;
    *weight = *weight == '3' ? '4' : '3';
    write_whole(in_folder("r"), (unsigned char *)text, bytes);
    free(text);
    expect("replay @/r --run fp32-s1-w2", 1,
           "fp32-s1-w2, oracle: after initialize, rank 0, fp32 weight p0[0]: 0x", "");
    expect("replay @/r --run fp32-s1-w2", 1,
           "\n2 of 2 replays not equal: 2 different, 0 that cannot be played\n", "");
    expect("replay @/r --run fp32-s1-w2 --by engine", 1,
           "\n1 of 1 replays not equal: 1 different, 0 that cannot be played\n", "");
    expect("replay @/r --run fp32-s1-w2 --json -", 1, "\"result\": \"different\",",
           "2 of 2 replays not equal");
    expect("replay @/r --run fp32-s2-w2 --json @/j", 0, "all equal", "");
    expect("replay @/r --run fp32-s2-w2 --json @/j", 0, "all equal", ""); /* replaced */
    expect("replay @/r --run fp32-s2-w2", 0, "equal", "");
}

/* --- inspect: exactly one JSON value --- */

static void write_text(const char *path, const char *text)
{
    write_whole(path, (const unsigned char *)text, strlen(text));
}

/* "name:on:0fp16 1fp16 " for each quirk of the array, behind one another. */
static void list_quirks(const char *text, char *list, size_t list_bytes)
{
    static const char *const sentences[] = { "does", "effect", "when", "source" };
    cJSON *json = cJSON_Parse(text), *quirk, *place;
    size_t used = 0;
    assert_true(cJSON_IsArray(json));
    list[0] = '\0';
    cJSON_ArrayForEach(quirk, json)
    {
        for (size_t i = 0; i < COUNT(sentences); i++)
            assert_true(strlen(cJSON_GetStringValue(cJSON_GetObjectItem(quirk, sentences[i]))) > 0);
        assert_int_equal(cJSON_GetArraySize(quirk), COUNT(sentences) + 3);
        used += (size_t)snprintf(list + used, list_bytes - used,
                                 "%s:%s:", cJSON_GetStringValue(cJSON_GetObjectItem(quirk, "name")),
                                 cJSON_IsTrue(cJSON_GetObjectItem(quirk, "on")) ? "on" : "off");
        cJSON_ArrayForEach(place, cJSON_GetObjectItem(quirk, "met")) used += (size_t)snprintf(
            list + used, list_bytes - used, "%d%s ", cJSON_GetObjectItem(place, "stage")->valueint,
            cJSON_GetStringValue(cJSON_GetObjectItem(place, "dtype")));
    }
    assert_true(used < list_bytes);
    cJSON_Delete(json);
}

static void inspect_quirks_lists_what_is_met(void **state)
{
    (void)state;
    write_text(in_folder("c"),
               "{\"train_batch_size\": 6, \"gradient_clipping\": 0, \"optimizer\": {\"type\": "
               "\"Adam\"}, \"zerobit\": {\"semantics\": \"deepspeed-0.19.6\", \"quirks\": "
               "{\"norm_per_stage\": false}}}");
    write_text(in_folder("one"), "{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"Adam\"}}");
    write_text(in_folder("none"),
               "{\"gradient_accumulation_steps\": 4, \"optimizer\": {\"type\": \"Adam\"}}");
    static const struct {
        const char *arguments, *list;
    } cases[] = {
        { "@/c", "norm_per_stage:off:0fp32 average_outside_sum:on:0fp32 sampler_never_reshuffles:on:0fp32 " },
        { "@/c --world 1", "norm_per_stage:off:0fp32 sampler_never_reshuffles:on:0fp32 " },
        { "@/c --semantics standard",
          "norm_per_stage:off:0fp32 average_outside_sum:off:0fp32 sampler_never_reshuffles:off:0fp32 " },
        { "@/c --stage 3 --dtypes bf16",
          "norm_per_stage:off:3bf16 average_outside_sum:on:3bf16 stage_3_bf16_overflow_unseen:on:3bf16 "
          "sampler_never_reshuffles:on:3bf16 first_iteration_recorded:on:3bf16 " },
        { "@/c --stages 3,0 --dtypes fp32,fp16 --world 1",
          "loss_unscaled_at_stage_0:on:0fp16 hidden_first_step:on:0fp16 stage_0_loss_scaler:on:0fp16 "
          "scale_updated_before_unscaling:on:3fp16 0fp16 norm_by_updated_scale:on:3fp16 0fp16 "
          "norm_per_stage:off:3fp32 3fp16 0fp32 0fp16 loss_seed_in_model_type:on:3fp16 "
          "sampler_never_reshuffles:on:3fp32 3fp16 0fp32 0fp16 " },
        { "@/one", "norm_per_stage:off:0fp32 clip_per_stage:off:0fp32 sampler_never_reshuffles:off:0fp32 " },
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        char line[256], list[2048];
        snprintf(line, sizeof line, "inspect quirks %s", cases[i].arguments);
        outcome o = run(line);
        if (o.exit != 0) fail_msg("%s: %s", line, o.err);
        assert_string_equal(o.err, "");
        list_quirks(o.out, list, sizeof list);
        assert_string_equal(list, cases[i].list);
        outcome_free(&o);
    }
    /* Whatever the world, DeepSpeed does not take it. */
    expect("inspect quirks @/none", 2, "", "/none: batch sizes do not fit: ");
    expect("inspect quirks @/c --semantics standard --stages 2", 0, "", "");
    expect("inspect loss-scale " CIFAR " --overflow 0110011 --stage 0 --semantics deepspeed-0.19.6", 0,
           "[32768,32768,16384,8192,8192,8192,4096,2048]", "");
}

static void inspect_prints_json(void **state)
{
    (void)state;
    static const struct {
        const char *arguments, *out;
    } exact[] = {
        { "inspect batch " CIFAR " --world 4", "{\"train_batch_size\":16,\"train_micro_batch_size_per_gpu\":"
                                               "4,\"gradient_accumulation_steps\":1}\n" },
        { "inspect batch " CIFAR " --world 3 --micro-batch 4 --accumulation 2",
          "{\"train_batch_size\":24,\"train_micro_batch_size_per_gpu\":4,\"gradient_accumulation_steps\":2}"
          "\n" },
        { "inspect sampler --size 10 --world 3 --rank 2", "[7,9,6,1]\n" },
        { "inspect sampler --size 10 --world 4 --rank 1 --no-shuffle", "[1,5,9]\n" },
        { "inspect sampler --size 10 --world 4 --rank 0 --drop-last", "[4,3]\n" },
        { "inspect sampler --size 10 --world 2 --rank 0 --epoch 1", "[5,1,0,9,7]\n" },
        { "inspect sampler --size 10 --world 2 --rank 0 --seed 1", "[5,1,0,9,7]\n" },
        { "inspect lr " CIFAR " --steps 4", "[0,0,0.00010034333188799373,0.00015904041823988749]\n" },
        { "inspect lr " CIFAR " --steps 0", "[]\n" },
        { "inspect loss-scale " CIFAR " --overflow 0110011",
          "[32768,32768,32768,16384,16384,16384,8192,4096]\n" },
        { "inspect memory " CIFAR " --params 1000 --world 2",
          "{\"world\":2,\"numel\":1000,\"dtype\":\"fp16\",\"stages\":["
          "{\"stage\":0,\"parameters\":2000,\"gradients\":2000,\"optimizer_states\":12000,\"total\":16000},"
          "{\"stage\":1,\"parameters\":2000,\"gradients\":2000,\"optimizer_states\":6000,\"total\":10000},"
          "{\"stage\":2,\"parameters\":2000,\"gradients\":1000,\"optimizer_states\":6000,\"total\":9000},"
          "{\"stage\":3,\"parameters\":1000,\"gradients\":1000,\"optimizer_states\":6000,\"total\":8000}],"
          "\"paper\":{\"baseline\":16000,\"os\":10000,\"os+g\":9000,\"os+g+p\":8000},"
          "\"deepspeed_estimates\":{\"nodes\":1,\"gpus_per_node\":2,\"zero2\":{"
          "\"offload_optimizer\":{\"cpu\":24000,\"gpu\":2000},\"no_offload\":{\"cpu\":12000,\"gpu\":11000}}}}"
          "\n" },
        { "inspect memory " CIFAR " --params 1000 --world 1 --dtypes fp32",
          "{\"world\":1,\"numel\":1000,\"dtype\":\"fp32\",\"stages\":["
          "{\"stage\":0,\"parameters\":4000,\"gradients\":4000,\"optimizer_states\":8000,\"total\":16000},"
          "{\"stage\":1,\"parameters\":4000,\"gradients\":4000,\"optimizer_states\":8000,\"total\":16000},"
          "{\"stage\":2,\"parameters\":4000,\"gradients\":4000,\"optimizer_states\":8000,\"total\":16000},"
          "{\"stage\":3,\"parameters\":4000,\"gradients\":4000,\"optimizer_states\":8000,\"total\":16000}],"
          "\"paper\":{\"baseline\":16000,\"os\":16000,\"os+g\":16000,\"os+g+p\":16000},"
          "\"deepspeed_estimates\":{\"nodes\":1,\"gpus_per_node\":1,\"zero2\":{"
          "\"offload_optimizer\":{\"cpu\":24000,\"gpu\":2000},\"no_offload\":{\"cpu\":6000,\"gpu\":20000}}}}"
          "\n" },
    };
    for (size_t i = 0; i < COUNT(exact); i++) {
        outcome o = run(exact[i].arguments);
        assert_int_equal(o.exit, 0);
        assert_string_equal(o.out, exact[i].out);
        assert_string_equal(o.err, "");
        outcome_free(&o);
    }
}

/* The stage that runs decides, not the config's own; and memory can be told of any. */
static void stages_judge_the_optimizer(void **state)
{
    (void)state;
    static const char *const optimizers[] = { "\"SGD\", \"params\": {\"lr\": 0.1}", "\"Lamb\"" };
    for (size_t i = 0; i < COUNT(optimizers); i++) {
        char text[256];
        const int bytes = snprintf(text, sizeof text,
                                   "{\"train_micro_batch_size_per_gpu\": 2, \"optimizer\": {\"type\": %s}}",
                                   optimizers[i]);
        write_whole(in_folder("untested.json"), (const unsigned char *)text, (size_t)bytes);
        outcome o = run(
            "verify @/untested.json --model mlp:5-7-3 --worlds 2 --steps 1 --stages 0 --json @/j");
        assert_int_equal(o.exit, 0);
        outcome_free(&o);
        o = run("verify @/untested.json --model mlp:5-7-3 --worlds 2 --steps 1 --stages 0,2 --json @/j");
        assert_int_equal(o.exit, 2);
        assert_non_null(strstr(o.err, "at ZeRO stage 2, or zero_allow_untested_optimizer: true"));
        outcome_free(&o);
        o = run("inspect memory @/untested.json --model mlp:5-7-3 --world 2");
        assert_int_equal(o.exit, 0);
        assert_non_null(strstr(o.out, i == 0 ? "\"optimizer_states\":0" : "\"optimizer_states\":528"));
        outcome_free(&o);
    }
}

/* Each scheduler from the config's text on: sequences that DeepSpeed's own code gave. */
static void inspect_lr_of_each_scheduler(void **state)
{
    (void)state;
    static const struct {
        const char *scheduler;
        double lr[6];
    } rows[] = {
        { "\"LRRangeTest\", \"params\": {\"lr_range_test_step_size\": 3}",
          { 0.001, 0.0013333333333333333, 0.0016666666666666666, 0.002, 0.002333333333333333,
            0.002666666666666667 } },
        { "\"OneCycle\", \"params\": {\"cycle_min_lr\": 0.001, \"cycle_max_lr\": 0.01, "
          "\"cycle_first_step_size\": 3, "
          "\"cycle_second_step_size\": 6}",
          { 0.001, 0.004000000000000002, 0.007000000000000004, 0.009999999999999998, 0.0085,
            0.006999999999999999 } },
        { "\"WarmupLR\", \"params\": {\"warmup_num_steps\": 5}",
          { 0, 0, 0.00043067655807339306, 0.0006826061944859854, 0.0008613531161467861, 0.001 } },
        { "\"WarmupDecayLR\", \"params\": {\"total_num_steps\": 10, \"warmup_num_steps\": 4, "
          "\"warmup_min_lr\": 1e-4}",
          { 0.0001, 0.0001, 0.00055, 0.0008132331253245204, 0.001, 0.001 } },
        { "\"WarmupCosineLR\", \"params\": {\"total_num_steps\": 10, \"warmup_num_steps\": 4, "
          "\"warmup_type\": "
          "\"linear\"}",
          { 0, 0, 0.00025, 0.0005, 0.00075, 0.0009330194006220301 } },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char text[512];
        int bytes = snprintf(text, sizeof text,
                             "{\"optimizer\": {\"type\": \"Adam\"}, \"scheduler\": {\"type\": %s}}",
                             rows[i].scheduler);
        write_whole(in_folder("c"), text, (size_t)bytes);
        outcome o = run("inspect lr @/c --steps 6");
        assert_int_equal(o.exit, 0);
        cJSON *json = cJSON_Parse(o.out);
        assert_int_equal(cJSON_GetArraySize(json), 6);
        for (int k = 0; k < 6; k++) {
            double got = cJSON_GetArrayItem(json, k)->valuedouble;
            if (got != rows[i].lr[k])
                fail_msg("%s: step %d uses %.17g, want %.17g", text, k + 1, got, rows[i].lr[k]);
        }
        cJSON_Delete(json);
        outcome_free(&o);
    }
}

/* What was in force until DeepSpeed gives up is printed, and then the command fails. */
static void inspect_loss_scale_by_stage(void **state)
{
    (void)state;
#define FP16 "\"fp16\": {\"enabled\": true, \"initial_scale_power\": 3, \"hysteresis\": 1}"
    static const struct {
        const char *text, *options;
        int exit;
        const char *out, *err;
    } rows[] = {
        { "{" FP16 "}", "--overflow 1111", 1, "[8,4,2,1]\n", "step 4: gradients overflow at loss scale 1" },
        { "{" FP16 "}", "--overflow 111", 0, "[8,4,2,1]\n", "" },
        { "{" FP16 ", \"zerobit\": {\"semantics\": \"deepspeed-0.19.6\"}}", "--overflow 111111", 0,
          "[8,4,2,1,1,1,1]\n", "" },
        { "{" FP16 ", \"zerobit\": {\"semantics\": \"deepspeed-0.19.6\"}}", "--overflow 1111 --stage 2", 1,
          "[8,4,2,1]\n", "cannot be lowered" },
        { "{\"fp16\": {\"enabled\": true, \"loss_scale\": 0.5}}", "--overflow 101", 0, "[0.5,0.5,0.5,0.5]\n",
          "" },
        { "{\"bf16\": {\"enabled\": true}}", "--overflow 10", 0, "[1,1,1]\n", "" },
        { "{\"fp16\": {\"enabled\": true, \"min_loss_scale\": 0.5}}", "--overflow 0", 2, "",
          "c: fp16.min_loss_scale: is 0.5, want an integer" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        write_whole(in_folder("c"), rows[i].text, strlen(rows[i].text));
        char line[128];
        snprintf(line, sizeof line, "inspect loss-scale @/c %s", rows[i].options);
        outcome o = run(line);
        if (o.exit != rows[i].exit || strcmp(o.out, rows[i].out) != 0 || strstr(o.err, rows[i].err) == NULL ||
            (o.exit == 0 && o.err[0] != '\0'))
            fail_msg("row %zu: exit %d, out %s, err %s", i, o.exit, o.out, o.err);
        outcome_free(&o);
    }
}

/* Every trainable element is owned exactly once, in order. */
static void inspect_partition_tiles(void **state)
{
    (void)state;
    for (int stage = 0; stage < 4; stage++) {
        char line[512];
        snprintf(line, sizeof line, "inspect partition %s --world 4 --stage %d", CIFAR, stage);
        outcome o = run(line);
        assert_int_equal(o.exit, 0);
        cJSON *json = cJSON_Parse(o.out);
        assert_non_null(json);
        assert_int_equal(cJSON_GetObjectItem(json, "stage")->valueint, stage);
        assert_int_equal(cJSON_GetObjectItem(json, "world")->valueint, 4);
        assert_int_equal(cJSON_GetObjectItem(json, "numel")->valueint, 62006);
        const cJSON *ranks = cJSON_GetObjectItem(json, "ranks");
        assert_int_equal(cJSON_GetArraySize(ranks), 4);
        int owned = 0;
        const cJSON *rank, *piece;
        cJSON_ArrayForEach(rank, ranks)
        {
            cJSON_ArrayForEach(piece, cJSON_GetObjectItem(rank, "pieces"))
            {
                owned += cJSON_GetObjectItem(piece, "numel")->valueint;
                assert_non_null(cJSON_GetObjectItem(piece, "param")->valuestring);
            }
        }
        assert_int_equal(owned, stage == 0 ? 4 * 62006 : 62006);
        cJSON_Delete(json);
        outcome_free(&o);
    }
}

static void info_tells_what_there_is(void **state)
{
    (void)state;
    expect("info", 0, "communicators  self, sim" IF_MPI(", mpi") IF_NCCL(", nccl") "\n", "");
    outcome o = run("info --json");
    cJSON *json = cJSON_Parse(o.out);
    assert_non_null(json);
    assert_true(cJSON_IsString(cJSON_GetObjectItem(json, "simd")));
    assert_true(cJSON_IsBool(cJSON_GetObjectItem(cJSON_GetObjectItem(json, "found"), "nccl")));
    cJSON_Delete(json);
    outcome_free(&o);
}

/* A level that is not there is no level to report. */
static void an_unknown_simd_level_is_refused(void **state)
{
    (void)state;
    assert_int_equal(setenv("ZEROBIT_SIMD", "abacus", 1), 0);
    expect("info", 2, "", "zerobit info: ZEROBIT_SIMD");
    expect("info --json", 2, "", "zerobit info: ZEROBIT_SIMD");
    expect("verify " SMALL "--worlds 1 --steps 1", 2, "", "ZEROBIT_SIMD");
    unsetenv("ZEROBIT_SIMD");
}

/* Opening a pipe that nobody writes to would wait for ever. */
static void a_pipe_is_no_file(void **state)
{
    (void)state;
    assert_int_equal(mkfifo(in_folder("pipe"), 0600), 0);
    expect("diff @/pipe @/pipe", 2, "", "pipe: cannot be read: not a regular file");
    expect("verify " CIFAR " --dtypes fp32 --data @/pipe", 2, "", "pipe: not a regular file");
}

static void nothing_to_train_is_refused_before_the_run(void **state)
{
    (void)state;
    static const char model[] = "{\"name\":\"still\",\"input\":[4],\"loss\":\"cross_entropy\",\"modules\":["
                                "{\"kind\":\"linear\",\"name\":\"fc\",\"out_features\":4,\"frozen\":true}]}";
    write_whole(in_folder("still.json"), (const unsigned char *)model, sizeof model - 1);
    outcome o = run("verify " CIFAR " --dtypes fp32 --model @/still.json --json @/j");
    assert_int_equal(o.exit, 2);
    assert_string_equal(o.out, "");
    assert_non_null(strstr(o.err, "model still has no trainable element"));
    assert_int_equal(access(in_folder("j"), F_OK), -1);
    outcome_free(&o);
}

/* With standard output closed, the next file opened gets its descriptor: what is printed must not end up
 * there. */
static void closed_output_does_not_reach_a_file(void **state)
{
    (void)state;
    expect("train " SMALL "--world 2 --steps 3 --stage 2 --trace @/a", 0, "", "");
    char line[1024];
    snprintf(line, sizeof line,
             "exec %s train " SMALL "--world 2 --steps 3 --stage 2 --trace %s/b <&- >&- 2>&-", ZB_COMMAND,
             folder);
    int status = system(line);
    assert_int_equal(WEXITSTATUS(status), 2);
    expect("diff @/a @/b", 0, "equal", "");
}

/* A limit on the size of files is told like a full disk. */
static void a_file_size_limit_is_an_error(void **state)
{
    (void)state;
    char line[1024];
    snprintf(line, sizeof line,
             "ulimit -f 8; exec %s generate-cifar10 %s/g --records 40 >/dev/null 2>%s/.err", ZB_COMMAND,
             folder, folder);
    int status = system(line);
    assert_int_equal(WEXITSTATUS(status), 2);
    size_t bytes;
    char *text = (char *)read_whole(in_folder(".err"), &bytes);
    text[bytes] = '\0';
    assert_non_null(strstr(text, "g: cannot be written: File too large"));
    free(text);
    unlink(in_folder(".err"));
    assert_int_equal(folder_entries(), 0);
}

/* --- signals --- */

typedef struct stop {
    const char *command; /* a shell's, with %s for the command and for the folder, thrice */
    int signal;
    const char *err;
} stop;

static const stop stops[] = {
    { "exec %s verify " SMALL "--worlds 2 --steps 2000000000 --json %s/j >%s/.out 2>%s/.err", SIGINT,
      "before step " },
    { "exec %s train " SMALL "--world 2 --steps 2000000000 --print-every 1 --trace %s/t >%s/.out 2>%s/.err",
      SIGINT, "before step " },
    { "exec %s train " SMALL "--world 2 --steps 2000000000 --trace %s/t >%s/.out 2>%s/.err", SIGTERM,
      "before step " },
    { "exec %s train " SMALL "--world 2 --steps 2000000000 --trace %s/t >%s/.out 2>%s/.err", SIGHUP,
      "before step " },
    { "exec %s train " SMALL "--world 2 --steps 2000000000 --trace %s/t >%s/.out 2>%s/.err", SIGPIPE,
      "before step " },
    { "exec %s generate-cifar10 %s/g --records 2000000 >%s/.out 2>%s/.err", SIGINT, "before record " },
};

static void a_signal_leaves_nothing(void **state)
{
    const stop *s = *state;
    folder_create(NULL);
    char line[1024];
    snprintf(line, sizeof line, s->command, ZB_COMMAND, folder, folder, folder);
    pid_t child = fork();
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", line, (char *)NULL);
        _exit(127);
    }
    nanosleep(&(struct timespec){ 0, 500000000 }, NULL);
    assert_int_equal(kill(child, s->signal), 0);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), s->signal);
    size_t bytes;
    char *text = (char *)read_whole(in_folder(".err"), &bytes);
    text[bytes] = '\0';
    if (strstr(text, "interrupted") == NULL || strstr(text, s->err) == NULL)
        fail_msg("standard error: %s\nwant: %s", text, s->err);
    free(text);
    unlink(in_folder(".out"));
    unlink(in_folder(".err"));
    assert_int_equal(folder_entries(), 0);
    folder_remove(NULL);
}

/* The second one does not wait for the end of a step, which here never comes: it has 2^40 micro-batches. */
static void a_second_signal_leaves_nothing_either(void **state)
{
    (void)state;
    char line[1024];
    write_text(in_folder("c"),
               "{\"train_micro_batch_size_per_gpu\": 1, \"gradient_accumulation_steps\": 1099511627776, "
               "\"optimizer\": {\"type\": \"Adam\"}}");
    snprintf(line, sizeof line,
             "exec %s train %s/c --model mlp:12-7-5 --data synthetic --world 2 --steps 1 --trace %s/t "
             ">/dev/null 2>/dev/null",
             ZB_COMMAND, folder, folder);
    pid_t child = fork();
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", line, (char *)NULL);
        _exit(127);
    }
    /* The trace, once it stays: whether it can be written is tried out before, with a file that goes again.
     */
    for (int i = 0, stays = 0; i < 400 && stays < 20; i++) {
        nanosleep(&(struct timespec){ 0, 50000000 }, NULL);
        stays = folder_entries() == 2 ? stays + 1 : 0;
    }
    assert_int_equal(folder_entries(), 2);
    assert_int_equal(kill(child, SIGINT), 0);
    nanosleep(&(struct timespec){ 0, 200000000 }, NULL);
    int status;
    assert_int_equal(waitpid(child, &status, WNOHANG), 0);
    assert_int_equal(kill(child, SIGINT), 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGINT);
    unlink(in_folder("c"));
    assert_int_equal(folder_entries(), 0);
}

/* What a shell or nohup has switched off stays off. */
static void an_ignored_signal_stays_ignored(void **state)
{
    (void)state;
    char line[1024];
    snprintf(line, sizeof line,
             "trap '' HUP; %s train " SMALL "--world 2 --steps 3000 --save-weights %s/w >/dev/null & "
             "sleep 0.1; kill -HUP $!; wait $!",
             ZB_COMMAND, folder);
    int status = system(line);
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_int_equal(folder_entries(), 1);
}

/* A full disk is no success. */
static void unwritable_output_is_an_error(void **state)
{
    (void)state;
    if (access("/dev/full", W_OK) != 0) skip();
    char line[512];
    snprintf(line, sizeof line, "%s info >/dev/full 2>/dev/null", ZB_COMMAND);
    int status = system(line);
    assert_int_equal(WEXITSTATUS(status), 2);
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, folder_create, folder_remove)
    const struct CMUnitTest whole[] = {
        IN_FOLDER(help_is_everywhere),
        IN_FOLDER(verify_reports_equal),
        IN_FOLDER(verify_of_the_example),
        IN_FOLDER(training_runs_are_compared),
        IN_FOLDER(generated_data_is_read),
        IN_FOLDER(recorded_runs_are_replayed),
        IN_FOLDER(inspect_prints_json),
        IN_FOLDER(inspect_quirks_lists_what_is_met),
        IN_FOLDER(inspect_lr_of_each_scheduler),
        IN_FOLDER(stages_judge_the_optimizer),
        IN_FOLDER(inspect_loss_scale_by_stage),
        IN_FOLDER(inspect_partition_tiles),
        IN_FOLDER(info_tells_what_there_is),
        IN_FOLDER(an_unknown_simd_level_is_refused),
        IN_FOLDER(a_pipe_is_no_file),
        IN_FOLDER(nothing_to_train_is_refused_before_the_run),
        IN_FOLDER(closed_output_does_not_reach_a_file),
        IN_FOLDER(a_file_size_limit_is_an_error),
        IN_FOLDER(an_ignored_signal_stays_ignored),
        IN_FOLDER(a_second_signal_leaves_nothing_either),
        IN_FOLDER(unwritable_output_is_an_error),
    };
    struct CMUnitTest tests[COUNT(refusals)];
    for (size_t i = 0; i < COUNT(refusals); i++)
        tests[i] = (struct CMUnitTest){ refusals[i].arguments, check_refusal, NULL, NULL,
                                        (void *)&refusals[i] };
    struct CMUnitTest signals[COUNT(stops)];
    for (size_t i = 0; i < COUNT(stops); i++)
        signals[i] = (struct CMUnitTest){ stops[i].command, a_signal_leaves_nothing, NULL, NULL,
                                          (void *)&stops[i] };
    return cmocka_run_group_tests_name("command, refusals", tests, NULL, NULL) +
           cmocka_run_group_tests_name("command, signals", signals, NULL, NULL) +
           cmocka_run_group_tests_name("command", whole, NULL, NULL);
}
