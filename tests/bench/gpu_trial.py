"""A conversation on GPUs: `python tests/bench/gpu_trial.py [FOLDER] [--ranks N]`. Needs N GPUs; no pytest.

Writes checkpoints on the GPUs with the torch calls that verl makes (FSDP1 and FSDP2, NCCL), then talks to them
through run_chat.sh: a prompt on N ranks, on one, and on one by `--decoder plain`, which must choose the same tokens
in float32, as must many prompts together and one by one; and a conversation in a real terminal with a reply that is
stopped, a setting changed in its middle and other weights loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paths  # noqa: F401
import torch
from checkpoints import save_as_verl_does, save_tokenizer
from program import Chat, in_mid_reply, listening, run_chat
from pty_screen import CTRL_C, CTRL_D
from ranks import torchrun

PROMPT = "Solve: 25 * 4 = ?"
WRITTEN = ("fsdp1", "fsdp2")
BLOCK, ROUNDS, PROMPTS = 8, 2, 100
SHORT = ("--max_new_tokens", "96", "--add_eos_length", str(BLOCK - 1), "--refine_iter", str(ROUNDS))
# Float32 sums in another order may choose otherwise where two logits are as near as this.
NEAR_TIE = 1e-4


def write(folder: Path) -> None:
    """One rank's part of writing FSDP1 and FSDP2 checkpoints of a random model of 0.5 billion parameters."""
    import torch.distributed as torch_dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch_dist.init_process_group("nccl")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    mesh = init_device_mesh("cuda", (torch_dist.get_world_size(),), mesh_dim_names=("fsdp",))
    for version in (1, 2):
        root = folder / f"fsdp{version}"
        tokenizer = save_tokenizer(root / f"tokenizer-{torch_dist.get_rank()}")
        config = Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            num_key_value_heads=2,
            eos_token_id=tokenizer.eos_token_id,
            initializer_range=0.05,
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).to(device, torch.bfloat16)
        # Never chosen, so that no reply ends before it is to.
        model.lm_head.weight.data[tokenizer.eos_token_id] = 0
        layer = type(model.model.layers[0])
        if version == 1:
            model = FullyShardedDataParallel(
                model,
                device_id=device,
                device_mesh=mesh,
                auto_wrap_policy=ModuleWrapPolicy({layer}),
            )
        else:
            for module in list(model.model.layers):
                fully_shard(module, mesh=mesh)
            fully_shard(model, mesh=mesh)
        save_as_verl_does(model, tokenizer, root / "global_step_7" / "actor", version)
        (root / "latest_checkpointed_iteration.txt").write_text("7")
        del model
    torch_dist.barrier()
    torch_dist.destroy_process_group()


@dataclass(frozen=True)
class Way:
    """One way to answer the prompt: on how many ranks, spread how, by which decoder."""

    ranks: int
    parallel: str = "auto"
    decoder: str = "cached"


def usual_ways(ranks: int, dtype: str) -> list[Way]:
    """`ranks` ranks, one rank, and in float32 also one that recomputes everything and layers gathered when used."""
    ways = [Way(ranks), Way(1)] if ranks > 1 else [Way(1)]
    if dtype == "float32":
        ways += [Way(1, decoder="plain"), *([Way(ranks, "fsdp")] if ranks > 1 else [])]
    return ways


def same_tokens(home: Path, checkpoint: Path, ways: Sequence[Way], dtype: str) -> None:
    """Print whether all ways choose the same tokens, which in float32 they must."""

    def answer(way: Way) -> tuple[dict[str, Any], float]:
        began = time.monotonic()
        arguments = ("--dtype", dtype, "--parallel", way.parallel, "--decoder", way.decoder, "--json")
        done = run_chat(home, str(way.ranks), str(checkpoint), PROMPT, *SHORT, *arguments, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1]), time.monotonic() - began

    # Side by side, since most of it is starting.
    with ThreadPoolExecutor(len(ways)) as pool:
        found = list(pool.map(answer, ways))
    first = found[0][0]["token_ids"]
    for way, (reply, seconds) in zip(ways, found):
        same = sum(a == b for a, b in zip(first, reply["token_ids"]))
        print(
            f"{checkpoint.name} {dtype} on {way.ranks}, {way.parallel}, {way.decoder}: "
            f"{len(reply['token_ids'])} tokens, {same} the same, {seconds:.1f} s in all",
            flush=True,
        )
    assert dtype != "float32" or all(reply["token_ids"] == first for reply, _ in found)


def same_in_batches(home: Path, checkpoint: Path, ranks: int) -> None:
    """Print how long prompts take by copies, by one model cut over all, and one by one: in float32 all the same."""
    prompts, texts = home / "prompts.txt", [f"Solve: {number} * 4 = ?" for number in range(PROMPTS)]
    prompts.parent.mkdir(parents=True, exist_ok=True)
    prompts.write_text("".join(f"{text}\n" for text in texts))
    ways: list[tuple[str, ...]] = [("--parallel", "auto"), ("--batch_size", "1")]
    ways += [("--parallel", "tp")] if ranks > 1 else []

    def answer(way: tuple[str, ...]) -> tuple[list[list[int]], float]:
        results = home / f"results{way[0]}{way[1]}.jsonl"
        arguments = ("--prompts_file", str(prompts), "--output_file", str(results), "--dtype", "float32")
        arguments += ("--no-use_chat_template",)
        began = time.monotonic()
        done = run_chat(home, str(ranks), str(checkpoint), *SHORT, *arguments, *way, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        tokens = [json.loads(line)["token_ids"] for line in results.read_text().splitlines()]
        return tokens, time.monotonic() - began

    with ThreadPoolExecutor(len(ways)) as pool:
        found = list(pool.map(answer, ways))
    for way, (tokens, seconds) in zip(ways, found):
        same = sum(a == b for a, b in zip(found[0][0], tokens))
        print(
            f"{checkpoint.name} on {ranks}, {PROMPTS} prompts {' '.join(way)}: {sum(map(len, tokens))} tokens, "
            f"{same} replies the same, {seconds:.1f} s in all",
            flush=True,
        )
    margins = []
    for tokens, _ in found[1:]:
        for text, one, other in zip(texts, found[0][0], tokens):
            if one != other:
                place = next(i for i, (a, b) in enumerate(zip(one, other)) if a != b)
                margins.append(margin(checkpoint, text, one, place))
                print(f"{text!r} differs from token {place} on: margin {margins[-1]:.1e} in float64", flush=True)
    assert all(one < NEAR_TIE for one in margins)


@torch.no_grad()
def margin(checkpoint: Path, text: str, reply: list[int], place: int) -> float:
    """How near the second highest logit comes, in float64, in the block's passes at `place` and before it."""
    from transformers import AutoTokenizer

    from dist.checkpoint.open import open_checkpoint
    from dist.group.group import SoloGroup
    from dist.model.load import load_model

    opened, device = open_checkpoint(checkpoint), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(opened, SoloGroup(torch.device("cpu")), dtype="float32").module.to(device, torch.float64)
    prompt = AutoTokenizer.from_pretrained(opened.tokenizer_dir)(text)["input_ids"]
    begin = place - place % BLOCK
    prefix, draft, least = prompt + reply[:begin], [opened.config["eos_token_id"]] * BLOCK, float("inf")
    for _ in range(ROUNDS):
        ids = torch.tensor([prefix + draft[: BLOCK - 1]], device=device)
        logits = model(ids, use_cache=False).logits[0, len(prefix) - 1 :]
        highest = logits.topk(2).values[: place - begin + 1]
        least = min(least, float((highest[:, 0] - highest[:, 1]).min()))
        draft = logits.argmax(dim=-1).tolist()
    return least


def converse(home: Path, checkpoint: Path, other: Path, ranks: int) -> None:
    """A few turns in a terminal with both checkpoints; prints the screen at its end."""
    began = time.monotonic()
    with Chat(home, str(ranks), str(checkpoint), *SHORT) as chat:
        print(f"{checkpoint.name} on {ranks}: ready in {time.monotonic() - began:.1f} s", flush=True)
        listened = {rank: listening(process) for rank, process in chat.ranks().items()}
        print(f"listening, by rank: {listened}", flush=True)
        assert all(place.startswith("127.0.0.1:") for places in listened.values() for place in places)
        chat.say("Hello there")
        chat.wait_for("96 tokens (the limit)")
        chat.say("/max_new_tokens 6000")
        chat.wait_for("max_new_tokens is 6000.")
        chat.say("A long one")
        chat.wait_for(in_mid_reply)
        chat.say("/refine_iter 4")
        chat.wait_for("refine_iter is 4 from the next block on.")
        chat.send(CTRL_C)
        chat.wait_for("[stopped]")
        chat.say("/max_new_tokens 32")
        began = time.monotonic()
        chat.say(f"/load {other}")
        chat.wait_for("answers from here on")
        print(f"{other.name} loaded in {time.monotonic() - began:.1f} s", flush=True)
        chat.say("And now?")
        chat.say("/model")
        chat.wait_for("memory per rank")
        chat.wait_for("32 tokens (the limit)")
        screen = chat.text
        chat.send(CTRL_D)
        assert chat.wait_end() == 0, chat.text
        assert chat.mode == chat.mode_before
        print(screen)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", default=tempfile.mkdtemp())
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=["tokens", "batches", "talk"], help="what to try")
    parser.add_argument("--open", type=Path, help="only open this checkpoint, in every way")
    parser.add_argument("--write", action="store_true", help="one rank's part of writing the checkpoints")
    options = parser.parse_args()
    folder = Path(options.folder)
    if options.write:
        write(folder)
        return
    if options.open is not None:
        several = [Way(options.ranks, parallel) for parallel in ("auto", "tp", "fsdp")]
        same_tokens(folder / "home", options.open, [*several, Way(1)], "bfloat16")
        same_tokens(folder / "home", options.open, [Way(options.ranks), Way(1)], "float32")
        return
    if not (folder / "fsdp2").exists():
        subprocess.run(torchrun(options.ranks, __file__, str(folder), "--write"), check=True)
    home = folder / "home"
    if "tokens" in options.only:
        with ThreadPoolExecutor(2) as pool:
            for dtype in ("float32", "bfloat16") if options.ranks > 1 else ("float32",):
                ways = usual_ways(options.ranks, dtype)
                list(pool.map(same_tokens, *zip(*((home, folder / name, ways, dtype) for name in WRITTEN))))
    if "batches" in options.only:
        same_in_batches(home, folder / "fsdp2", options.ranks)
    if "talk" in options.only:
        converse(home, folder / "fsdp2", folder / "fsdp1", options.ranks)
    print("all fine")


if __name__ == "__main__":
    main()
