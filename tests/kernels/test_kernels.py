"""Every Triton kernel under Triton's interpreter, against torch in float64. With a GPU: gpu_check.py.

Not in bfloat16, of which the interpreter makes no products. Sums over ranks: test_symmetric.py.
"""

from __future__ import annotations

import os
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from dist.checkpoint.boxes import even_bounds
from dist.kernels.attention import Segments, reference_attention
from dist.model.head import NOT_A_NUMBER, highest

if "TRITON_INTERPRET" not in os.environ:  # set by conftest.py
    pytest.skip("there is a GPU", allow_module_level=True)
pytest.importorskip("triton")

from dist.kernels import best_token, exact_attention, few_rows, rotary_triton, split_kv

pytestmark = pytest.mark.slow

# The interpreter runs one program after the other: few of them are enough.
PROGRAMS = 16
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES, ids=["float32", "float16"])


@pytest.fixture(autouse=True)
def fixed_numbers():
    torch.manual_seed(0)
    with mock.patch.object(split_kv, "PROGRAMS", PROGRAMS):
        yield


def agree(ours: torch.Tensor, exact: torch.Tensor) -> bool:
    """Whether all is written, and right but for the rounding of its dtype."""
    assert ours.shape == exact.shape
    error = (ours.double() - exact).norm() / exact.norm()
    return bool(error <= TOLERANCES[ours.dtype])


# Query heads, key heads, head size; tokens of the longer sequence, tokens stored before them, window, softcap.
ATTENTION = {
    "one token, nothing before": ((6, 2, 80), (1, 0, 0, 0.0)),
    "a block in mid-text": ((3, 3, 16), (7, 77, 0, 0.0)),
    "an odd head size": ((4, 1, 20), (7, 77, 0, 0.0)),
    "a window and a cap": ((6, 2, 80), (5, 200, 50, 5.0)),
    "more rows than a tile": ((4, 1, 20), (20, 30, 0, 0.0)),
}


@DTYPES
@pytest.mark.parametrize("case", ATTENTION.values(), ids=ATTENTION)
def test_attention_sees_its_own_tokens_and_nothing_behind_them(dtype, case):
    (query_heads, key_heads, size), (rows, start, window, softcap) = case
    capacity, fewer = start + rows + 30, max(1, rows // 3)
    # Two sequences of different lengths; other slots are poisoned.
    table = [[0, rows, start, 0], [rows, fewer, start // 2, capacity]]
    query = torch.randn(rows + fewer, query_heads, size, dtype=dtype).transpose(0, 1)
    key, value = (torch.randn(key_heads, 2 * capacity, size, dtype=dtype) for _ in range(2))
    for _, length, before, slot in table:
        for storage in (key, value):
            storage[:, slot + before + length : slot + capacity] = torch.nan
    segments = Segments(torch.tensor(table), rows)
    more = {"scale": size**-0.5, "window": window, "softcap": softcap}
    ours = split_kv.split_kv_attention(query, key, value, segments.table_S4, segments.longest, **more)
    assert agree(ours, reference_attention(query.double(), key.double(), value.double(), segments, **more))


@DTYPES
@pytest.mark.parametrize("few", [True, False], ids=["side by side", "one by one"])
@pytest.mark.parametrize("case", ATTENTION.values(), ids=ATTENTION)
def test_exact_attention_sees_the_same(dtype, case, few):
    (query_heads, key_heads, size), (rows, start, window, softcap) = case
    capacity = start + rows + 30
    table = [[0, rows, start, 0], [rows, max(1, rows // 3), start // 2, capacity]]
    tokens = rows + table[1][1]
    query = torch.randn(tokens, query_heads, size, dtype=dtype).transpose(0, 1)
    key, value = (torch.randn(key_heads, 2 * capacity, size, dtype=dtype) for _ in range(2))
    for _, length, before, slot in table:
        for storage in (key, value):
            storage[:, slot + before + length : slot + capacity] = torch.nan
    segments = Segments(torch.tensor(table), rows)
    more = {"scale": size**-0.5, "window": window, "softcap": softcap}
    with mock.patch.multiple(exact_attention, FEW_TOKENS=tokens if few else 0, SPAN=64):
        ours = exact_attention.exact_attention(query, key, value, segments.table_S4, rows, capacity, **more)
    assert agree(ours, reference_attention(query.double(), key.double(), value.double(), segments, **more))


@DTYPES
@pytest.mark.parametrize("size", [16, 20])
def test_new_keys_and_values_reach_their_slots_and_no_other(dtype, size):
    new_key, new_value = (torch.randn(5, 3, size, dtype=dtype).transpose(0, 1) for _ in range(2))
    key, value = (torch.randn(3, 11, size, dtype=dtype) for _ in range(2))
    slots = torch.tensor([7, 0, 10, 3, 8])
    expected = [storage.index_copy(1, slots, new) for storage, new in ((key, new_key), (value, new_value))]
    split_kv.store_rows(key, value, new_key, new_value, slots)
    assert torch.equal(key, expected[0]) and torch.equal(value, expected[1])


@DTYPES
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 64, 128), (8, 130, 70), (16, 100, 64), (17, 8200, 33), (32, 576, 1)]
)
def test_products_of_few_rows(dtype, rows, inputs, outputs, biased, added):
    x, weight = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
    bias = torch.randn(outputs, dtype=dtype) if biased else None
    more = torch.randn(rows, outputs, dtype=dtype) if added else None
    exact = x.double() @ weight.double().T
    for part in (bias, more):
        exact = exact if part is None else exact + part.double()
    assert agree(few_rows.few_rows_product(x, weight, bias, more), exact)


def test_a_product_reads_rows_that_lie_apart():
    wide, added = torch.randn(3, 200), torch.randn(3, 99)
    weight = torch.randn(50, 80)
    ours = few_rows.few_rows_product(wide[:, 20:100], weight, None, added[:, 9:59])
    exact = wide[:, 20:100].double() @ weight.double().T + added[:, 9:59].double()
    assert agree(ours, exact)


@DTYPES
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(("rows", "heads", "inputs"), [(1, 1, 576), (5, 3, 50), (2, 1, 1100)])
def test_norms_of_sums(dtype, rows, heads, inputs, added):
    # Heads as parts of wider rows.
    x = torch.randn(rows, heads, 2 * inputs, dtype=dtype)[..., :inputs]
    more = torch.randn(rows, heads, inputs, dtype=dtype) if added else None
    gain = torch.randn(inputs, dtype=dtype)
    total = x if more is None else x + more
    ours_total, ours = few_rows.rms_norm(x, more, gain, 1e-6)
    assert torch.equal(ours_total, total)
    assert agree(ours, F.rms_norm(total.double(), (inputs,), gain.double(), 1e-6))


@DTYPES
@pytest.mark.parametrize(("rows", "width"), [(1, 7), (3, 2100), (4, 2048)])
def test_gates(dtype, rows, width):
    both = torch.randn(rows, 2 * width, dtype=dtype)
    gate, other = both.double().chunk(2, dim=-1)
    assert agree(few_rows.silu_product(both), F.silu(gate) * other)


@DTYPES
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(4, 2, 16), (3, 1, 20)])
def test_rotary_embedding_turns_queries_and_keys(dtype, heads, key_heads, size):
    rows = 5
    query, key = (torch.randn(rows, count, size, dtype=dtype).transpose(0, 1) for count in (heads, key_heads))
    angles = torch.randn(rows, size // 2).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    for ours, one in zip(rotary_triton.rotate_halves(query, key, cos, sin), (query, key)):
        first, second = one.double().chunk(2, dim=-1)
        assert agree(ours, one.double() * cos.double() + torch.cat([-second, first], dim=-1) * sin.double())


@DTYPES
@pytest.mark.parametrize("vocabulary", [1, 7, 4096, 9001])
@pytest.mark.parametrize("ranks", [1, 3])
def test_the_best_token_is_the_lowest_of_the_highest_on_any_number_of_ranks(dtype, vocabulary, ranks):
    logits = torch.randint(-3, 4, (5, vocabulary)).to(dtype)
    logits[1] = -torch.inf
    logits[2, -1] = torch.nan
    logits[3, vocabulary // 2 :] = 9.0  # many equals
    expected = highest(logits)
    assert expected[2] == NOT_A_NUMBER
    bounds = even_bounds(vocabulary, ranks)
    found: list[torch.Tensor] = []

    def choose(rank: int, add) -> torch.Tensor:
        first, end = bounds[rank : rank + 2]
        return best_token.best_tokens(
            logits[:, first:end],
            not_a_number=NOT_A_NUMBER,
            first_token=first,
            rank=rank,
            ranks=ranks,
            most_tokens=bounds[1],
            add=add,
        )

    for rank in range(ranks):
        choose(rank, lambda mine: found.append(mine.clone()))
    for rank in range(ranks):
        assert torch.equal(choose(rank, lambda mine: mine.copy_(sum(found))), expected)
