"""What people point the program at, row by row: answered as transformers or peft answer, named, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from field_cases import ROWS, Case
from field_models import greedy

from chat.loading.facts import CheckpointFacts, checkpoint_facts, facts_table
from chat.loading.opening import open_asked, open_tokenizer, start_notices
from chat.start.config_file import ConfigFile
from chat.start.options import LaunchOptions, resolve_settings
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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_a_row_of_the_table(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    if "adapter" in case.name or "DoRA" in case.name or "alpha" in case.name:
        pytest.importorskip("peft")
    with torch.random.fork_rng():
        reference = case.make(folder)
    if case.refused:
        with pytest.raises(CheckpointError) as caught:
            opened(case, folder)
        assert case.refused in str(caught.value)
        assert caught.value.hint
        return
    loaded, _, said = opened(case, folder)
    for words in case.says:
        assert words in said
    for words in case.silent:
        assert words not in said
    assert greedy(loaded.module, PROMPT) == greedy(reference, PROMPT)
