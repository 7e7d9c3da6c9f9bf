"""The table of what people point the program at: each folder, and what is right. Rows read as behaviour.

`same`: the greedy tokens are those of `reference`, a model as transformers or peft gives it for the same files.
`refused`: words of the refusal. `says`: words that the start or /model must hold.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import field_models as made
import torch
import transformers
from checkpoints import CHATML

Make = Callable[[Path], Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row. `make` fills a folder that does not exist yet and may give back the reference model.

    kind     rows of a kind stand together
    early    it is refused before torch or transformers are imported
    options  what is asked for on the command line
    """

    name: str
    make: Make
    kind: str
    refused: str = ""
    early: bool = False
    says: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


ROWS: list[Case] = []
KIND: list[str] = []


def row(
    name: str,
    *,
    refused: str = "",
    early: bool = False,
    says: tuple[str, ...] = (),
    silent: tuple[str, ...] = (),
    **options: Any,
):
    """Adds the decorated maker to the table."""

    def add(make: Make) -> Make:
        case = Case(name=name, make=make, kind=KIND[-1], refused=refused, early=early, says=says, silent=silent)
        ROWS.append(dataclasses.replace(case, options=options))
        return make

    return add


def hugging_face(folder: Path) -> Any:
    """What transformers makes of a folder."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def renamed(change: Callable[[str], str]) -> Make:
    """Shards of the base model under other names."""

    def make(folder: Path) -> Any:
        made.copy_of_base(folder)
        model = hugging_face(folder)
        (folder / "model.safetensors").unlink()
        made.save_as_verl_shards({change(name): one for name, one in model.state_dict().items()}, folder)
        return model

    return make


# --- Names.

KIND.append("names")

for prefix, said in {
    "_orig_mod.": "_orig_mod. taken out of names",
    "module.": "module. taken off names",
    "model.": "",  # transformers 5 has a rule for it
    "_fsdp_wrapped_module.module.": "_fsdp_wrapped_module. taken out of names; module. taken off names",
    "policy.actor.": "policy.actor. taken off names",
}.items():
    row(f"names begin with {prefix}", says=(said,))(renamed(lambda name, prefix=prefix: prefix + name))
row("names lack model.")(renamed(lambda name: name.removeprefix("model.")))
row("wrappers within names", says=("_orig_mod.",))(
    renamed(lambda name: name.replace("self_attn.", "_orig_mod.self_attn.").replace("mlp.", "_orig_mod.mlp."))
)
row(
    "names of another kind",
    refused="The file's names begin a.embed_tokens_weight, a.layers_0_self_attn_q_proj_weight",
)(renamed(lambda name: f"a.{name.removeprefix('model.').replace('.', '_')}"))


@row(
    "a second copy of the weights beside them", refused="ema.model.embed_tokens.weight is not in the config's model"
)
def _ema(folder: Path) -> None:
    with_tensors(folder, lambda state: state.update({f"ema.{name}": one + 1 for name, one in state.copy().items()}))


def with_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Any:
    """The base model's shards with their tensors changed."""
    made.copy_of_base(folder)
    model = hugging_face(folder)
    (folder / "model.safetensors").unlink()
    state = dict(model.state_dict())
    change(state)
    made.save_as_verl_shards(state, folder)
    return model


@row("a tensor that no parameter takes", refused="model.layers.0.gate.weight is not in the config's model")
def _extra(folder: Path) -> None:
    with_tensors(folder, lambda state: state.update({"model.layers.0.gate.weight": torch.ones(3)}))


row("a head is wanted and none was saved", refused="Heads tied to the embeddings are not saved")(
    lambda folder: with_tensors(folder, lambda state: state.pop("lm_head.weight"))
)
row("a tensor is wanted and was not saved", refused="The file is incomplete, or")(
    lambda folder: with_tensors(folder, lambda state: state.pop("model.norm.weight"))
)


@row("rotary frequencies saved by old versions", says=("rotary_emb.inv_freq (computed from the config)",))
def _inv_freq(folder: Path) -> Any:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    return with_tensors(folder, lambda state: state.update({name: torch.ones(4)}))


@row("embeddings resized after config.json was written", refused="The vocabulary was resized after config.json")
def _resized(folder: Path) -> None:
    made.copy_of_base(folder)
    made.change_json(folder / "config.json", vocab_size=made.ROWS + 5)


# --- Tied heads.

KIND.append("heads")


def tied(folder: Path, head: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    model = made.text_model(tie_word_embeddings=True)
    state = {name: one.clone() for name, one in model.state_dict().items()}
    state["lm_head.weight"] = head(state["model.embed_tokens.weight"].clone())
    made.save_model(model, folder)
    from safetensors.torch import save_file

    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    reference = made.text_model(tie_word_embeddings=False)
    reference.load_state_dict(state)
    return reference


row("tied by the config, the saved head differs", says=("lm_head.weight was saved with values of its own",))(
    lambda folder: tied(folder, lambda embeddings: embeddings.flip(0))
)
row("tied by the config, the saved head is the same", silent=("values of its own",))(
    lambda folder: tied(folder, lambda embeddings: embeddings)
)

# --- Adapters.

KIND.append("adapters")


def adapted(folder: Path, beside: bool = True, **config: Any) -> Any:
    """The base model, an adapter in `lora_adapter/` as verl's merger writes it, and what peft makes of both."""
    made.copy_of_base(folder)
    return add_adapter(folder, beside, **config)


def add_adapter(folder: Path, beside: bool = True, **config: Any) -> Any:
    """An adapter of the model in `folder`, in `lora_adapter/` or beside the folder, and what peft makes of both."""
    peft = __import__("peft")
    settings = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(hugging_face(folder), peft.LoraConfig(**{**settings, **config}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(std=0.2, generator=generator)
    model.save_pretrained(folder / "lora_adapter" if beside else folder.with_name("adapter"))
    return model.eval()


def adapter_config(folder: Path, **values: Any) -> None:
    made.change_json(folder / "lora_adapter" / "adapter_config.json", **values)


def changed_adapter(**values: Any) -> Make:
    def make(folder: Path) -> Any:
        model = adapted(folder)
        adapter_config(folder, **values)
        return model

    return make


row("an adapter beside the base weights", says=("LoRA of lora_adapter/, alpha 12",))(adapted)
row("its alpha is 0, as verl's merger writes", refused="gives 0, as verl's merger writes")(
    changed_adapter(lora_alpha=0)
)
row("its alpha is 0 and --lora_alpha given", says=("alpha 12 (--lora_alpha)",), lora_alpha=12)(
    changed_adapter(lora_alpha=0)
)
row("its alpha is not recorded", refused="gives no lora_alpha")(changed_adapter(lora_alpha=...))
row("an adapter's strength by the root of its rank")(lambda folder: adapted(folder, use_rslora=True))
row("an adapter with strengths and ranks by module")(
    lambda folder: adapted(folder, alpha_pattern={"q_proj": 3}, rank_pattern={"down_proj": 2})
)
row("an adapter with a module trained whole")(lambda folder: adapted(folder, modules_to_save=["lm_head"]))
row("an adapter on embeddings and head")(
    lambda folder: adapted(folder, target_modules=["embed_tokens", "lm_head", "v_proj"])
)


def tied_and_adapted(*targets: str, **more: Any) -> Make:
    """An adapter in `lora_adapter/` beside a model whose head is tied to its embeddings."""

    def make(folder: Path) -> Any:
        made.save_model(made.text_model(tie_word_embeddings=True), folder)
        return add_adapter(folder, target_modules=list(targets), **more)

    return make


row("tied, with an adapter on the embeddings")(tied_and_adapted("embed_tokens", "q_proj"))
row("tied, with an adapter on the head")(tied_and_adapted("lm_head", "q_proj"))
row("tied, with an adapter on neither", silent=("values of its own",))(tied_and_adapted("v_proj"))
row("an adapter with trained biases")(lambda folder: adapted(folder, bias="lora_only"))
row("an adapter with a bias of its own", refused="lora_B.bias cannot be merged here")(
    lambda folder: adapted(folder, lora_bias=True)
)
row("DoRA", refused="use_dora is true")(lambda folder: adapted(folder, use_dora=True))
row("adapters that began with changed base weights", refused="init_lora_weights is pissa")(
    changed_adapter(init_lora_weights="pissa")
)
row("an adapter of another kind", refused="peft_type is IA3")(changed_adapter(peft_type="IA3"))
row("an adapter setting of a newer peft", refused="use_wonders is true, which is not known here")(
    changed_adapter(use_wonders=True)
)


def moved(**files: str | None) -> Make:
    """An adapter whose files (by the first part of their names) are elsewhere in the folder, or gone."""

    def make(folder: Path) -> Any:
        model = adapted(folder)
        for path in sorted((folder / "lora_adapter").iterdir()):
            place = files.get(path.stem, "lora_adapter")
            if place is None:
                path.unlink()
            elif place != "lora_adapter":
                (folder / place).mkdir(exist_ok=True)
                path.rename(folder / place / path.name)
        return model

    return make


row("an adapter without its adapter_config.json", refused="is not recorded")(moved(adapter_config=None))
row("it, and --lora_alpha given", says=("alpha 12 (--lora_alpha)",), lora_alpha=12)(moved(adapter_config=None))
row("an adapter without its weights", refused="There are no weights beside")(moved(adapter_model=None))
row("an adapter among the files of a whole model", refused="holds a model and adapters for it")(
    moved(adapter_config=".", adapter_model=".")
)


@row("an adapter in a folder of another name", says=("Not used: mine/ (adapters, which are not added",))
def _mine(folder: Path) -> Any:
    moved(adapter_config="mine", adapter_model="mine")(folder)
    return hugging_face(folder)


@row("an adapter tensor of an unknown kind", refused="lora_C.weight cannot be merged here")
def _lora_c(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapted(folder)
    path = folder / "lora_adapter" / "adapter_model.safetensors"
    parts = load_file(path)
    parts["base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight"] = torch.ones(4, 4)
    save_file(parts, path)


# --- Tokenizers.

KIND.append("tokenizers")


@row("a byte-level tokenizer under a class of another kind", says=("tokenizer.json",))
def _other_class(folder: Path) -> Any:
    made.save_model(made.text_model("Llama"), folder)
    made.change_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
    return hugging_face(folder)


@row("an EOS that is not in the tokenizer", refused="The EOS token <|end|> is not in the tokenizer", early=True)
def _no_eos(folder: Path) -> None:
    made.copy_of_base(folder)
    made.change_json(folder / "tokenizer_config.json", eos_token="<|end|>")
    (folder / "special_tokens_map.json").unlink(missing_ok=True)  # transformers 4 writes one, with the EOS before


@row("more tokens than embeddings", refused="vocab_size is 331", early=True)
def _more_tokens(folder: Path) -> None:
    made.copy_of_base(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<a>", "<b>"])
    tokenizer.save_pretrained(folder)


# --- Templates.

KIND.append("templates")

PARTS = CHATML.replace("{{ message.content }}", "{% for part in message.content %}{{ part.text }}{% endfor %}")
NO_SYSTEM = CHATML.replace(
    "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
)
REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)


def template(text: str | None, **config: Any) -> Make:
    """The base model with another chat template in chat_template.jinja, or none."""

    def make(folder: Path) -> Any:
        made.copy_of_base(folder)
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        made.change_json(folder / "tokenizer_config.json", chat_template=..., **config)
        if text is not None:
            (folder / "chat_template.jinja").write_text(text)
        return hugging_face(folder)

    return make


row("a template that wants contents as parts", says=("contents are given as lists of parts",))(template(PARTS))
row("a template that leaves out what users say", refused="its output lacks the user's message", early=True)(
    template("{{ messages | length }} messages. ")
)
row("no template", says=("none: prompts are sent as they are",))(template(None))
row("an empty template", says=("is empty: prompts are sent as they are",))(template(" \n"))
row("a template that cannot be parsed", refused="chat_template.jinja cannot be parsed. Line 2:", early=True)(
    template("{% for message in messages %}\n{{ message.content }")
)
row("it, and no template asked for", use_chat_template=False)(
    template("{% for message in messages %}\n{{ message.content }")
)
row("a template that ignores system prompts", says=("it ignores system prompts",))(template(NO_SYSTEM))
row("a template that refuses system prompts", says=("it refuses system prompts",))(template(REFUSES_SYSTEM))
row("a template of the last message alone", says=("it leaves out what was said before the last message",))(
    template("{{ messages[-1].content }}<|im_end|>")
)
row("a template that leaves out earlier replies", says=("it leaves out what was said before",))(
    template(
        CHATML.replace("{% for message in messages %}", "{% for message in messages if message.role == 'user' %}")
    )
)
row("a template that cannot do without an argument", refused="It reads persona, which is not given.", early=True)(
    template("{% if persona is not defined %}{{ raise_exception('no persona') }}{% endif %}" + CHATML)
)
row("a template with an argument that may be left out", says=("chat template: enable_thinking",))(
    template(CHATML + "{% if enable_thinking %}<think>{% endif %}")
)


@row("a template in chat_template.json", says=("chat_template.json",))
def _json_template(folder: Path) -> Any:
    model = template(None)(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    return model


def named_templates(**names: str) -> Make:
    listed = [{"name": name, "template": text} for name, text in names.items()]

    def make(folder: Path) -> Any:
        model = template(None)(folder)
        made.change_json(folder / "tokenizer_config.json", chat_template=listed)
        return model

    return make


row("named templates without a default one", refused="They are called rag, tool_use.", early=True)(
    named_templates(rag=CHATML, tool_use=CHATML)
)
row("one of them chosen", says=("rag, tokenizer_config.json", "tool_use"), chat_template="rag")(
    named_templates(rag=CHATML, tool_use=CHATML)
)
row("named templates with a default one", says=("tokenizer_config.json", "tool_use"))(
    named_templates(default=CHATML, tool_use=CHATML)
)


@row("turns that do not end with EOS", says=("Replies also end at <|im_end|> (2)", "(2: the chat template"))
def _turn_end(folder: Path) -> Any:
    model = template(CHATML, eos_token="<|endoftext|>")(folder)
    made.change_json(folder / "generation_config.json", eos_token_id=0)
    return model


# --- Configs.

KIND.append("configs")


def config(**values: Any) -> Make:
    def make(folder: Path) -> Any:
        made.copy_of_base(folder)
        reference = hugging_face(folder)
        made.change_json(folder / "config.json", **values)
        return reference

    return make


row("attention implementations in the config")(
    config(attn_implementation="flash_attention_2", _attn_implementation="flash_attention_2")
)
row("dtypes with their module's name")(config(dtype="torch.bfloat16", torch_dtype="torch.float16"))
row("an unknown model type", refused="does not know the model type qwen9. ", early=True)(
    config(model_type="qwen9", transformers_version="9.1.0")
)
row("no model type", refused="names no model_type", early=True)(config(model_type=...))
row("values that do not go together", refused="cannot build the model of")(config(num_attention_heads="four"))
row("a key that no class knows", says=("config.json: mystery 3 (not known to transformers' Qwen2Config)",))(
    config(mystery=3)
)
row("an encoder", refused="bert is an encoder")(config(model_type="bert"))
row("an encoder-decoder model", refused="t5 is an encoder-decoder model")(config(model_type="t5"))
row("an audio model", refused="qwen2_audio is an audio model", early=True)(
    config(model_type="qwen2_audio", audio_config={"model_type": "qwen2_audio_encoder"}, text_config=made.SMALL)
)
row("no language model at all", refused="vit is no causal language model")(config(model_type="vit"))
row("sampling settings that are not supported", says=("repetition_penalty 1.3", "min_p 0.1", "(not supported"))(
    lambda folder: generation(folder, repetition_penalty=1.3, do_sample=True, min_p=0.1, temperature=0.5)
)
row("texts that end replies", silent=("stop_strings",))(lambda folder: generation(folder, stop_strings=["ab"]))
row("neutral sampling settings", silent=("not supported",))(
    lambda folder: generation(folder, repetition_penalty=1.0, min_p=0.0, num_beams=1)
)


def generation(folder: Path, **values: Any) -> Any:
    made.copy_of_base(folder)
    made.change_json(folder / "generation_config.json", **values)
    return hugging_face(folder)


@row("two files hold a tensor, and no index", refused="Two weights files hold lm_head.weight")
def _twice(folder: Path) -> None:
    made.copy_of_base(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "consolidated.safetensors").write_bytes((folder / "model-00001-of-00001.safetensors").read_bytes())


@row("quantized weights", refused="The weights are quantized (fp8)")
def _quantized(folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight_scale_inv"
    with_tensors(folder, lambda state: state.update({name: torch.ones(1)}))
    made.change_json(folder / "config.json", quantization_config={"quant_method": "fp8"})


@row("the authors' later checkpoints", says=("dllm, as qwen2", "N 3 R 1", "config.json: block_size 4 (not known"))
def _dllm(folder: Path) -> Any:
    made.copy_of_base(folder)
    reference = hugging_face(folder)
    made.change_json(
        folder / "config.json",
        model_type="dllm",
        architectures=["DLLMForCausalLM"],
        auto_map={"AutoConfig": "configuration_dllm.DLLMConfig", "AutoModel": "modeling_dllm.DLLMForCausalLM"},
        mask_token_id=2,
        block_size=4,
    )
    return reference


# --- Vision-language models, by their text part.

KIND.append("families")


def vision(family: str, how: str) -> Make:
    def make(folder: Path) -> Any:
        model = made.vision_model(family)
        made.save_model(model, folder)
        if how == "saved by transformers":
            return model
        state = dict(model.state_dict())
        if how == "older names":
            state = {older(family, name): one for name, one in state.items()}
        (folder / "model.safetensors").unlink()
        made.save_as_verl_shards(state, folder)
        return model

    return make


def older(family: str, name: str) -> str:
    for today, before in made.OLDER_NAMES[family]:
        if name.startswith(today):
            return before + name.removeprefix(today)
    return name


for family in made.VISION:
    if family in transformers.CONFIG_MAPPING:
        for how in ("saved by transformers", "shards", "older names"):
            if how != "older names" or family in made.OLDER_NAMES:
                row(f"{family}, {how}", says=("its text part", "only the text part answers"))(vision(family, how))

# --- Experts under the names of transformers 4, which version 5 still writes into safetensors.


def experts(family: str, **more: Any) -> Make:
    def make(folder: Path) -> Any:
        made.save_model(made.text_model(family, **more), folder)
        return hugging_face(folder)

    return make


for family, more in {
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "Phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8},
    "Ernie4_5_Moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 24,
        "moe_layer_start_index": 0,
        "moe_layer_end_index": 1,
    },
}.items():
    if hasattr(transformers, f"{family}Config"):
        row(f"experts of {family}, saved by transformers")(experts(family, **more))
