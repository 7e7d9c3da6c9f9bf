"""Completes a folder that verl has written and checks it by reloading. Knows no weights.

Run by `prepare` in a process of its own: `python -m chat.demo.finish SOURCE FOLDER`.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from chat.demo.expand import SAMPLES
from chat.demo.tokenizer import BOS_ID, EOS_ID, check_tokenizer, write_tokenizer_config
from chat.terminal.process import die_with_parent

# Until nothing changes: what is said is then what greedy decoding says. MODEL_CARD.md has the figures.
GENERATION = {
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": EOS_ID,
    "do_sample": False,
    "add_eos_length": 7,
    "refine_iter": "auto",
}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def portable_config(config: dict[str, object]) -> dict[str, object]:
    """The model config for transformers 4 and 5: the older one knows no `rope_parameters` and would
    silently take its default `rope_theta`."""
    kept = {key: value for key, value in config.items() if not key.endswith("name_or_path")}
    rope = kept.get("rope_parameters")
    if isinstance(rope, dict):
        kept["rope_theta"] = rope["rope_theta"]
    return kept


def finish(source: Path, folder: Path) -> None:
    """Complete `folder`/huggingface. Raises ValueError if what is reloaded from it differs from `source`."""
    from transformers import AutoConfig, AutoTokenizer

    hf_folder = folder / "huggingface"
    config_file = hf_folder / "config.json"
    write_json(config_file, portable_config(json.loads(config_file.read_text(encoding="utf-8"))))
    write_json(hf_folder / "generation_config.json", GENERATION)
    write_tokenizer_config(hf_folder)

    expected = json.loads((source / SAMPLES).read_text(encoding="utf-8"))
    check_tokenizer(AutoTokenizer.from_pretrained(hf_folder), expected)
    made, wanted = (AutoConfig.from_pretrained(path).to_dict() for path in (hf_folder, source))
    differing = sorted(
        key
        for key in made.keys() | wanted.keys()
        if not key.endswith("name_or_path") and key != "rope_theta" and made.get(key) != wanted.get(key)
    )
    if differing:
        raise ValueError(f"config.json differs after reloading: {', '.join(differing)}")


if __name__ == "__main__":
    die_with_parent(signal.SIGKILL)
    finish(*map(Path, sys.argv[1:3]))
