"""Joined products and fused norms compute what the model computed, and their parameters stay what they were."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from tiny_models import COMMON, FAMILIES, tiny_model
from torch import nn

from dist.fused import FusedNorm, GatedMLP, JointLinear, QuickLinear, UsualLayer, fuse
from dist.rotary import FusedRotary

IDS = torch.arange(3, 40).unsqueeze(0)


def fused_twin(family="qwen2"):
    twin = copy.deepcopy(tiny_model(family))
    fuse(twin)
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
    assert attention.q_proj.product is attention.v_proj.product is not mlp.up_proj.product
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
        fuse(granite)
        torch.testing.assert_close(granite(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(layer, UsualLayer) for layer in granite.model.layers)
    assert [type(layer.mlp) is GatedMLP for layer in granite.model.layers] == [False, True]


def test_a_norm_that_is_more_than_an_rms_norm_is_left_alone():
    assert not any(isinstance(module, FusedNorm) for module in fused_twin("gemma2").modules())


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
    fuse(twin)
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
        fuse(parent)
        assert type(parent.gate_proj) is QuickLinear
        assert type(parent.up_proj) is nn.Linear


def test_on_a_cpu_rotary_embeddings_stay_as_they_are():
    assert not FusedRotary(tiny_model()).usual


def test_where_no_kernel_can_be_started_a_model_stays_as_it_is(monkeypatch):
    monkeypatch.setattr("dist.fused.kernels_run", lambda like: False)
    twin = copy.deepcopy(tiny_model())
    fuse(twin)
    assert [type(module) for module in twin.modules()] == [type(module) for module in tiny_model().modules()]
