"""What people point the program at, row by row: answered as transformers or peft answer, named, or refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import field_models as made
import pytest
import torch
from field_cases import ROWS, Case
from field_models import greedy
from ranks import rank_environment

from chat.loading.facts import CheckpointFacts, checkpoint_facts, facts_table
from chat.loading.opening import open_asked, open_tokenizer, read_files, start_notices
from chat.start.config_file import ConfigFile
from chat.start.options import LaunchOptions, resolve_settings
from dist.checkpoint.open import open_checkpoint
from dist.errors import CheckpointError
from dist.group.group import SoloGroup
from dist.model.load import LoadedModel, load_model

PROMPT = tuple(range(5, 25))


def opened(case: Case, folder: Path) -> tuple[LoadedModel, CheckpointFacts, str]:
    """As the program opens it: the model, the facts, and all that is said of it."""
    options = LaunchOptions(checkpoint_dir=str(folder), dtype="float32", **case.options)
    checkpoint = open_asked(options)
    settings, _ = resolve_settings(
        options, ConfigFile(path=folder / "none.toml"), checkpoint.generation_config, checkpoint.defaults
    )
    tokenizer = open_tokenizer(options, checkpoint)
    use_template = tokenizer.wants_template(options.use_chat_template)
    loaded = load_model(checkpoint, SoloGroup(torch.device("cpu")), dtype="float32")
    facts = checkpoint_facts(loaded, tokenizer, use_template, 1, 1.0)
    said = [f"{name}: {value}" for name, value in facts_table(facts)]
    said += [*facts.ledger.lines(), *(one.why for one in facts.ledger.entries)]
    said += start_notices(facts, tokenizer, use_template, "")
    said.append(f"N {settings.add_eos_length} R {settings.refine_iter}")
    return loaded, facts, "\n".join(said)


FAMILIES = [case for case in ROWS if case.kind == "families"]
ADAPTERS = [case for case in ROWS if case.kind == "adapters"]
REST = [case for case in ROWS if case.kind not in ("families", "adapters")]


def name_of(case: Case) -> str:
    return case.name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REST, ids=name_of)
def test_a_row_of_the_table(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.drawn
@pytest.mark.parametrize("case", ADAPTERS, ids=name_of)
def test_an_adapter_counts_as_peft_counts_it(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    check(case, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.drawn
@pytest.mark.parametrize("case", FAMILIES, ids=name_of)
def test_a_family_answers_text_as_transformers_does(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


def check(case: Case, tmp_path: Path) -> None:
    """What the row says of its folder holds."""
    folder = tmp_path / "checkpoint"
    with torch.random.fork_rng():
        reference = case.make(folder)
    if case.refused:
        with pytest.raises(CheckpointError) as caught:
            opened(case, folder)
        assert case.refused in str(caught.value)
        assert caught.value.hint
        if case.early:
            options = LaunchOptions(checkpoint_dir=str(folder), **case.options)
            with pytest.raises(CheckpointError, match=re.escape(str(caught.value))):
                read_files(options, open_asked(options), {})
        return
    loaded, _, said = opened(case, folder)
    for words in case.says:
        assert words in said
    for words in case.silent:
        assert words not in said
    assert greedy(loaded.module, PROMPT) == greedy(reference, PROMPT)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_authors_later_checkpoints_are_bit_equal_to_the_same_weights_as_qwen2(dtype, tmp_path):
    (case,) = (one for one in ROWS if one.name == "the authors' later checkpoints")
    made.copy_of_base(tmp_path / "qwen2")
    case.make(tmp_path / "dllm")
    logits, types = [], []
    for name in ("qwen2", "dllm"):
        checkpoint = open_checkpoint(tmp_path / name)
        types.append(checkpoint.config["model_type"])
        loaded = load_model(checkpoint, SoloGroup(torch.device("cpu")), dtype=dtype)
        with torch.inference_mode():
            logits.append(loaded.module(input_ids=torch.tensor([PROMPT])).logits)
    assert types == ["qwen2", "dllm"] and torch.equal(*logits) and logits[0].abs().max() > 0


READ_FILES = """
import sys
from chat.loading.opening import open_asked, read_files
from chat.start.options import LaunchOptions
options = LaunchOptions(checkpoint_dir=sys.argv[1])
read_files(options, open_asked(options), {})
print(*({"torch", "transformers", "tokenizers", "jinja2"} & sys.modules.keys()))
"""


def test_what_files_show_by_themselves_is_refused_without_any_library(tmp_path):
    made.copy_of_base(tmp_path / "checkpoint")
    command = [sys.executable, "-c", READ_FILES, str(tmp_path / "checkpoint")]
    done = subprocess.run(command, env=rank_environment(), capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("\n", 0), done.stderr
