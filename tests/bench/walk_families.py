"""Walks the causal-LM families of the installed transformers: each built tiny, saved as shards, opened, answered.

PYTHONPATH=. python tests/bench/walk_families.py [FAMILY ...]

One line a family: same (the reply is the plain rule's, token for token), refused (and why), or not built
(transformers cannot make it this small). Ends with a summary.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import io
import json
import logging
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paths  # noqa: F401  # puts tests/support on the path
import torch
import transformers
from checkpoints import save_tokenizer
from field_models import save_as_verl_shards, wild
from plain_rule import plain_rule
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dist.checkpoint.open import open_checkpoint
from dist.decode.engine import Engine
from dist.errors import ChatError
from dist.group.group import SoloGroup
from dist.model.load import load_model
from dist.protocol import Control, Reply, Turn
from dist.settings import GenerationSettings

PROMPT = tuple(range(5, 25))
SETTINGS = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=12)
PLACEHOLDER, STOPS = 2, (2,)
MOST_PARAMETERS = 40_000_000
LONGEST_S = 60
TINY = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim", "embedding_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_inner", "ffn_hidden_size", "d_ff"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_head_kv"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token", "top_k_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_dim"), 24),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"), 256),
    **dict.fromkeys(("linear_num_key_heads", "n_shared_experts", "num_shared_experts"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "query_pre_attn_scalar"), 8),
    "vocab_size": 331,
    "head_dim": 8,
    "rotary_dim": 8,
    "linear_num_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "sliding_window": 16,
    "attention_window": 16,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "state_size": 8,
    "time_step_rank": 4,
    "embd_pdrop": 0.0,
}
# What some families need besides to be built this small.
LINEAR = ["linear_attention", "full_attention"]
MORE: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "use_mamba_kernels": False},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "qwen3_next": {"layer_types": LINEAR},
    "qwen3_5_text": {"layer_types": LINEAR},
    "qwen3_5_moe_text": {"layer_types": LINEAR},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "glm4_moe_lite": {"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "head_dim": 4},
    "glm_moe_dsa": {"qk_rope_head_dim": 8, "index_head_dim": 16, "index_n_heads": 2, "index_topk": 64},
    "reformer": {"is_decoder": True},
    "bert": {"is_decoder": True},
    "roberta": {"is_decoder": True},
    "electra": {"is_decoder": True},
    "gemma3n_text": {"layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0},
    "gemma4_text": {"vocab_size_per_layer_input": 331, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0},
    "zamba2": {"layer_types": ["mamba", "hybrid"]},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8, "chunk_size": 16, "n_groups": 1},
    "dbrx": {"attn_config": {"kv_n_heads": 2}, "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4}},
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one family."""

    family: str
    verdict: str
    why: str = ""


def main(asked: list[str]) -> int:
    """Walks the families; returns 1 if a reply differs."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    started = time.monotonic()
    outcomes = []
    for family in asked or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        outcomes.append(walk(family))
        print(f"{family:28} {outcomes[-1].verdict:10} {outcomes[-1].why}"[:200], flush=True)
    counts = Counter(one.verdict for one in outcomes)
    summary = ", ".join(f"{count} {what}" for what, count in counts.most_common())
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    print(f"\n{versions}: {len(outcomes)} families in {time.monotonic() - started:.0f} s: {summary}")
    return int(counts["DIFFERENT"] > 0)


def walk(family: str) -> Outcome:
    """One family, from its config to a reply."""
    try:
        with _at_most(LONGEST_S), contextlib.redirect_stdout(io.StringIO()):
            model = build(family)
    except Exception as error:  # noqa: BLE001  # whatever transformers says
        return Outcome(family, "not built", _short(error))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        try:
            with _at_most(LONGEST_S):
                expected = plain_rule(
                    functools.partial(model, use_cache=False), PROMPT, SETTINGS, PLACEHOLDER, STOPS
                )
                save(model, Path(folder))
        except Exception as error:  # noqa: BLE001
            return Outcome(family, "not built", f"does not answer text: {_short(error)}")
        try:
            with _at_most(LONGEST_S):
                got = answer(Path(folder))
        except ChatError as error:
            return Outcome(family, "refused", f"{error.what} {error.why}".replace(folder, ""))
        except Exception as error:  # noqa: BLE001
            return Outcome(family, "CRASHED", _short(error))
    return Outcome(family, "same") if got == expected else Outcome(family, "DIFFERENT", f"{got} {expected}")


def build(family: str) -> Any:
    """A tiny wild model. Raises whatever transformers raises."""
    kind = CONFIG_MAPPING[family]
    config = kind(**{**_tiny(kind), **MORE.get(family, {})})
    text = config.get_text_config()
    for name, value in TINY.items() if text is not config and family not in MORE else ():
        if isinstance(getattr(text, name, "absent"), (int, type(None))):
            setattr(text, name, value)
    torch.manual_seed(0)
    with torch.device("meta"):
        count = sum(one.numel() for one in transformers.AutoModelForCausalLM.from_config(config).parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(f"{count / 1e6:,.0f} M parameters at the smallest")
    # transformers' sdpa attention leaves a cap on the scores out.
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    eager = {"attn_implementation": "eager"} if capped else {}
    return wild(transformers.AutoModelForCausalLM.from_config(config, **eager))


def _tiny(kind: Any) -> dict[str, Any]:
    """The small values that this config class knows names for."""
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    known = fields | set(inspect.signature(kind.__init__).parameters) | set(getattr(kind, "attribute_map", {}))
    mapped = set(getattr(kind, "attribute_map", {}).values())
    return {
        name: value for name, value in TINY.items() if name in known and not (name in mapped and name not in known)
    }


def save(model: Any, folder: Path) -> Path:
    """As verl saves it: two shards, config and tokenizer beside them."""
    save_as_verl_shards(model.state_dict(), folder)
    model.config.save_pretrained(folder)
    save_tokenizer(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    return folder


def answer(folder: Path) -> tuple[int, ...]:
    """The reply of the program."""
    group = SoloGroup(torch.device("cpu"))
    loaded = load_model(open_checkpoint(folder), group, dtype="float32")
    engine = Engine(loaded.module, group, max_positions=loaded.max_positions, head=loaded.head)
    turn = Turn(prompts=(PROMPT,), settings=SETTINGS, placeholder=PLACEHOLDER, stop_ids=STOPS)
    events = list(engine.answer(turn, lambda: Control(settings=SETTINGS)))
    reply = events[-1]
    assert isinstance(reply, Reply)
    return reply.token_ids


@contextlib.contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def stop(signum: int, frame: Any) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _short(error: Exception) -> str:
    lines = [line.strip() for line in (str(error) or repr(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''} {lines[-1] if len(lines) > 1 else ''}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
