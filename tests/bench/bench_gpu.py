"""What decoding costs on GPUs: `python tests/bench/bench_gpu.py [FOLDER] [--ranks N]`. Needs N GPUs.

Writes a checkpoint of the Qwen2.5-7B shape with random bf16 weights in FOLDER unless it is there (FSDP2,
four ranks, by the calls verl makes), loads it as the program does and compares, in turn within one run:

A  the published loop under FSDP FULL_SHARD over the ranks (two or more)
B  the published loop with resident weights: no kept keys and values, logits of every position
C  this project's engine at a fixed N and R
D  this project's engine token by token (N = 0)
E  transformers' generate: greedy, static cache, compiled

Then prompts decoded together are compared with the same ones one by one. Tokens are forced (nothing stops a
reply). The slow arms make fewer tokens; their rates are of those they made. A row's ratio is that of its tokens a
second to those of A, B or E in the row above.
Prints Markdown tables. Under torchrun (`--rank`) it is one of the ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import paths  # noqa: F401
import torch
import torch.distributed as torch_dist

WRITERS = 4
SHAPE = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
NEW_TOKENS, SLOW_TOKENS = 512, 64
NEW_BATCHED, ONE_BY_ONE = 128, 4
PROFILED = 5
# Tokens that a pass reads, and of how many it keeps the logits.
SIZES = (1, 1), (7, 7), (8, 8), (15, 8), (16, 16), (32, 32), (127, 127), (128, 128), (255, 128)
PLACEHOLDER = 2
COLUMNS = ("tok/s", "fwd/s", "% of the floor", "ratio", "peak GiB", "compile s")


def write_fsdp1(folder: Path, layers: int) -> None:
    """One rank's part of writing a checkpoint by FSDP1, which has a GPU for each rank."""
    from checkpoints import save_as_verl_does, save_tokenizer
    from torch.distributed.device_mesh import init_device_mesh

    torch_dist.init_process_group("nccl")
    torch.cuda.set_device(torch_dist.get_rank())
    mesh = init_device_mesh("cuda", (torch_dist.get_world_size(),), mesh_dim_names=("fsdp",))
    model = fsdp_model(layers, mesh)
    save_as_verl_does(model, save_tokenizer(folder / f"tokenizer-{torch_dist.get_rank()}"), folder / "actor", 1)
    torch_dist.barrier()
    torch_dist.destroy_process_group()


def write(folder: Path, layers: int) -> None:
    """One rank's part of writing the checkpoint: sharded by FSDP2 on the host, filled on the GPU."""
    from checkpoints import save_as_verl_does, save_tokenizer
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch_dist.init_process_group("gloo")
    torch.cuda.set_device(torch_dist.get_rank() % torch.cuda.device_count())
    mesh = init_device_mesh("cpu", (WRITERS,), mesh_dim_names=("fsdp",))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(Qwen2Config(**{**SHAPE, "num_hidden_layers": layers}))
    model = model.to(torch.bfloat16)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    torch.cuda.manual_seed(torch_dist.get_rank())
    for name, parameter in model.named_parameters():
        local = parameter.detach().to_local()
        spread = 0.0 if name.endswith("norm.weight") else 0.02
        local.copy_(torch.randn(local.shape, device="cuda", dtype=torch.bfloat16) * spread + (spread == 0))
    save_as_verl_does(model, save_tokenizer(folder / f"tokenizer-{torch_dist.get_rank()}"), folder / "actor", 2)
    torch_dist.barrier()
    torch_dist.destroy_process_group()


def raw_read_seconds(folder: Path, ranks: int, rank: int) -> float:
    """Reading this rank's part of the same files, and nothing else."""
    buffer = bytearray(16 << 20)
    started = time.perf_counter()
    for path in sorted((folder / "actor").glob("model_*.pt")):
        size = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            file.seek(rank * size // ranks)
            left = (rank + 1) * size // ranks - rank * size // ranks
            while left > 0:
                left -= file.readinto(memoryview(buffer)[: min(left, len(buffer))]) or left
    return time.perf_counter() - started


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy within the GPU's memory."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / event_seconds(lambda: target.copy_(source), 10)


def event_seconds(run: Callable[[], object], times: int) -> float:
    """Median seconds of one run, by the GPU's own clock."""
    run()
    spans = []
    for _ in range(times):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        spans.append(start.elapsed_time(end) / 1e3)
    return statistics.median(spans)


class Bench:
    """One rank of the measurement."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        from ranks import open_group

        from dist.checkpoint.open import open_checkpoint
        from dist.model.load import load_model

        self.options = options
        self.group = open_group()
        # The driver's and the libraries' first call is not part of loading.
        torch.zeros(1, device=self.group.device)
        self.raw_s = raw_read_seconds(folder, self.group.size, self.group.rank)
        self.checkpoint = open_checkpoint(folder)
        started = time.perf_counter()
        self.loaded = load_model(self.checkpoint, self.group, parallel=options.parallel, exact=options.exact)
        self.load_s = time.perf_counter() - started
        self.raw_s = min(self.raw_s, raw_read_seconds(folder, self.group.size, self.group.rank))
        self.engine = self.new_engine()
        self.rows: list[dict[str, Any]] = []

    def new_engine(self) -> Any:
        from dist.decode.engine import Engine

        limit, head = self.loaded.max_positions, self.loaded.head
        return Engine(self.loaded.module, self.group, max_positions=limit, head=head)

    def start_kernels_late(self) -> None:
        """From here on each kernel starts when the one before has ended."""
        from dist.kernels import overlap

        overlap._can_overlap = lambda device: False
        self.engine.forwards.close()
        self.engine = self.new_engine()

    def say(self, text: str) -> None:
        if self.group.rank == 0:
            print(text, flush=True)

    def prompt(self, context: int, seed: int = 0) -> tuple[int, ...]:
        """Ids that leave room for the new tokens in a context of so many."""
        generator = torch.Generator().manual_seed(context + seed)
        return tuple(torch.randint(1000, 150000, (context - NEW_TOKENS,), generator=generator).tolist())

    def answer(self, prompts: Sequence[tuple[int, ...]], n: int, rounds: int | str, new: int, **asked: Any) -> Any:
        """Replies by the engine, made together, on all ranks; the last one on rank 0. `asked`: more of the turn."""
        from dist.protocol import Control, Reply, Turn
        from dist.settings import GenerationSettings

        settings = GenerationSettings(
            add_eos_length=n, refine_iter=rounds, max_new_tokens=new, max_length=len(prompts[0]) + NEW_TOKENS
        )
        turn = Turn(prompts=tuple(prompts), settings=settings, placeholder=PLACEHOLDER, stop_ids=(), **asked)
        if self.group.rank:
            for _ in self.engine.run(turn, None):
                pass
            return None
        events = list(self.engine.run(turn, lambda: Control(settings=settings)))
        return [event for event in events if isinstance(event, Reply)][-1]

    def prefill_seconds(self, tokens: int) -> float:
        """From nothing to the first block of a prompt of so many tokens."""
        spans = []
        for seed in range(3):
            self.engine.forwards.forget()
            torch.cuda.synchronize()
            started = time.perf_counter()
            self.answer([self.prompt(tokens + NEW_TOKENS, seed)], 7, 1, 8)
            spans.append(time.perf_counter() - started)
        return min(spans)

    def asked_seconds(self, **asked: Any) -> float:
        """A reply of half as many tokens as usual, from nothing, with what is asked for beside its text."""
        spans = []
        for _ in range(3):
            self.engine.forwards.forget()
            torch.cuda.synchronize()
            started = time.perf_counter()
            self.answer([self.prompt(1024)], 7, 2, NEW_TOKENS // 2 + len(asked.get("begun", [()])[0]), **asked)
            spans.append(time.perf_counter() - started)
        return min(spans)

    def replay_seconds(self, width: int, kept: int, start: int) -> float:
        """One captured pass of so many tokens after `start` others, without the host's part."""
        from dist.decode.cuda_graphs import Shape
        from dist.decode.packed_batch import Segment

        forward = self.engine.forwards.alone
        passed = forward.run(Shape(1, width, kept, width), [Segment(0, start, [5] * width, width - kept, kept)])
        return event_seconds(passed.replay, 20)

    def kernel_table(self, width: int, kept: int, start: int) -> str:
        """The kernels of one captured pass by name, and how much of it no kernel ran."""
        from torch.profiler import ProfilerActivity, profile

        from dist.decode.cuda_graphs import Shape
        from dist.decode.packed_batch import Segment

        forward = self.engine.forwards.alone
        passed = forward.run(Shape(1, width, kept, width), [Segment(0, start, [5] * width, width - kept, kept)])
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for _ in range(PROFILED):
                passed.replay()
            torch.cuda.synchronize()
        events = [one for one in profiler.events() if one.device_type == torch.autograd.DeviceType.CUDA]
        busy: dict[str, list[float]] = {}
        for one in events:
            busy.setdefault(one.name[:60], []).append(one.time_range.elapsed_us())
        span = max(one.time_range.end for one in events) - min(one.time_range.start for one in events)
        total = sum(sum(times) for times in busy.values())
        lines = ["| kernel | calls a pass | us each | us a pass |", "|---|---|---|---|"]
        for name, times in sorted(busy.items(), key=lambda pair: -sum(pair[1])):
            calls, whole = len(times) / PROFILED, sum(times) / PROFILED
            lines.append(f"| {name} | {calls:.0f} | {whole / calls:.2f} | {whole:.0f} |")
        lines.append(f"\nkernels {total / PROFILED:.0f} us of {span / PROFILED:.0f} us a pass (profiled)")
        return "\n".join(lines)

    def arm_ours(self, context: int, n: int, rounds: int) -> dict[str, Any]:
        prompts = [self.prompt(context)]
        self.answer(prompts, n, rounds, 3 * (n + 1))  # captures
        torch.cuda.reset_peak_memory_stats()
        reply = self.answer(prompts, n, rounds, NEW_TOKENS)
        again = self.answer(prompts, n, rounds, NEW_TOKENS)
        if self.group.rank:
            return {}
        best = min((reply, again), key=lambda one: one.stats.decode_s)
        return {
            "arm": "D" if n == 0 else "C",
            "tok/s": best.stats.tokens / best.stats.decode_s,
            "fwd/s": best.stats.forwards / best.stats.decode_s,
            "peak GiB": torch.cuda.max_memory_allocated() / 2**30,
        }

    def batch(self, context: int, count: int, n: int, rounds: int) -> tuple[float, float]:
        """Tokens a second of so many prompts, their reading included: together, and one by one (four of them)."""
        prompts = [self.prompt(context, seed) for seed in range(count)]
        alone = [[prompt] for prompt in prompts[:ONE_BY_ONE]]
        rates = []
        for turns in ([prompts], alone):
            self.answer(turns[0], n, rounds, NEW_BATCHED)  # captures
            # Else what they have read of the prompts would not be read again.
            self.engine.forwards.forget()
            torch.cuda.synchronize()
            started = time.perf_counter()
            for turn in turns:
                self.answer(turn, n, rounds, NEW_BATCHED)
            rates.append(sum(map(len, turns)) * NEW_BATCHED / (time.perf_counter() - started))
        return rates[0], rates[1]


@torch.no_grad()
def published_loop(model: Any, prompt: tuple[int, ...], n: int, rounds: int, new: int) -> int:
    """The published loop: recompute everything, logits of every position; returns the tokens made."""
    ids = torch.tensor([prompt], device="cuda")
    made = 0
    while made < new:
        draft = torch.full((1, n), PLACEHOLDER, device="cuda")
        length = ids.shape[1]
        for _ in range(rounds):
            logits = model(input_ids=torch.cat([ids, draft], dim=1), use_cache=False).logits
            block = logits[:, length - 1 :].argmax(dim=-1)
            draft = block[:, :n]
            block.tolist()
        ids = torch.cat([ids, block], dim=1)
        made += n + 1
    return made


def arm_published(model: Any, arm: str, prompt: tuple[int, ...], n: int, rounds: int) -> dict[str, Any]:
    new = max(SLOW_TOKENS, n + 1)
    published_loop(model, prompt, n, 1, n + 1)
    torch.cuda.synchronize()
    started = time.perf_counter()
    made = published_loop(model, prompt, n, rounds, new)
    seconds = time.perf_counter() - started
    return {"arm": arm, "tok/s": made / seconds, "fwd/s": rounds * made / (n + 1) / seconds}


@torch.inference_mode()
def arm_generate(model: Any, prompt: tuple[int, ...]) -> dict[str, Any]:
    ids = torch.tensor([prompt], device="cuda")
    arguments = {
        "attention_mask": torch.ones_like(ids),
        "do_sample": False,
        "cache_implementation": "static",
        "pad_token_id": PLACEHOLDER,
        "eos_token_id": None,
    }
    spans = []
    for new in (NEW_TOKENS // 2, NEW_TOKENS // 2, NEW_TOKENS // 4, NEW_TOKENS // 4):
        torch.cuda.synchronize()
        started = time.perf_counter()
        model.generate(ids, max_new_tokens=new, min_new_tokens=new, **arguments)
        torch.cuda.synchronize()
        spans.append(time.perf_counter() - started)
    # The difference leaves the prompt's part out.
    rate = NEW_TOKENS / 4 / (spans[1] - spans[3])
    return {"arm": "E", "tok/s": rate, "fwd/s": rate, "compile s": spans[0] - spans[1]}


def plain_model(bench: Bench) -> Any:
    """transformers' own modules over the very weights that the engine's module holds."""
    from dist.model.build import build_model

    checkpoint = bench.checkpoint
    module = build_model(checkpoint.config_dir, checkpoint.config, torch.bfloat16, trust_remote_code=False)
    module.load_state_dict(bench.loaded.module.state_dict(), assign=True, strict=False)
    return module.to("cuda")


def fsdp_model(layers: int, mesh: Any = None) -> Any:
    """Arm A's model: the same shape under FSDP FULL_SHARD, with weights of its own, of the same speed."""
    import functools

    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
    from transformers import AutoModelForCausalLM, Qwen2Config

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(Qwen2Config(**{**SHAPE, "num_hidden_layers": layers}))
    model = model.to(torch.bfloat16)
    policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={type(model.model.layers[0])})

    def materialise(module: torch.nn.Module) -> None:
        module.to_empty(device="cuda", recurse=False)
        with torch.no_grad():
            for parameter in module.parameters(recurse=False):
                parameter.normal_(0.0, 0.02) if "Norm" not in type(module).__name__ else parameter.fill_(1)
            for buffer in module.buffers(recurse=False):
                buffer.normal_()

    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=policy,
        device_mesh=mesh,
        device_id=torch.cuda.current_device(),
        mixed_precision=MixedPrecision(param_dtype=torch.bfloat16),
        param_init_fn=materialise,
    ).eval()


def replays(bench: Bench, floor: float) -> None:
    """A table of captured passes; with --profile also of the kernels of some."""
    if bench.engine.slow_notice is not None:
        return
    bench.say("\n| rows | keys | ms a forward | forwards/s | share of the floor |\n|---|---|---|---|---|")
    for context in (1024, 8192):
        if context not in bench.options.contexts:
            continue
        bench.answer([bench.prompt(context)], 0, 1, 2)
        for width, kept in SIZES:
            seconds = bench.replay_seconds(width, kept, context - width)
            bench.say(f"| {width} | {context} | {seconds * 1e3:.2f} | {1 / seconds:.0f} | {floor / seconds:.0%} |")
    for tokens in bench.options.prefill:
        bench.say(f"\n{tokens} tokens read and a block of 8 chosen in {bench.prefill_seconds(tokens) * 1e3:.0f} ms")
    for rows in bench.options.profile:
        bench.say(f"\n{rows} rows:\n{bench.kernel_table(rows, min(rows, 128), 1024 - rows)}")


def measure(bench: Bench) -> None:
    """All arms of one rank; rank 0 prints."""
    options, group = bench.options, bench.group
    bandwidth = copy_bandwidth()
    facts = bench.loaded.facts
    # A forward looks up a few rows of the embeddings and reads all else.
    embeddings = bench.loaded.module.get_input_embeddings().weight
    weights = facts.bytes_per_rank - embeddings.numel() * embeddings.element_size()
    floor = weights / bandwidth
    read = facts.load_bytes
    bench.say(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {group.size} rank(s): {facts.parallel}\n"
        f"copy {bandwidth / 1e12:.2f} TB/s; a forward reads {weights / 1e9:.2f} GB of weights a rank: "
        f"{floor * 1e3:.2f} ms a forward at least\n"
        f"loading in all {bench.load_s:.1f} s, of it reading {facts.load_seconds:.1f} s "
        f"({read / 1e9:.1f} GB by this rank); reading the files and no more {bench.raw_s:.1f} s: "
        f"{bench.raw_s / facts.load_seconds:.0%} of the raw read speed\n"
    )
    started = time.perf_counter()
    bench.answer([bench.prompt(1024)], 7, 2, 24)
    bench.say(f"first reply with captures: {time.perf_counter() - started:.1f} s; {bench.engine.slow_notice}")
    replays(bench, floor)
    if options.asked:
        begun = bench.prompt(512 + NEW_TOKENS // 2, 1)[: NEW_TOKENS // 2]
        ways: dict[str, dict[str, Any]] = {"": {}, ", 5 log-probabilities each": {"logprobs": 5}}
        ways[f", after {len(begun)} of the reply's own (/continue)"] = {"begun": (begun,)}
        for words, asked in ways.items():
            seconds = bench.asked_seconds(**asked)
            bench.say(f"prompt of 512 read, {NEW_TOKENS // 2} tokens at N = 7, R = 2{words}: {seconds:.3f} s")
    arms: list[Any] = []
    plain = None
    if group.size > 1 and "A" in options.arms:
        plain = fsdp_model(options.layers)
    elif group.size == 1:
        plain = plain_model(bench)
    bench.say(f"\n| context | N | R | arm | {' | '.join(COLUMNS)} |\n|{'---|' * (4 + len(COLUMNS))}")

    def tell(rows: list[dict[str, Any]], context: int, n: int, rounds: int) -> None:
        """Rows of one cell; the last one's ratio is to the first."""
        if group.rank:
            return
        if len(rows) > 1:
            rows[-1]["ratio"] = rows[-1]["tok/s"] / rows[0]["tok/s"]
        for row in rows:
            row["% of the floor"] = 100 * row["fwd/s"] * floor
            arms.append({"context": context, "N": n, "R": rounds, **row})
            numbers = [f"{row[name]:.1f}" if name in row else "" for name in COLUMNS]
            bench.say(f"| {context} | {n} | {rounds} | {row['arm']} | {' | '.join(numbers)} |")

    for context in options.contexts:
        prompt = bench.prompt(context)
        cells = [(n, r) for n in options.n for r in options.r]
        for n, rounds in [(0, 1), *cells]:
            rows = []
            arm = "A" if group.size > 1 else "B"
            if n and (n, rounds) in options.slow and arm in options.arms:
                rows.append(arm_published(plain, arm, prompt, n, rounds))
            if "C" in options.arms:
                rows.append(bench.arm_ours(context, n, rounds))
            tell(rows, context, n, rounds)
    if options.batches:
        bench.say("\n| prompts | N | R | tok/s together | tok/s one by one | ratio |\n|---|---|---|---|---|---|")
    for count, n in ((count, n) for count in options.batches for n in options.n):
        together, alone = bench.batch(options.contexts[0], count, n, 2)
        bench.say(f"| {count} | {n} | 2 | {together:.0f} | {alone:.0f} | {together / alone:.2f} |")
    if options.late:
        bench.start_kernels_late()
        bench.say("\nkernels not started early:")
        bench.answer([bench.prompt(1024)], 7, 2, 24)
        replays(bench, floor)
        for n in (0, *options.n):
            tell([bench.arm_ours(options.contexts[0], n, 2 if n else 1)], options.contexts[0], n, 2 if n else 1)
    # Last: to compile takes minutes, and what is printed by then stays if time runs out.
    if "E" in options.arms and group.size == 1:
        context = options.contexts[0]
        tell([arm_generate(plain, bench.prompt(context)), bench.arm_ours(context, 0, 1)], context, 0, 1)
    if group.rank == 0 and options.json:
        Path(options.json).write_text(json.dumps(arms, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=None)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--parallel", default="auto")
    parser.add_argument("--arms", default="ABCDE")
    parser.add_argument("--contexts", type=int, nargs="*", default=[1024, 8192])
    parser.add_argument("--blocks", dest="n", type=int, nargs="*", default=[7, 31, 127])
    parser.add_argument("--rounds", dest="r", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--batches", type=int, nargs="*", default=[4, 16, 64], help="how many prompts together")
    parser.add_argument(
        "--profile", type=int, nargs="*", default=[], help="also the kernels of passes of so many rows"
    )
    parser.add_argument("--late", action="store_true", help="also with kernels that are not started early")
    parser.add_argument("--prefill", type=int, nargs="*", default=[], help="also the time to read so many tokens")
    parser.add_argument("--asked", action="store_true", help="also what --logprobs and /continue cost")
    parser.add_argument("--exact", action="store_true", help="as the program's --exact")
    parser.add_argument("--json", default="")
    parser.add_argument("--write", action="store_true", help="one rank's part of writing the checkpoint")
    parser.add_argument("--write_fsdp1", action="store_true", help="the same by FSDP1, on a GPU for each rank")
    parser.add_argument("--rank", action="store_true", help="one rank's part of the measurement")
    options = parser.parse_args()
    options.slow = [(n, 2) for n in options.n]
    folder = Path(options.folder or tempfile.mkdtemp())
    if options.write:
        write(folder, options.layers)
    elif options.write_fsdp1:
        write_fsdp1(folder, options.layers)
    elif options.rank:
        bench = Bench(folder, options)
        measure(bench)
        from chat.terminal.lifeline import LEAVE_S
        from chat.terminal.process import end_within

        end_within(LEAVE_S, 0)
        bench.engine.close()
    else:
        run_all(folder, options)


def run_all(folder: Path, options: argparse.Namespace) -> None:
    """Write the checkpoint, then start the ranks."""
    from ranks import torchrun

    environment = {**os.environ, "OMP_NUM_THREADS": "4", "HF_HUB_OFFLINE": "1"}
    if not (folder / "actor").exists():
        started = time.perf_counter()
        command = torchrun(WRITERS, __file__, str(folder), "--write", "--layers", str(options.layers))
        subprocess.run(command, env=environment, check=True)
        print(f"checkpoint written in {time.perf_counter() - started:.1f} s", flush=True)
    passed = [argument for argument in sys.argv[1:] if argument != str(options.folder)]
    subprocess.run(torchrun(options.ranks, __file__, str(folder), "--rank", *passed), env=environment, check=True)


if __name__ == "__main__":
    main()
