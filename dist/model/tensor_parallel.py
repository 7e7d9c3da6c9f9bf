"""One model spread over all ranks within its layers: which part of each weight a rank holds. Knows no checkpoint.

The plan is transformers' own: linears cut by their outputs (colwise), each followed by one cut by its inputs
(rowwise) whose results are summed over the ranks. Attention is cut by whole heads, key-value heads are replicated
where there are fewer of them than ranks; an MLP is cut by its intermediate size, the output head by the vocabulary.
All else is held whole. A model that has anything more in the cut places is refused rather than guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dist.checkpoint.boxes import Box, even_bounds
from dist.errors import CheckpointError, either
from dist.model.head import Head, VocabularyHead, WholeHead
from dist.protocol import Group

BY_OUTPUTS, BY_INPUTS = "colwise", "rowwise"
# Styles that matter in training or spare memory only: what they name is held whole here.
WHOLE = ("replicated_with_grad_allreduce", "sequence_parallel", "embedding_rowwise")
QUERY, KEY, VALUE = "q_proj", "k_proj", "v_proj"
# The names under which attention modules keep how many heads they have.
QUERY_HEADS, KEY_VALUE_HEADS = ("num_heads", "num_attention_heads"), ("num_key_value_heads", "num_kv_heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """This rank's `count` outputs (rows of the weight) or inputs (columns) of one linear, from `first` on."""

    style: str
    first: int
    count: int

    def boxes(self, name: str, linear: nn.Linear) -> dict[str, Box]:
        """{parameter's name: this rank's box of it}, without what is held whole."""
        rows, columns = linear.weight.shape
        if self.style == BY_INPUTS:
            return {f"{name}.weight": Box((0, self.first), (rows, self.count))}
        boxes = {f"{name}.weight": Box((self.first, 0), (self.count, columns))}
        if linear.bias is not None:
            boxes[f"{name}.bias"] = Box((self.first,), (self.count,))
        return boxes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What a rank holds of a model.

    parts  {linear's name: this rank's part of it}
    heads  {attention's name: how many (query, key-value) heads of it are here}
    head   name of the output head if it is cut, else None
    tied   the head's weight is that of the embeddings
    boxes  {parameter's name: this rank's box of it}, without what is held whole
    """

    parts: Mapping[str, Part]
    heads: Mapping[str, tuple[int, int]]
    head: str | None
    tied: bool
    boxes: Mapping[str, Box]


class SummedLinear(nn.Linear):
    """A linear that holds some inputs only: what the ranks get is summed, then the bias is added once.

    `product` gives x @ weight.T; one by a faster kernel may take its place. `sum_bytes`: so many are summed at
    once, if not all of them, so that a row is always summed in the same way.
    """

    product: Callable[[torch.Tensor, torch.Tensor, None], torch.Tensor]
    sum_bytes: int | None = None

    def __init__(self, linear: nn.Linear, group: Group) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.training = linear.training
        self.product = F.linear
        self._group = group

    def forward(self, input: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """The sum over the ranks, plus the bias, plus `added`."""
        output = self.product(input, self.weight, None)
        if self.bias is None:
            self._sum(output, added)
            return output
        self._sum(output, self.bias.expand_as(output))
        return output if added is None else output.add_(added)

    def _sum(self, output: torch.Tensor, added: torch.Tensor | None) -> None:
        if self.sum_bytes is None:
            self._group.sum_in_place(output, added)
            return
        rows = max(1, self.sum_bytes // (self.out_features * output.element_size()))
        flat = output.view(-1, self.out_features)
        more = None if added is None else added.reshape(flat.shape)
        for first in range(0, len(flat), rows):
            part = slice(first, first + rows)
            self._group.sum_in_place(flat[part], None if more is None else more[part])


def plan_cut(module: Any, rank: int, size: int) -> Cut:
    """What `rank` of `size` holds of a model that is whole, on meta or filled; changes nothing.

    Raises CheckpointError, the same on every rank, for a model that cannot be cut so.
    """
    experts = next((name for name, _ in module.named_modules() if name.endswith(".experts")), None)
    if experts is not None:
        raise _refusal(size, f"{experts} holds experts, which are not split here.")
    styles = _styles(module)
    parents: dict[str, dict[str, str]] = {}
    for name, style in styles.items():
        parent, _, child = name.rpartition(".")
        parents.setdefault(parent, {})[child] = style
    if not parents:
        raise _refusal(size, f"transformers has no tensor-parallel plan for a {type(module).__name__}.")
    parts: dict[str, Part] = {}
    heads: dict[str, tuple[int, int]] = {}
    for parent, children in parents.items():
        owner = module.get_submodule(parent)
        if QUERY in children:
            cut, heads[parent] = _attention_parts(parent, owner, children, rank, size)
        else:
            cut = _mlp_parts(parent, owner, children, rank, size)
        parts |= {f"{parent}.{child}": part for child, part in cut.items()}
    boxes: dict[str, Box] = {}
    for name, part in parts.items():
        boxes |= part.boxes(name, module.get_submodule(name))
    head = _head_name(module)
    tied = head is not None and module.get_output_embeddings().weight is module.get_input_embeddings().weight
    if head is not None:
        linear = module.get_submodule(head)
        bounds = even_bounds(linear.out_features, size)
        parts[head] = Part(style=BY_OUTPUTS, first=bounds[rank], count=bounds[rank + 1] - bounds[rank])
        boxes |= parts[head].boxes(head, linear)
        if tied:
            del boxes[f"{head}.weight"]
    return Cut(parts=parts, heads=heads, head=head, tied=tied, boxes=boxes)


def finish_cut(module: Any, cut: Cut, group: Group) -> Head:
    """Make a module that holds this rank's boxes compute as part of the whole; returns its output head."""
    head: Head = WholeHead()
    if cut.head is not None:
        linear = module.get_submodule(cut.head)
        head = VocabularyHead(group, linear.out_features)
        if cut.tied:
            # A view: other weights that are read into the embeddings are the head's too.
            part = cut.parts[cut.head]
            linear.weight = nn.Parameter(linear.weight.narrow(0, part.first, part.count), requires_grad=False)
    for name, part in cut.parts.items():
        linear = module.get_submodule(name)
        linear.out_features, linear.in_features = linear.weight.shape
        if part.style == BY_INPUTS:
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, SummedLinear(linear, group))
    for name, (queries, keys) in cut.heads.items():
        attention = module.get_submodule(name)
        here = dict.fromkeys(QUERY_HEADS, queries) | dict.fromkeys(KEY_VALUE_HEADS, keys)
        for own_name, count in (here | {"num_key_value_groups": queries // keys}).items():
            if hasattr(attention, own_name):
                setattr(attention, own_name, count)
    return head


def _styles(module: Any) -> dict[str, str]:
    """{name: style} of what transformers would cut in the decoder. In its plans a * stands for a layer's number."""
    prefix = module.base_model_prefix
    base = getattr(module.config.get_text_config(), "base_model_tp_plan", None) or {}
    plan = {f"{prefix}.{pattern}": style for pattern, style in base.items()}
    plan |= getattr(module, "_tp_plan", None) or {}
    head = _head_name(module)
    names = [name for name, _ in [*module.named_modules(), *module.named_parameters()]]
    found = {name: plan.get(re.sub(r"\.\d+(?=\.)", ".*", name)) for name in names if name != head}
    return {name: style for name, style in found.items() if style is not None and style not in WHOLE}


def _head_name(module: Any) -> str | None:
    """The output head, if it is a plain linear."""
    head = module.get_output_embeddings()
    return next((name for name, one in module.named_modules() if one is head and type(one) is nn.Linear), None)


def _attention_parts(
    name: str, attention: Any, children: Mapping[str, str], rank: int, size: int
) -> tuple[dict[str, Part], tuple[int, int]]:
    """This rank's parts of q, k, v and the output projection; how many query and key-value heads they are."""
    output = _linears(name, attention, children, size)
    head_size = getattr(attention, "head_dim", None)
    widths = {child: getattr(attention, child).out_features for child in children if child != output}
    inputs = getattr(attention, output).in_features
    query, key = widths[QUERY], widths.get(KEY)
    if (
        set(widths) != {QUERY, KEY, VALUE}
        or not head_size
        or key is None
        or key != widths[VALUE]
        or query != inputs
        or query % head_size
        or key % head_size
    ):
        listed = ", ".join(f"{child} {width}" for child, width in widths.items())
        raise _refusal(size, f"{name} is not made of heads as it must be: {listed} wide, {output} takes {inputs}.")
    _check_rest(name, attention, children, (head_size,), size)
    queries, keys = query // head_size, key // head_size
    if queries % keys or queries % size or (keys % size and size % keys):
        fit = [n for n in range(2, queries + 1) if not queries % n and (not keys % n or not n % keys)]
        raise _refusal(
            size,
            f"Its {queries} query and {keys} key-value heads cannot be divided evenly among {size}.",
            f", or {either(fit)} processes" if fit else "",
        )
    queries_here, keys_here = queries // size, max(1, keys // size)
    first_key = rank * keys // size
    query_part = Part(style=BY_OUTPUTS, first=rank * query // size, count=query // size)
    key_part = Part(style=BY_OUTPUTS, first=first_key * head_size, count=keys_here * head_size)
    output_part = Part(style=BY_INPUTS, first=query_part.first, count=query_part.count)
    cut = {QUERY: query_part, KEY: key_part, VALUE: key_part, output: output_part}
    return cut, (queries_here, keys_here)


def _mlp_parts(name: str, mlp: Any, children: Mapping[str, str], rank: int, size: int) -> dict[str, Part]:
    """This rank's parts of linears that share one intermediate size."""
    output = _linears(name, mlp, children, size)
    width = getattr(mlp, output).in_features
    widths = {child: getattr(mlp, child).out_features for child in children if child != output}
    if not widths or set(widths.values()) != {width}:
        listed = (
            ", ".join(f"{child} gives {width}" for child, width in widths.items()) or "nothing before it is split"
        )
        raise _refusal(size, f"In {name}, {output} takes {width} values and {listed}.")
    _check_rest(name, mlp, children, (), size)
    bounds = even_bounds(width, size)
    first, count = bounds[rank], bounds[rank + 1] - bounds[rank]
    return {child: Part(style=style, first=first, count=count) for child, style in children.items()}


def _linears(name: str, owner: Any, children: Mapping[str, str], size: int) -> str:
    """Check that all children are plain linears in known styles; the name of the one cut by its inputs."""
    for child, style in children.items():
        if style not in (BY_OUTPUTS, BY_INPUTS):
            raise _refusal(size, f"transformers splits {name}.{child} as {style}, which is not supported here.")
        kind = type(getattr(owner, child))
        if kind is not nn.Linear:
            raise _refusal(size, f"{name}.{child} is a {kind.__name__}, not a Linear.")
    outputs = [child for child, style in children.items() if style == BY_INPUTS]
    if len(outputs) != 1:
        raise _refusal(size, f"{name} has {len(outputs)} row-parallel linears, not 1.")
    return outputs[0]


def _check_rest(name: str, owner: Any, children: Mapping[str, str], shape: tuple[int, ...], size: int) -> None:
    """Other parameters there must be of this shape (one for each place within a head) or of one element."""
    for own_name, parameter in owner.named_parameters():
        cut = own_name.rpartition(".")[0] in children
        if not cut and parameter.shape != shape and parameter.numel() != 1:
            raise _refusal(size, f"{name}.{own_name} of shape {list(parameter.shape)} would have to be split too.")


def _refusal(size: int, why: str, instead: str = "") -> CheckpointError:
    return CheckpointError(
        f"--parallel tp cannot spread this model over {size} processes.", why, f"Use --parallel fsdp{instead}."
    )
