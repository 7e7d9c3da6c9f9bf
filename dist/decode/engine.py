"""Token ids in, token ids out, on all ranks together. Knows no text, no keyboard and no screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from dist.decode.batch_size import rows_together
from dist.decode.causality import probe_causality
from dist.decode.drafts import Drafts, drafts_for
from dist.decode.forward import UNBOUNDED, PlainForward
from dist.decode.logprobs import score
from dist.decode.planner import SequenceForward
from dist.decode.replies import Replies
from dist.decode.rule import Refinement
from dist.errors import CheckpointError, PromptError
from dist.group.wire import Poll
from dist.model.fill import OnProgress
from dist.model.head import Head, WholeHead
from dist.model.memory import free_bytes
from dist.model.onednn import pack, unpack
from dist.model.reload import Ready, Reloader
from dist.protocol import (
    Control,
    EndsAt,
    Event,
    Group,
    Load,
    Reply,
    Shutdown,
    Turn,
)
from dist.settings import GenerationSettings

CHUNK_CPU = 256
CHUNK_GPU = 2048
# Prompts that are read by different kernels: of few rows, of some, of many.
WARM_UP_TOKENS = 25, 100, 1025


class Engine:
    """A model on all ranks, answering one turn at a time.

    Rank 0 calls `answer`, `load` and `shutdown`; every other rank calls `follow`.
    `slow_reason` says in words why this model is decoded by the plain rule, or is None. Without a `reloader` the
    weights stay as they are. `head` says which tokens' logits this rank computes, by default all.
    `packed` holds the weights of the module given as `dist.model.onednn` does. `captured` says that they stay in
    place between forwards, so that a GPU's passes can be captured. `drafts` makes what fills the window of a turn's
    row, the same on every rank. `ends` finds stop texts, on the rank that leads. `forwards` makes the passes, and
    `chunk` is how many tokens of a prompt are read in one; both suit the device by default.
    """

    slow_reason: str | None

    def __init__(
        self,
        module: Any,
        group: Group,
        *,
        max_positions: int | None,
        reloader: Reloader | None = None,
        head: Head | None = None,
        packed: bool = False,
        captured: bool = True,
        drafts: Callable[[Turn, int], Drafts] = drafts_for,
        ends: EndsAt | None = None,
        forwards: SequenceForward | None = None,
        chunk: int | None = None,
    ) -> None:
        self.max_positions = max_positions
        self._group = group
        self.module = module
        self._reloader = reloader
        self._drafts = drafts
        self._ends = ends
        self._packed = packed
        if packed:
            pack(module)
        self._head = head or WholeHead()
        self._plain = PlainForward(module, self._head)
        self.forwards = forwards or SequenceForward(module, self._head, group, max_positions, captured=captured)
        self._chunk = chunk or (CHUNK_GPU if group.device.type == "cuda" else CHUNK_CPU)
        self._examine()

    def _examine(self) -> None:
        """Find out what can be relied on with these weights."""
        self._causality = probe_causality(self.module, self._head)
        self.slow_reason = self._causality.problem

    @property
    def captures(self) -> bool:
        """Whether passes are to be captured as CUDA graphs, so that a warm-up pays."""
        return self.forwards.captures

    @property
    def slow_notice(self) -> str | None:
        """Why answers take longer than they might, as a sentence, or None."""
        if self.slow_reason is not None:
            greedy = "" if self._causality.causal else " Its replies at refine_iter auto are not greedy."
            return f"Every pass recomputes the whole sequence, which is slow: {self.slow_reason}.{greedy}"
        return self.forwards.notice

    @property
    def auto_length(self) -> int:
        """How many placeholders pay at `auto` on this device; GPUs compute 16 rows in the time of fewer."""
        return 15 if self._group.device.type == "cuda" else 7

    @property
    def cached_tokens(self) -> int:
        """Tokens in the KV cache, left from the last turn."""
        return len(self.forwards.token_ids)

    def answer(self, turn: Turn, poll: Poll) -> Iterator[Event]:
        """Rank 0: answer a turn on all ranks; `poll` is asked once per pass for what the user wants.

        Leaving the iterator early cancels the turn everywhere. Raises PromptError before anything is
        published if a prompt is empty or leaves no room for a reply.
        """
        for row, prompt in enumerate(turn.prompts):
            limit = min(turn.settings_of(row).max_length, self.max_positions or UNBOUNDED)
            if not prompt:
                raise PromptError("The prompt is empty.", "It has no tokens.", "Write something.")
            begun = len(turn.begun_of(row))
            if len(prompt) >= limit or len(prompt) + begun > limit:
                raise PromptError(
                    f"The prompt has {len(prompt) + begun} tokens.",
                    f"Prompt and reply together may have {limit}.",
                    "Shorten the prompt or raise max_length.",
                )
        self._group.publish(turn)
        abandoned = False

        def wanted() -> Control:
            control = poll()
            return replace(control, cancel=True) if abandoned else control

        events = self.run(turn, wanted)
        try:
            # Not `yield from`: it would close the inner generator first.
            for event in events:
                yield event
        finally:
            abandoned = True
            for _ in events:
                pass

    def rows_that_fit(self, tokens: int, block: int) -> int:
        """How many prompts to put into one turn now, where the longest with its reply has `tokens`.

        `block` is how many tokens are chosen in a pass. This rank's memory counts; all ranks hold equal models.
        """
        free = free_bytes(self._group.device) + self.forwards.batch_bytes
        return rows_together(
            self.module,
            tokens,
            block,
            free,
            gpu=self._group.device.type == "cuda",
        )

    def follow(self) -> None:
        """Followers: work on rank 0's orders until it shuts down."""
        while True:
            order = self._group.receive()
            if isinstance(order, Shutdown):
                return
            try:
                if isinstance(order, Load):
                    self._swap(order)
                else:
                    for _ in self.run(order, None):
                        pass
            except (PromptError, CheckpointError):
                # Every rank raised it at the same place; rank 0 reports it.
                continue

    def load(self, ready: Ready, progress: OnProgress | None = None) -> None:
        """Rank 0: take over the weights of a checkpoint that the reloader has checked, on all ranks.

        Raises CheckpointError if any rank cannot (the old weights answer on), WeightsLost if none are left.
        """
        order = Load(path=str(ready.checkpoint.path.absolute()), digest=ready.digest, whole=ready.whole)
        self._group.publish(order)
        self._swap(order, ready, progress)

    def take_over(self, order: Load) -> None:
        """The first rank of another copy: what rank 0 has loaded, on all of its ranks. Raises as `load` does."""
        assert self._reloader is not None
        self.load(replace(self._reloader.check_same(order), whole=order.whole))

    def _swap(self, order: Load, ready: Ready | None = None, progress: OnProgress | None = None) -> None:
        assert self._reloader is not None
        if self._packed:
            unpack(self.module)
        try:
            self._reloader.swap(order, ready, progress)
        finally:
            if self._packed:
                pack(self.module)
        # The weights are where the old ones were, so captured passes hold; what they computed does not.
        self.forwards.forget()
        self._examine()

    def warm_up(self, settings: GenerationSettings) -> None:
        """Rank 0: answer turns of no meaning, so that the first real one finds all kernels ready.

        What they leave in the cache is exact and the same on all ranks.
        """
        new = 2 * (settings.add_eos_length + 1)
        # Two passes a block are of both sizes; more, as may be asked for, would only take time.
        short = replace(settings, max_new_tokens=new, temperature=0.0)
        if settings.refine_iter != "auto":
            short = replace(short, refine_iter=2)
        longest = max(1, min(short.max_length, self.max_positions or UNBOUNDED) // 2)
        # Each of another token: what prompts share is not read again.
        for token, length in enumerate(WARM_UP_TOKENS, start=1):
            turn = Turn(prompts=((token,) * min(length, longest),), settings=short, placeholder=1, stop_ids=())
            for _ in self.answer(turn, lambda: Control(settings=short)):
                pass

    def shutdown(self) -> None:
        """Rank 0: let the followers go."""
        self._group.publish(Shutdown())

    def close(self) -> None:
        """All ranks, after the last turn: destroy captured graphs, then leave the group."""
        self.forwards.close()
        self._group.close()

    def run(self, turn: Turn, poll: Poll | None) -> Iterator[Event]:
        """All ranks: answer a turn that each of them has; rank 0 gives `poll`."""
        causal = turn.settings.decoder == "cached" and all(
            self._is_causal_for(prompt, turn.settings_of(row)) for row, prompt in enumerate(turn.prompts)
        )
        rewinds = causal and self._causality.problem is None
        forward = self.forwards.for_turn(turn) if rewinds else self._plain
        begin = partial(self._refinement, turn, causal=causal, capacity=forward.capacity)
        replies = Replies(turn, forward, begin, self._group, poll=poll, ends=self._ends, chunk=self._chunk)
        for event in replies.events():
            yield self._scored(turn, event) if isinstance(event, Reply) and turn.logprobs is not None else event

    def _scored(self, turn: Turn, reply: Reply) -> Reply:
        """With its log-probabilities, if there are any."""
        prompt = turn.prompts[reply.row]
        if turn.logprobs is None or not reply.token_ids or not self._is_causal_for(prompt, reply.settings):
            return reply
        chunk = self._chunk if self._causality.problem is None else None
        scores = score(self.module, self._head, prompt, reply.token_ids, turn.logprobs, chunk)
        return replace(reply, logprobs=scores)

    def _refinement(self, turn: Turn, row: int, *, causal: bool, capacity: int) -> Refinement:
        return Refinement(
            turn.prompts[row],
            turn.settings_of(row),
            placeholder=turn.placeholder,
            stop_ids=turn.stop_ids,
            limit=min(self.max_positions or UNBOUNDED, capacity),
            causal=causal,
            row=row,
            drafts=self._drafts(turn, row),
            vocabulary=self.module.config.get_text_config().vocab_size,
            changes=turn.changes[row] if turn.changes else (),
            begun=turn.begun_of(row),
        )

    def _is_causal_for(self, prompt: tuple[int, ...], settings: GenerationSettings) -> bool:
        if not self._causality.causal:
            return False
        longest = min(len(prompt) + settings.max_new_tokens, settings.max_length)
        return self._causality.holds_up_to is None or longest <= self._causality.holds_up_to
