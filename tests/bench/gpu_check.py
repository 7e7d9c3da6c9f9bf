"""What no CPU can check: `python tests/bench/gpu_check.py [FAMILY ...]`. Needs a GPU; ends with 1 if a check fails.

The kernels against float64, and captured passes against the plain rule, token for token in float32, for
every family of tiny_models.py; storage behind what is in use is poisoned. With families named, only those.
Only mixtures of experts may run uncaptured. In 16 bits a Llama's layers must all be found to be the usual ones.
"""

from __future__ import annotations

import copy
import itertools
import random
import sys
import time

import paths  # noqa: F401
import torch
import torch.nn.functional as F
from plain_rule import plain_rule
from tiny_models import FAMILIES, VOCABULARY, tiny_model

from dist.decode.engine import Engine
from dist.group.group import SoloGroup
from dist.kernels.attention import Segments, reference_attention
from dist.kernels.closeness import logits_agree
from dist.kernels.ops import product, rms_norm, silu_product
from dist.kernels.split_kv import split_kv_attention
from dist.model.fuse import fuse
from dist.model.fused_modules import UsualLayer
from dist.protocol import Control, Reply, Turn
from dist.settings import GenerationSettings

HEADS = ((28, 4, 128), (9, 3, 64), (4, 2, 80))
SHAPES = ((3584, 4608), (576, 130), (8192, 2100), (9000, 2048))
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def kernels() -> bool:
    """Relative errors over head counts, rows, lengths, windows and caps."""
    worst = dict.fromkeys(TOLERANCE, 0.0)
    for dtype, (heads, key_heads, size) in itertools.product(TOLERANCE, HEADS):
        for rows, start, (window, cap) in itertools.product((1, 8, 128), (0, 77, 3000), ((0, 0.0), (50, 5.0))):
            # Two sequences, each in slots of its own; of the second one fewer tokens. Other slots are poisoned.
            capacity, fewer = start + rows + 100, max(1, rows // 3)
            table = [[0, rows, start, 0], [rows, fewer, start // 2, capacity]]
            q = torch.randn(rows + fewer, heads, size, device="cuda", dtype=dtype).transpose(0, 1)
            k, v = (torch.randn(key_heads, 2 * capacity, size, device="cuda", dtype=dtype) for _ in range(2))
            for _, length, before, slot in table:
                for storage in (k, v):
                    storage[:, slot + before + length : slot + capacity] = torch.nan
            segments = Segments(torch.tensor(table, device="cuda"), rows)
            more = {"scale": size**-0.5, "window": window, "softcap": cap}
            ours = split_kv_attention(q, k, v, segments.table_S4, segments.longest, **more).double()
            exact = reference_attention(q.double(), k.double(), v.double(), segments, **more)
            worst[dtype] = max(worst[dtype], float((ours - exact).norm() / exact.norm()))
    print(f"attention kernels, worst relative error: {worst}", flush=True)
    return all(worst[dtype] < limit for dtype, limit in TOLERANCE.items())


def steps() -> bool:
    """Relative errors of products, norms and gates over shapes that do and do not fill their tiles."""
    worst = dict.fromkeys(TOLERANCE, 0.0)
    for dtype, rows, (inputs, outputs) in itertools.product(TOLERANCE, (1, 8, 15, 32, 33), SHAPES):
        x, added = (torch.randn(rows, size, device="cuda", dtype=dtype) for size in (inputs, outputs))
        weight, bias, gain = (
            torch.randn(*size, device="cuda", dtype=dtype) for size in ((outputs, inputs), (outputs,), (inputs,))
        )
        exact_x, exact_weight = x.double(), weight.double()
        total = exact_x + x.flip(0).double()
        normed = F.rms_norm(total, (inputs,), gain.double(), 1e-6)
        gate, other = total[:, : inputs // 2], total[:, inputs // 2 :]
        heads = x[:, :100].view(1, rows, 2, 50)
        x_sum, x_normed = rms_norm(x, gain, 1e-6, x.flip(0))
        for ours, exact in (
            (product(x, weight, bias), exact_x @ exact_weight.T + bias.double()),
            (product(x, weight, None, added.clone()), exact_x @ exact_weight.T + added.double()),
            (x_sum, total),
            (x_normed, normed),
            (silu_product(x_sum), F.silu(gate) * other),
            (rms_norm(heads, gain[:50], 1e-6)[1], F.rms_norm(heads.double(), (50,), gain[:50].double(), 1e-6)),
        ):
            worst[dtype] = max(worst[dtype], float((ours.double() - exact).norm() / exact.norm()))
    print(f"products, norms and gates, worst relative error: {worst}", flush=True)
    return all(worst[dtype] < limit for dtype, limit in TOLERANCE.items())


def exactness() -> bool:
    """A row's bits, in products and in attention, whatever stands beside it."""
    from dist.kernels.exact_attention import exact_attention
    from dist.kernels.few_rows import Tile, few_rows_product, many_rows_tile

    others, count = [], 0
    for dtype, (inputs, outputs) in itertools.product((torch.bfloat16, torch.float16), SHAPES):
        x, weight = (torch.randn(size, inputs, device="cuda", dtype=dtype) for size in (400, outputs))
        right = few_rows_product(x[:16], weight, None, None)
        for rows, tile in itertools.product((1, 7, 16, 33, 64, 200, 400), ((), (Tile(32, 128, 4), 32), None)):
            ours = product(x[:rows], weight, None, exact=True)
            if tile is not None:
                ours = few_rows_product(x[:rows], weight, None, None, *(tile or many_rows_tile(rows, outputs)))
            count += 1
            if not torch.equal(ours[:16], right[:rows]):
                others.append(f"product {dtype} {inputs} x {outputs}, {rows} rows, {tile}")
    capacity = 9000
    for (heads, key_heads, size), start, (window, cap) in itertools.product(
        HEADS, (0, 250, 1000, 8000), ((0, 0.0), (300, 5.0))
    ):
        q = torch.randn(300, heads, size, device="cuda", dtype=torch.bfloat16)
        k, v = (torch.randn(key_heads, 2 * capacity, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        right = None
        # From a later token on, fewer or more of them, and a second sequence beside them.
        for first, rows, beside in ((0, 16, 0), (0, 1, 0), (5, 3, 0), (0, 8, 40), (0, 100, 0), (5, 200, 60)):
            table = [[0, rows, start + first, 0]] + ([[rows, beside, 77, capacity]] if beside else [])
            query = torch.cat([q[first : first + rows], q[-beside:] if beside else q[:0]]).transpose(0, 1)
            places = torch.tensor(table, device="cuda")
            more = {"scale": size**-0.5, "window": window, "softcap": cap}
            ours = exact_attention(query, k, v, places, max(rows, beside), capacity, **more)
            right = ours if right is None else right
            part = right[first : first + rows]
            count += 1
            if not torch.equal(ours[: len(part)], part):
                others.append(f"attention {heads}/{key_heads} {size}, window {window}, {rows} from {start + first}")
    print(f"exactness: {count} comparisons, others: {others or 'none'}", flush=True)
    return not others


@torch.no_grad()
def replacements() -> bool:
    """Every layer of a Llama in 16 bits is replaced, and the logits stay."""
    fine = True
    for dtype in (torch.bfloat16, torch.float16):
        model = copy.deepcopy(tiny_model("llama")).to("cuda", dtype)
        ids = torch.arange(3, 20, device="cuda").unsqueeze(0)
        before = model(ids).logits
        fuse(model, SoloGroup(torch.device("cuda")))
        kinds = [type(layer).__name__ for layer in model.model.layers]
        same = logits_agree(model(ids).logits, before)
        print(f"layers of a Llama in {dtype}: {kinds}, logits {'the same' if same else 'OTHERS'}", flush=True)
        fine &= same and set(kinds) == {UsualLayer.__name__}
    return fine


def replies(engine: Engine, prompts: list[tuple[int, ...]], settings: GenerationSettings) -> list[tuple[int, ...]]:
    """The replies of one turn."""
    turn = Turn(prompts=tuple(prompts), settings=settings, placeholder=2, stop_ids=(2, 7))
    events = engine.answer(turn, lambda: Control(settings=settings))
    found = {event.row: event.token_ids for event in events if isinstance(event, Reply)}
    return [found[row] for row in range(len(prompts))]


def family(name: str) -> bool:
    """Replies of captured passes against the plain rule: two turns each, then several prompts at once."""
    model = tiny_model(name).cuda()
    group = SoloGroup(torch.device("cuda"))
    fuse(model, group)
    engine = Engine(model, group, max_positions=512)
    draw = random.Random(0)
    same = count = 0
    started = time.monotonic()
    for n, rounds in ((0, 1), (3, 2), (7, 3), (7, "auto"), (31, 2)):
        prompt = tuple(draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(1, 150)))
        for _ in range(2):
            settings = GenerationSettings(
                add_eos_length=n, refine_iter=rounds, max_new_tokens=draw.randrange(1, 40), max_length=500
            )
            with torch.device("cuda"):
                expected = plain_rule(model, prompt, settings, 2, (2, 7), 512)
            (reply,) = replies(engine, [prompt], settings)
            same += reply == expected
            count += 1
            prompt = (*prompt, *reply, *(draw.randrange(3, VOCABULARY) for _ in range(9)))
    forward = type(engine.forwards.alone).__name__
    common = tuple(draw.randrange(3, VOCABULARY) for _ in range(40))
    for n, rounds in ((3, 2), (7, "auto"), (31, 2)):
        settings = GenerationSettings(add_eos_length=n, refine_iter=rounds, max_new_tokens=30, max_length=500)
        prompts = [
            common[: draw.randrange(40)]
            + tuple(draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(1, 60)))
            for _ in range(11)
        ]
        for prompt, reply in zip(prompts, replies(engine, prompts, settings)):
            with torch.device("cuda"):
                same += reply == plain_rule(model, prompt, settings, 2, (2, 7), 512)
            count += 1
    forward += f", batches {type(engine.forwards.batch).__name__}"
    print(
        f"{name}: {same} of {count} replies the same, {forward}, {time.monotonic() - started:.1f} s; "
        f"{engine.slow_notice or 'captured'}",
        flush=True,
    )
    return same == count and (engine.slow_notice is None or "experts" in name)


if __name__ == "__main__":
    torch.backends.cuda.matmul.allow_tf32 = False
    asked = sys.argv[1:]
    fine = [
        *([] if asked else [kernels(), steps(), exactness(), replacements()]),
        *(family(name) for name in asked or FAMILIES),
    ]
    sys.exit(0 if all(fine) else 1)
