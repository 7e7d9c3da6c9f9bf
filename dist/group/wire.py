"""Orders as plain bytes, one JSON object each. Knows no sockets; nothing here is ever unpickled."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from dist.protocol import Load, Order, Shutdown, Turn
from dist.settings import GenerationSettings

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
    return kind(**fields)
