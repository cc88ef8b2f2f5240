"""Times llama.cpp beside this library on the CPU: the same file, the same threads, turn by turn in one run.

One sequence, trees of leaves on prompts, prompts, and the memory that it takes. llama.cpp comes from the source package of
llama-cpp-python and is built with AVX2 into a folder that is kept (a compiler is needed, and a while); below a prompt
its leaves are sequences that share the prompt's cells in a unified cache. It runs with flash attention and without, and
the better counts. Ours is `engine/examples/02_speed.rs`, built by cargo; what both are asked is explained there.

    cargo xtask model
    python bench/peers/llama_cpp.py --json docs/benchmarks/cpu-llama-cpp.json

A turn's time is the least of its steps, a case's the median of its turns, in milliseconds of the wall clock and of all
threads' processors.
"""

import argparse
import ctypes
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = "llama-cpp-python==0.3.36"
# AVX2 as ours is built for where a processor has no more; nothing that only the building machine has.
FLAGS = {
    "GGML_NATIVE": "OFF", "GGML_AVX": "ON", "GGML_AVX2": "ON", "GGML_FMA": "ON", "GGML_F16C": "ON", "GGML_BMI2": "ON",
    "GGML_AVX512": "OFF", "GGML_AMX_TILE": "OFF", "LLAMA_CURL": "OFF", "LLAVA_BUILD": "OFF", "MTMD_BUILD": "OFF",
}  # fmt: skip
CASES = [
    *(f"leaves:{leaves}:1024" for leaves in (1, 8, 32, 64)),
    "prompt:512",
    *(f"leaves:{leaves}:4096" for leaves in (1, 8, 32, 64)),
    "prompt:2048",
]
MEMORY = "leaves:64:1024"
# Threads of llama.cpp that wait sleep: where other programs run too, they would spin for as long as those take.
WAITING = {"OMP_WAIT_POLICY": "passive"}
# Steps of a turn, as in 02_speed.rs.
STEPS = 4


def tokens(count):
    """Those of 02_speed.rs."""
    return [100 + i * 37 % 400 for i in range(count)]


class Llama:
    """llama.cpp with one file, and a cache of so many cells."""

    def __init__(self, path, threads, flash, cells):
        # Not this file, which has the package's name.
        own = pathlib.Path(__file__).resolve().parent
        sys.path = [path for path in sys.path if pathlib.Path(path).resolve() != own]
        import llama_cpp

        self.lib = llama_cpp
        # The log has nothing that is asked for here; the function must live as long as it may be called.
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.quiet, None)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = cells, 65, True
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(flash)
        self.context = llama_cpp.llama_init_from_model(model, params)
        assert self.context, "llama.cpp made no context"
        self.most = params.n_batch
        self.memory = llama_cpp.llama_get_memory(self.context)
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self.batch = llama_cpp.llama_batch_init(self.most, 0, 1)
        self.held = None

    def decode(self, rows, wanted):
        """Runs rows of (token, position, sequence), and waits for the logits of the last `wanted`."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for at, (token, position, sequence) in enumerate(rows):
            batch.token[at], batch.pos[at] = token, position
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
            batch.logits[at] = at >= len(rows) - wanted
        begin, processor = time.perf_counter(), time.process_time()
        status = self.lib.llama_decode(self.context, batch)
        assert status == 0, f"llama_decode answered {status}"
        self.row = self.lib.llama_get_logits(self.context)
        return time.perf_counter() - begin, time.process_time() - processor

    def prompt(self, count):
        """Puts a prompt into sequence 0; all that was there goes."""
        self.lib.llama_memory_clear(self.memory, True)
        rows = [(token, at, 0) for at, token in enumerate(tokens(count))]
        parts = [rows[at : at + self.most] for at in range(0, count, self.most)]
        times = [self.decode(part, int(part is parts[-1])) for part in parts]
        return tuple(map(sum, zip(*times)))

    def run(self, case):
        kind, *numbers = case.split(":")
        if kind == "prompt":
            self.held = None
            return [self.prompt(int(numbers[0]))]
        leaves, context = map(int, numbers)
        if self.held != context:
            self.prompt(context)
            self.held = context
        for leaf in range(leaves):
            self.lib.llama_memory_seq_cp(self.memory, 0, 1 + leaf, -1, -1)
        times = []
        for at in range(STEPS):
            fed = enumerate(tokens(at + leaves)[at:])
            times.append(self.decode([(token, context + at, 1 + leaf) for leaf, token in fed], leaves))
        for leaf in range(leaves):
            self.lib.llama_memory_seq_rm(self.memory, 1 + leaf, -1, -1)
        return times

    def answer(self, case):
        times = self.run(case)
        row = ctypes.cast(self.row, ctypes.POINTER(ctypes.c_float))[: self.vocabulary]
        return {
            "case": case,
            "wall_ms": 1000 * min(wall for wall, _ in times),
            "processor_ms": 1000 * min(processor for _, processor in times),
            "resident_mib": status_mib("VmRSS"),
            "most_mib": status_mib("VmHWM"),
            "likeliest": max(range(self.vocabulary), key=row.__getitem__),
        }


def status_mib(name):
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(name))


def serve(args):
    llama = Llama(str(args.model), args.threads, args.flash, args.cells)
    first = {"case": "loaded", "resident_mib": status_mib("VmRSS"), "most_mib": status_mib("VmHWM")}
    first["about"] = llama.lib.llama_print_system_info().decode()
    print(json.dumps(first), flush=True)
    for line in sys.stdin:
        print(json.dumps(llama.answer(line.strip())), flush=True)


def built(folder):
    """The Python that has llama.cpp, which is built if it is not there."""
    python = folder / "venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    if subprocess.run([python, "-I", "-c", "import llama_cpp"], capture_output=True).returncode:
        print("building llama.cpp, which takes a while", file=sys.stderr, flush=True)
        flags = " ".join(f"-D{name}={value}" for name, value in FLAGS.items())
        environment = {"CMAKE_BUILD_PARALLEL_LEVEL": "1"} | os.environ | {"CMAKE_ARGS": flags}
        install = ["-m", "pip", "install", "-q", "--no-binary", PACKAGE.split("==")[0], PACKAGE]
        subprocess.run([python, *install], env=environment, check=True)
    return python


class Program:
    """One that answers a case a line."""

    def __init__(self, command, threads):
        environment = os.environ | WAITING | {"RAYON_NUM_THREADS": str(threads)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
        self.loaded = json.loads(self.process.stdout.readline())

    def ask(self, case):
        print(case, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def end(self):
        self.process.stdin.close()
        assert self.process.wait() == 0


def commands(args):
    """How each program is started, with as many cells as a case needs."""
    python = built(args.folder)
    speed = args.ours
    if speed is None:
        build = ["cargo", "build", "--release", "-p", "deft-engine", "--example", "02_speed"]
        subprocess.run(build, cwd=ROOT, check=True)
        speed = ROOT / "target" / "release" / "examples" / "02_speed"
    own = pathlib.Path(__file__).resolve()

    def llama(flash):
        serving = [python, own, "--serve", "--model", args.model, "--threads", str(args.threads)]
        return lambda cells: [*serving, "--cells", str(cells), *(["--flash"] if flash else [])]

    return {
        "deft": lambda _: [speed, args.model, "-"],
        "llama.cpp": llama(False),
        "llama.cpp, flash": llama(True),
    }


def cells(case):
    kind, *numbers = case.split(":")
    first, last = int(numbers[0]), int(numbers[-1])
    return last if kind == "prompt" else last + first * STEPS


def median_of(rows, program, case, what):
    return statistics.median(row[what] for row in rows if (row["program"], row["case"]) == (program, case))


def compare(rows, case, what):
    """Ours, the better of theirs, and theirs over ours."""
    names = {row["program"] for row in rows if row["case"] == case}
    medians = {name: median_of(rows, name, case, what) for name in names}
    ours = medians.pop("deft")
    best = min(medians, key=medians.get)
    return ours, medians[best], medians[best] / ours, best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    model = ROOT / "target" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    parser.add_argument("--model", type=pathlib.Path, default=model)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "target" / "peers" / "llama_cpp")
    parser.add_argument("--ours", type=pathlib.Path, help="a built 02_speed; left out, cargo builds it")
    parser.add_argument("--json", type=pathlib.Path)
    # What this program starts itself with, in the environment that has llama.cpp.
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--flash", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--cells", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args)

    starts = commands(args)
    room = 256 * math.ceil(max(map(cells, args.cases)) / 256)
    programs = {name: Program(start(room), args.threads) for name, start in starts.items()}
    about = programs["llama.cpp"].loaded["about"]
    for program in programs.values():
        # Everything is brought into memory.
        program.ask("leaves:1:64")
    document = {
        "package": PACKAGE, "flags": FLAGS, "environment": WAITING, "about": about, "model": args.model.name,
        "file_mib": args.model.stat().st_size / 2**20, "threads": args.threads, "processor": processor(),
        "memory": {}, "rows": [],
    }  # fmt: skip
    rows = document["rows"]
    for case in args.cases:
        for turn in range(args.turns):
            for name, program in programs.items():
                rows.append({"program": name, "turn": turn} | program.ask(case))
        for what in ("wall_ms", "processor_ms"):
            ours, theirs, ratio, best = compare(rows, case, what)
            print(f"{case:16} {what:12} {ours:9.2f} {theirs:9.2f} {ratio:6.2f}  {best}", flush=True)
        if args.json:
            # As far as it is: a run takes long.
            args.json.write_text(text(document))
    for program in programs.values():
        program.end()
    # Memory is of programs that do nothing else.
    for name, start in starts.items():
        program = Program(start(256 * math.ceil(cells(MEMORY) / 256)), args.threads)
        held = {"loaded_mib": program.loaded["resident_mib"], MEMORY: program.ask(MEMORY)["most_mib"]}
        program.end()
        document["memory"][name] = held
        print(f"{name:18} {held}", flush=True)
    if args.json:
        args.json.write_text(text(document))


def text(document):
    """JSON with a row a line."""
    rows = ",\n  ".join(map(json.dumps, document["rows"]))
    return json.dumps(document | {"rows": []}, indent=1).replace('"rows": []', f'"rows": [\n  {rows}\n ]') + "\n"


def processor():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))


if __name__ == "__main__":
    main()
