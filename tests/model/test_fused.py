"""Joined products and fused norms compute what the model computed, and their parameters stay what they were."""

from __future__ import annotations

import copy
import sys
import types

import pytest
import torch
import transformers
from tiny_models import COMMON, FAMILIES, tiny_model
from torch import nn

from dist.group.group import SoloGroup
from dist.kernels.ops import FEW_ROWS, kernels_run, product, rms_norm, silu_product
from dist.kernels.rotary import FusedRotary
from dist.model.fuse import _left_over, fuse
from dist.model.fused_modules import FusedNorm, GatedMLP, JointLinear, QuickLinear, UsualLayer, is_exact
from dist.model.tensor_parallel import SummedLinear

SOLO = SoloGroup(torch.device("cpu"))
IDS = torch.arange(3, 40).unsqueeze(0)


def fused_twin(family="qwen2"):
    twin = copy.deepcopy(tiny_model(family))
    fuse(twin, SOLO)
    return twin


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_fused_model_gives_the_same_logits(family):
    twin = fused_twin(family)
    assert any(isinstance(module, JointLinear) for module in twin.modules())
    torch.testing.assert_close(twin(IDS).logits, tiny_model(family)(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_values_of_all_parameters_stay(family):
    before, after = tiny_model(family).state_dict(), fused_twin(family).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_three_projections_become_one_product_and_gate_and_up_another():
    layer = fused_twin().model.layers[0]
    attention, mlp = layer.self_attn, layer.mlp
    joined = [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj]
    assert [type(module) for module in joined] == [JointLinear] * 5
    assert attention.q_proj.joint is attention.v_proj.joint is not mlp.up_proj.joint
    assert type(attention.o_proj) is type(mlp.down_proj) is QuickLinear
    assert isinstance(layer.input_layernorm, FusedNorm)


@pytest.mark.parametrize("family", ("qwen2", "llama", "qwen3", "mistral with a sliding window"))
def test_layers_of_the_usual_parts_are_replaced_and_keep_their_attributes(family):
    plain, fused = tiny_model(family).model.layers[0], fused_twin(family).model.layers[0]
    assert type(fused) is UsualLayer and type(fused.mlp) is GatedMLP
    assert vars(fused).keys() == vars(plain).keys()


def test_what_computes_something_else_under_the_usual_names_is_left_alone():
    gemma = fused_twin("gemma2").model.layers[0]
    assert not isinstance(gemma, UsualLayer) and not isinstance(gemma.mlp, GatedMLP)
    # Granite's layers scale what they add, under the very names of Llama's parts.
    config = transformers.GraniteConfig(**COMMON, residual_multiplier=0.5)
    granite = transformers.AutoModelForCausalLM.from_config(config).eval()
    granite.model.layers[0].mlp.act_fn = nn.GELU()
    with torch.inference_mode():
        expected = granite(IDS).logits
        fuse(granite, SOLO)
        torch.testing.assert_close(granite(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(layer, UsualLayer) for layer in granite.model.layers)
    assert [type(layer.mlp) is GatedMLP for layer in granite.model.layers] == [False, True]


def test_a_norm_that_is_more_than_an_rms_norm_is_left_alone():
    assert not any(isinstance(module, FusedNorm) for module in fused_twin("gemma2").modules())


def uneven_model(config: str, *spoils, **more):
    """A model in bfloat16, where a few large weights make all else look like rounding."""
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**COMMON, **more)).eval()
    with torch.no_grad():
        for spoil in spoils:
            spoil(model)
    return model.bfloat16()


def one_large_channel(model) -> None:
    model.model.embed_tokens.weight[:, 5] = 300


def one_large_gain(model) -> None:
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.uniform_(0, 2)
            parameter[3] = 200


def one_large_neuron(model) -> None:
    for layer in model.model.layers:
        layer.mlp.down_proj.weight[:, 7] = 20
        layer.mlp.gate_proj.weight[7].abs_()


@pytest.mark.parametrize(
    ("config", "more", "spoil", "kind"),
    [
        ("GraniteConfig", {"residual_multiplier": 0.22}, one_large_channel, UsualLayer),
        ("GemmaConfig", {"head_dim": 8}, one_large_gain, FusedNorm),
        ("GemmaConfig", {"head_dim": 8}, one_large_neuron, GatedMLP),
    ],
)
def test_large_weights_hide_no_difference(config, more, spoil, kind):
    model = uneven_model(config, spoil, **more)
    fuse(model, SOLO)
    assert not any(isinstance(module, kind) for module in model.modules())


def test_large_weights_spare_what_is_the_same():
    model = uneven_model("LlamaConfig", one_large_channel, one_large_gain, one_large_neuron)
    fuse(model, SOLO)
    layer = model.model.layers[1]
    assert (type(layer), type(layer.mlp), type(layer.input_layernorm)) == (UsualLayer, GatedMLP, FusedNorm)


def test_what_has_parameters_of_its_own_is_left_alone_whatever_they_are_now():
    """Other weights, read later, may not be neutral."""
    model = copy.deepcopy(tiny_model())
    first, second = model.model.layers
    first.residual_scale = nn.Parameter(torch.ones(32))
    second.mlp.scale = nn.Parameter(torch.ones(32))
    second.input_layernorm.bias = nn.Parameter(torch.zeros(32))
    before = model.state_dict().keys()
    fuse(model, SOLO)
    first, second = model.model.layers
    assert not isinstance(first, UsualLayer) and isinstance(first.mlp, GatedMLP)
    assert not isinstance(second.mlp, GatedMLP)
    assert not isinstance(second.input_layernorm, FusedNorm)
    assert model.state_dict().keys() == before


def test_a_layer_that_is_given_its_arguments_by_place_is_left_alone():
    model = copy.deepcopy(tiny_model())
    with torch.inference_mode():
        expected = model(IDS).logits
    for index, layer in enumerate(model.model.layers):
        model.model.layers[index] = ByPlace(layer)
    fuse(model, SOLO)
    assert not any(isinstance(module, UsualLayer) for module in model.modules())
    with torch.inference_mode():
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-4)


class ByPlace(nn.Module):
    """Calls a layer as some models do."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.attention_type = getattr(layer, "attention_type", None)

    def forward(self, x, attention_mask=None, position_ids=None, past_key_values=None, **more):
        return self.layer(x, attention_mask, position_ids, past_key_values, **more)


@torch.inference_mode()
def test_weights_written_in_place_are_the_joined_ones():
    twin, other = fused_twin(), tiny_model(seed=1)
    for name, parameter in twin.named_parameters():
        parameter.copy_(other.get_parameter(name))
    torch.testing.assert_close(twin(IDS).logits, other(IDS).logits, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_parts_may_be_asked_for_in_any_order_and_again():
    linears = [nn.Linear(4, size) for size in (3, 2, 5)]
    parent = nn.Module()
    for name, linear in zip(("q_proj", "k_proj", "v_proj"), linears):
        setattr(parent, name, linear)
    twin = copy.deepcopy(parent)
    fuse(twin, SOLO)
    x, y = torch.randn(6, 4), torch.randn(6, 4)
    for name, z in (("v_proj", x), ("q_proj", x), ("v_proj", x), ("q_proj", y), ("k_proj", y), ("k_proj", x)):
        torch.testing.assert_close(getattr(twin, name)(z), getattr(parent, name)(z))


def test_linears_that_are_hooked_or_hold_rows_only_are_not_joined():
    for spoil in (
        lambda linear: linear.register_forward_hook(lambda *_: None),
        lambda linear: setattr(linear, "weight", nn.Parameter(linear.weight[:1])),
    ):
        parent = nn.Module()
        parent.gate_proj, parent.up_proj = nn.Linear(4, 3), nn.Linear(4, 3)
        spoil(parent.up_proj)
        fuse(parent, SOLO)
        assert type(parent.gate_proj) is QuickLinear
        assert type(parent.up_proj) is nn.Linear


def test_on_a_cpu_rotary_embeddings_stay_as_they_are():
    assert not FusedRotary(tiny_model()).usual


def unchanged(model) -> bool:
    return [type(module) for module in model.modules()] == [type(module) for module in tiny_model().modules()]


def test_where_no_kernel_can_be_started_a_model_stays_as_it_is(monkeypatch):
    monkeypatch.setattr("dist.model.fuse.kernels_run", lambda like: False)
    assert unchanged(fused_twin())


@pytest.mark.parametrize("error", [ImportError, IndexError, OSError, RuntimeError])
def test_whatever_a_first_launch_raises_is_taken_for_no(monkeypatch, error):
    def launch(*_):
        raise error("map::at")

    assert kernels_run(torch.ones(1))
    monkeypatch.setattr("dist.kernels.ops.product", launch)
    assert not kernels_run(torch.ones(1))


def test_where_another_rank_cannot_start_kernels_a_model_stays_as_it_is():
    class BesideAPoorerRank(SoloGroup):
        def smallest(self, value):
            return min(value, 0)

    twin = copy.deepcopy(tiny_model())
    fuse(twin, BesideAPoorerRank(torch.device("cpu")))
    assert unchanged(twin)


def test_a_summed_linear_takes_our_kernels_only_where_they_run(monkeypatch):
    parent = nn.Module()
    parent.o_proj = SummedLinear(nn.Linear(64, 3), SOLO)
    with monkeypatch.context() as without:
        without.setattr("dist.model.fuse.kernels_run", lambda like: False)
        fuse(parent, SOLO)
    assert parent.o_proj.product is not product
    fuse(parent, SOLO)
    assert parent.o_proj.product is product


class Listening(SoloGroup):
    """Two ranks that bring the same; notes how many rows each sum has."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.rows: list[int] = []

    def sum_in_place(self, tensor, added=None):
        self.rows.append(len(tensor.reshape(-1, tensor.shape[-1])))
        tensor *= 2
        super().sum_in_place(tensor, added)


@pytest.mark.parametrize("bias", [False, True])
def test_an_exact_linear_sums_a_few_rows_at_a_time_and_gives_the_same(bias):
    group, x, added = Listening(), torch.randn(1, 7, 6), torch.randn(1, 7, 4)
    linear = SummedLinear(nn.Linear(6, 4, bias=bias), group)
    expected = linear(x, added.clone())
    linear.sum_bytes = 3 * 4 * x.element_size()
    assert torch.equal(linear(x, added.clone()), expected)
    assert group.rows == [7, 3, 3, 1]


@torch.no_grad()
def test_a_model_is_exact_only_on_a_gpu_and_without_parts_of_its_own(monkeypatch):
    model = copy.deepcopy(tiny_model()).bfloat16()
    fuse(model, SOLO, exact=True)
    assert not is_exact(model)
    assert _left_over(model) == []
    assert _left_over(copy.deepcopy(tiny_model()))
    gemma = fused_twin("gemma2")
    assert [name for name in _left_over(gemma) if name.startswith("model.layers.0.")]


class OnGPU(torch.Tensor):
    """A tensor for which the steps call kernels."""

    is_cuda = True


@pytest.fixture
def kernels(monkeypatch):
    """Stand-ins that read memory as the kernels do: the numbers of a row side by side, what is added contiguous."""

    def row_by_row(x):
        return x.as_strided(x.shape, (*x.stride()[:-1], 1))

    def few_rows_product(x, weight, bias, added):
        return row_by_row(x) @ weight.T + (0 if added is None else row_by_row(added))

    def norm(x, added, gain, epsilon):
        total = row_by_row(x)
        if added is not None:
            total = total + added.as_strided(added.shape, torch.empty(added.shape).stride())
        return total, nn.functional.rms_norm(total, gain.shape, gain, epsilon)

    def silu(both):
        gate, other = both.chunk(2, -1)
        return nn.functional.silu(gate) * other

    stand_in = types.SimpleNamespace(few_rows_product=few_rows_product, rms_norm=norm, silu_product=silu)
    monkeypatch.setitem(sys.modules, "dist.kernels.few_rows", stand_in)


def test_kernels_are_given_rows_as_they_read_them(kernels):
    x, added = (torch.randn(1, 6, 4).bfloat16().transpose(1, 2) for _ in range(2))
    weight, gain = torch.randn(6, 6).bfloat16(), torch.randn(6).bfloat16()
    assert torch.equal(product(x.as_subclass(OnGPU), weight, None, added), x @ weight.T + added)
    for more in (None, added):
        ours, theirs = rms_norm(x.as_subclass(OnGPU), gain, 1e-6, more), rms_norm(x, gain, 1e-6, more)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_only_an_exact_product_takes_many_rows_to_our_kernel(kernels, monkeypatch):
    def refused(*_):
        raise AssertionError("our kernel was called")

    monkeypatch.setattr(sys.modules["dist.kernels.few_rows"], "few_rows_product", refused, raising=False)
    x, weight = torch.randn(FEW_ROWS + 1, 8).bfloat16().as_subclass(OnGPU), torch.randn(3, 8).bfloat16()
    assert torch.equal(product(x, weight, None), x @ weight.T)
    with pytest.raises(AssertionError, match="our kernel was called"):
        product(x, weight, None, exact=True)


def test_a_pass_without_rows_gives_none(kernels):
    assert silu_product(torch.empty(0, 8).as_subclass(OnGPU)).shape == (0, 4)
    x = torch.empty(0, 8, dtype=torch.bfloat16).as_subclass(OnGPU)
    assert product(x, torch.ones(3, 8).bfloat16(), None).shape == (0, 3)
