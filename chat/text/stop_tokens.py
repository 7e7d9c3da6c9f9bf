"""Which token ids end a reply, and why each of them does. Knows no conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from chat.text.template import ChatTemplate
from dist.checkpoint.ledger import Entry, short
from dist.errors import CheckpointError

if TYPE_CHECKING:
    from chat.text.tokenizer import TokenizerOptions

TURN_END = "the chat template ends turns with it"


def model_eos(generation_config: Mapping[str, Any], options: TokenizerOptions) -> tuple[Entry, ...]:
    """What becomes of eos_token_id in config.json."""
    if options.model_eos is None:
        return ()
    used = generation_config.get("eos_token_id") is None
    why = "ends replies" if used else "generation_config.json names what ends replies"
    return (Entry("config.json", "eos_token_id", used, why, short(options.model_eos)),)


def ends_of(
    backend: Any, generation_config: Mapping[str, Any], options: TokenizerOptions, template: ChatTemplate | None
) -> dict[int, str]:
    """The ids that end a reply, each with the reason."""
    ends = {int(backend.eos_token_id): "EOS"}
    named = _stop_ids(generation_config.get("eos_token_id"), "generation_config.json")
    ends.update((one, "generation_config.json") for one in named if one not in ends)
    if generation_config.get("eos_token_id") is None:
        of_model = _stop_ids(options.model_eos, "config.json")
        ends.update((one, "config.json") for one in of_model if one not in ends)
    if template is not None:
        after = template.behaviour.turn_end.lstrip()
        added = sorted(backend.added_tokens_decoder.items(), key=lambda item: -len(item[1].content))
        end = next((number for number, token in added if after.startswith(token.content)), None)
        if end is not None:
            ends.setdefault(end, TURN_END)
    return ends


def _stop_ids(named: Any, file: str) -> tuple[int, ...]:
    """The ids under `eos_token_id`, which may be missing, null, a number or a list of numbers."""
    ids = named if isinstance(named, list) else [] if named is None else [named]
    if any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in ids):
        raise CheckpointError(
            f"In the checkpoint's {file}, eos_token_id cannot be {named!r}.",
            "It takes a token id or a list of token ids.",
            "Correct the file.",
        )
    return tuple(ids)
