"""What rank 0 sends: an order is one JSON object, a verdict a few numbers. Knows no sockets; unpickles nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dist.protocol import BlockUpdate, Control, Event, Load, Order, PrefillUpdate, Reply, ReplyStats, Shutdown, Turn
from dist.settings import SETTINGS, GenerationSettings, pack_settings, unpack_settings

Poll = Callable[[], Control]
# In a verdict: no stop text ends the reply.
NOWHERE = -1

_KINDS: dict[str, type[Turn] | type[Load] | type[Shutdown]] = {
    kind.__name__: kind for kind in (Turn, Load, Shutdown)
}


def order_to_bytes(order: Order) -> bytes:
    """One order as UTF-8 JSON."""
    fields = dataclasses.asdict(order)
    return json.dumps({"order": type(order).__name__, **fields}, separators=(",", ":")).encode()


def order_from_bytes(data: bytes) -> Order:
    """The order that `order_to_bytes` wrote; raises ValueError for anything else."""
    fields: dict[str, Any] = json.loads(data)
    kind = _KINDS.get(fields.pop("order", ""))
    if kind is None:
        raise ValueError("not an order")
    if kind is Turn:
        fields["settings"] = GenerationSettings(**fields["settings"])
        fields["prompts"] = tuple(tuple(prompt) for prompt in fields["prompts"])
        fields["stop_ids"] = tuple(fields["stop_ids"])
        own = fields["row_settings"]
        fields["row_settings"] = None if own is None else tuple(GenerationSettings(**one) for one in own)
        fields["changes"] = tuple(
            tuple((at, GenerationSettings(**later)) for at, later in changes) for changes in fields["changes"]
        )
        for name in ("earlier", "begun"):
            fields[name] = tuple(tuple(tokens) for tokens in fields[name])
    return kind(**fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What rank 0 says after a pass: its tokens, whether to stop, the settings of the next block.

    `ends` has an entry for each reply: after how many of the tokens that it takes now a stop text ends it, or None.
    Settings that only rank 0 obeys stay there.
    """

    token_ids: list[int]
    ends: list[int | None]
    settings: GenerationSettings
    cancel: bool

    @classmethod
    def of(
        cls, poll: Poll | None, settings: GenerationSettings, token_ids: list[int], ends: Sequence[int | None]
    ) -> Verdict:
        control = poll() if poll is not None else Control(settings=settings)
        return cls(token_ids=token_ids, ends=list(ends), settings=control.settings, cancel=control.cancel)

    def packed(self) -> torch.Tensor:
        """int64 [1 + settings + replies + tokens]."""
        ends = [NOWHERE if end is None else end for end in self.ends]
        return torch.tensor([self.cancel, *pack_settings(self.settings), *ends, *self.token_ids], dtype=torch.int64)

    @classmethod
    def unpacked(cls, packed: torch.Tensor, replies: int) -> Verdict:
        """What `packed` holds of the tokens of so many replies."""
        cancel, *numbers = packed.tolist()
        settings, rest = numbers[: len(SETTINGS)], numbers[len(SETTINGS) :]
        return cls(
            token_ids=rest[replies:],
            ends=[None if end == NOWHERE else end for end in rest[:replies]],
            settings=unpack_settings(settings),
            cancel=bool(cancel),
        )


_EVENTS: dict[str, type[PrefillUpdate] | type[BlockUpdate] | type[Reply]] = {
    kind.__name__: kind for kind in (PrefillUpdate, BlockUpdate, Reply)
}


def event_to_fields(event: Event) -> dict[str, Any]:
    """An event as plain values."""
    return {"event": type(event).__name__, **dataclasses.asdict(event)}


def event_from_fields(fields: dict[str, Any]) -> Event:
    """The event that `event_to_fields` took apart, from what JSON leaves of it; raises ValueError otherwise."""
    values = {name: _as_tuples(value) for name, value in fields.items()}
    kind = _EVENTS.get(values.pop("event", ""))
    if kind is None:
        raise ValueError("not an event")
    if kind is Reply:
        values["settings"] = GenerationSettings(**values["settings"])
        values["stats"] = ReplyStats(**{name: _as_tuples(value) for name, value in values["stats"].items()})
    return kind(**values)


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(one) for one in value) if isinstance(value, list) else value
