"""Other weights in the middle of a conversation: in place on all ranks, or everything as it was."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from held_run import SHORT, reply_by_plain_rule, run_holder
from known_facts import known_facts
from program import Chat, replied
from ranks import rank_environment
from steps import add_step, cut_in_half, right_sums

from chat.commands.table import complete
from chat.loading.facts import facts_table, short_count, size
from chat.start.options import LaunchOptions
from dist.checkpoint.folder import LATEST
from dist.checkpoint.ledger import Entry, Ledger


@pytest.fixture
def run(tiny_checkpoint, tmp_path) -> Path:
    """A run with the steps 3 and 7, saved by three ranks."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_checkpoint("fsdp2", 3), folder)
    add_step(folder, 3, 7)
    return folder


def hugging_face_folder(step: Path) -> Path:
    return step / "actor" / "huggingface"


# On real ranks, below the conversation.


@pytest.fixture(scope="module")
def on_ranks(tiny_checkpoint, tmp_path_factory) -> dict:
    """{(count of ranks, way): what came of it}."""
    folder = tmp_path_factory.mktemp("ranks") / "run"
    shutil.copytree(tiny_checkpoint("fsdp2", 3), folder)
    add_step(folder, 3, 7)
    command = [sys.executable, str(Path(__file__).parents[1] / "support" / "ranks_reload.py"), "1,2", str(folder)]
    done = subprocess.run(command, env=rank_environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(done.stdout.splitlines()[-1])
    return {(int(count), way): result for count, ways in results.items() for way, result in ways.items()}


WAYS = [(1, "resident"), (2, "resident"), (2, "sharded"), (2, "tp")]


@pytest.mark.parametrize(("ranks", "keep"), WAYS)
def test_the_reply_after_a_swap_is_that_of_a_fresh_start_and_nothing_has_moved(on_ranks, ranks, keep):
    fresh, swapped = on_ranks[ranks, f"{keep} fresh"], on_ranks[ranks, f"{keep} swap"]
    assert swapped["error"] is None
    assert swapped["reply"] == fresh["reply"] != swapped["first"]
    assert swapped["step"] == 7
    assert swapped["changed"] == list(range(ranks))
    assert swapped["moved"] == []
    kept_before, kept_after = swapped["kept"]
    assert kept_before > 0 == kept_after
    ((done, total),) = swapped["progress"]
    # What the other rank read last may not be counted yet when rank 0 looks.
    assert total / ranks <= done <= total


@pytest.mark.parametrize(("ranks", "keep"), WAYS)
def test_what_one_rank_cannot_open_is_reported_at_once_and_nothing_is_overwritten(on_ranks, ranks, keep):
    refused = on_ranks[ranks, f"{keep} refuse_on_last_rank"]
    kind, text = refused["error"]
    assert kind == "CheckpointError"
    assert text.count("The disk of this rank is gone. It was pulled. Put it back.") == 1
    assert ("Rank 1" in text) == (ranks == 2)
    assert refused["seconds"] < 3.0
    assert refused["changed"] == refused["overwritten"] == []
    assert refused["progress"] == []
    assert (refused["step"], refused["reply"]) == (3, refused["first"])


@pytest.mark.parametrize(("ranks", "keep"), WAYS[1:])
def test_other_weights_under_the_same_name_on_another_host_are_refused(on_ranks, ranks, keep):
    refused = on_ranks[ranks, f"{keep} differ_on_last_rank"]
    kind, text = refused["error"]
    assert kind == "CheckpointError"
    assert "is not the checkpoint that it is on rank 0's host" in text
    assert "Rank 1" in text
    assert refused["changed"] == []
    assert (refused["step"], refused["reply"]) == (3, refused["first"])


@pytest.mark.parametrize(("ranks", "keep"), WAYS)
def test_a_file_that_ends_in_the_middle_brings_the_old_weights_back(on_ranks, ranks, keep):
    torn = on_ranks[ranks, f"{keep} tear_on_last_rank"]
    kind, text = torn["error"]
    assert kind == "CheckpointError"
    assert "rank_2.pt is incomplete" in text
    assert text.endswith("global_step_3/actor are in place again.")
    assert torn["seconds"] < 3.0
    assert torn["overwritten"]
    assert torn["changed"] == []
    assert (torn["step"], torn["reply"]) == (3, torn["first"])


@pytest.mark.parametrize(("ranks", "keep"), WAYS)
def test_weights_that_cannot_be_brought_back_are_reported_with_both_reasons(on_ranks, ranks, keep):
    lost = on_ranks[ranks, f"{keep} tear_both_on_last_rank"]
    kind, text = lost["error"]
    assert kind == "WeightsLost"
    first, second = text.split("Reading ")[1:]
    # The files are cut while another rank may be in the middle of opening them.
    for step, said in ((7, first), (3, second)):
        assert f"global_step_{step}/actor/model_world_size_3_rank_2.pt" in said
        assert "is incomplete" in said or "is damaged" in said


# In the conversation, on one rank.


@pytest.fixture
def talk(tmp_path):
    return run_holder(tmp_path)


def test_load_keeps_the_conversation_and_answers_as_a_fresh_start_would(run, talk, tmp_path):
    repl, console = talk(run / "global_step_3", "Hello", "/load 7", "And then?")
    messages = repl.talk.transcript.messages
    assert [message.content for message in messages[::2]] == ["Hello", "And then?"]
    right = reply_by_plain_rule(run / "global_step_7", repl.talk.transcript, repl.talk.settings)
    assert messages[3].token_ids == right
    wrong = reply_by_plain_rule(run / "global_step_3", repl.talk.transcript, repl.talk.settings)
    assert wrong != right
    assert re.search(f"Step 7 answers from here on, ready in [0-9.]+ s: {run}/global_step_7/actor\n", console.shown)
    assert console.toolbar.endswith("N 3  R 2  greedy  step 7")
    assert repl.talk.facts.step == 7
    (journal,) = (tmp_path / "sessions").glob("*.jsonl")
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [record["step"] for record in records if record["kind"] == "checkpoint"] == [3, 7]
    assert [node.made.checkpoint.step for node in repl.talk.tree.path() if node.made] == [3, 7]


def test_a_replay_decodes_each_reply_by_the_step_that_made_it(run, talk, tmp_path):
    gone = run / "global_step_3"
    right_sums(run / "global_step_7")
    repl, console = talk(
        gone,
        "Hello",
        "/load 7",
        "And then?",
        "/replay",
        "More?",
        "/replay here",
        lambda: gone.rename(tmp_path / "moved"),
        "/replay",
    )
    outcomes = re.findall(r"^(\d)\. .*: (same|first differs|not replayed, .*)", console.shown, re.M)
    assert outcomes[:2] == [("1", "same"), ("2", "same")]
    assert outcomes[2:5] == [("1", "first differs"), ("2", "same"), ("3", "same")]
    assert re.match(r"not replayed, step 3 of \S+/actor cannot be loaded: There is no ", outcomes[5][1])
    assert outcomes[6:] == [("2", "same"), ("3", "same")]
    shown = " ".join(console.shown.split())
    assert "2 replies replayed: 2 the same, 0 not." in shown
    assert f"3 replies replayed: 2 the same, 1 not. Made by step 3 of {gone}/actor; replayed on step 7 of" in shown
    # The conversation went on with the step that it had, and its journal knows nothing of all this.
    assert repl.talk.facts.step == 7
    right = reply_by_plain_rule(run / "global_step_7", repl.talk.transcript, repl.talk.settings)
    assert repl.talk.transcript.messages[-1].token_ids == right
    (journal,) = (tmp_path / "sessions").glob("*.jsonl")
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [record["step"] for record in records if record["kind"] == "checkpoint"] == [3, 7]


def test_a_replay_needs_the_way_back(run, talk):
    seven = run / "global_step_7"
    right_sums(seven)
    repl, console = talk(run / "global_step_3", "Hello", "/load 7", lambda: shutil.rmtree(seven), "/replay", "And?")
    assert "Step 7 could not be brought back afterwards.\n" in console.shown
    assert "replayed" not in console.shown
    assert repl.talk.facts.step == repl.talk.tree.node(repl.talk.tree.head).made.checkpoint.step == 7


def test_a_retry_after_load_drafts_from_the_other_steps_reply_and_says_where_they_diverge(run, talk):
    right_sums(run / "global_step_7")
    repl, console = talk(run / "global_step_3", "/refine_iter auto", "Hello", "/retry", "/load 7", "/retry")
    first, same, other = (node.made for node in repl.talk.tree.nodes() if node.made)
    assert same.token_ids == first.token_ids and same.stats["drafts"]["earlier"] > 0
    assert len(same.stats["accepted"]) == -(-len(first.token_ids) // 4)
    right = dataclasses.replace(repl.talk.settings, add_eos_length=0, refine_iter=1)
    assert other.token_ids == reply_by_plain_rule(run / "global_step_7", repl.talk.transcript, right)
    (said,) = re.findall(r"The same as the reply of step 3 for (\d+) tokens?, then \"", console.shown)
    place = int(said)
    assert other.token_ids[:place] == first.token_ids[:place]
    assert other.token_ids[place] != first.token_ids[place]


def test_where_nothing_names_refine_iter_the_first_block_decides_and_again_after_load(run, talk, tmp_path):
    options = LaunchOptions(checkpoint_dir=str(run), settings={"max_new_tokens": 20}, dtype="float32")
    repl, console = talk(run / "global_step_3", "Hello", "/load 7", "And?", "More?", options=options)
    shown = " ".join(console.shown.split())
    said = re.findall(r"refine_iter auto, add_eos_length 7, measured: (\d+) of 16 tokens", shown)
    assert len(said) == 2 and all(int(same) < 13 for same in said)
    assert repl.talk.origins["refine_iter"] == repl.talk.origins["add_eos_length"] == "measured on a first block"
    made = [node.made for node in repl.talk.tree.nodes() if node.made]
    assert [one.turn.settings["refine_iter"] for one in made] == ["auto"] * 3
    right = dataclasses.replace(repl.talk.settings, add_eos_length=0, refine_iter=1)
    assert made[-1].token_ids == reply_by_plain_rule(run / "global_step_7", repl.talk.transcript, right)
    # The message is on disk before anything is tried out.
    (journal,) = (tmp_path / "sessions").glob("*.jsonl")
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    turn = next(at for at, record in enumerate(records) if record["kind"] == "turn")
    assert (records[turn]["text"], records[turn]["settings"]["refine_iter"]) == ("Hello", 2)
    measured = {(one["name"], one["value"], one["at"]) for one in records[turn + 1 : turn + 3]}
    assert measured == {("refine_iter", "auto", 0), ("add_eos_length", 7, 0)}


def test_defaults_of_the_new_step_are_adopted_but_for_what_was_set_by_hand(run, talk):
    folder = hugging_face_folder(run / "global_step_7")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [2, 260], "refine_iter": 5, "max_length": 700, "top_k": 9}))
    template = folder / "chat_template.jinja"
    template.write_text("{{ messages[-1].content }}!")
    options = LaunchOptions(checkpoint_dir=str(run), settings={"max_new_tokens": 12}, dtype="float32")
    repl, _ = talk(
        run / "global_step_3", "/refine_iter 3", "/add_eos_length 3", "/load 7", "Hello", options=options
    )
    expected = {"refine_iter": 3, "add_eos_length": 3, "max_length": 700, "max_new_tokens": 12, "top_k": 0}
    assert {name: getattr(repl.talk.settings, name) for name in expected} == expected
    assert repl.talk.origins["refine_iter"] == "this conversation"
    assert repl.talk.origins["max_length"] == "checkpoint's generation_config.json"
    assert repl.talk.origins["max_new_tokens"] == "command line"
    assert repl.talk.tokenizer.stop_ids == (2, 260)
    assert repl.talk.last_reply.prompt_len == len(repl.talk.tokenizer.encode("Hello!"))


def test_steps_and_latest_are_looked_up_each_time(run, talk):
    repl, console = talk(
        run,
        "/steps",
        lambda: add_step(run, 3, 12),
        "/steps",
        "/load latest",
        lambda: shutil.rmtree(run / "global_step_3"),
        "/steps",
    )
    tables = console.shown.split("/load STEP switches to one of them.")
    rows = [[line.split() for line in table.splitlines() if line.startswith("  step")] for table in tables]
    assert [[row[1] for row in table] for table in rows[:3]] == [["7", "3"], ["12", "7", "3"], ["12", "7"]]
    assert [row[4:] for row in rows[0]] == [["loaded,", "latest"], []]
    assert [row[4:] for row in rows[1]] == [["latest"], ["loaded"], []]
    assert [row[4:] for row in rows[2]] == [["loaded,", "latest"], []]
    assert repl.talk.facts.step == 12


def unfinished(run: Path) -> None:
    shutil.rmtree(run / "global_step_7")
    shutil.copytree(run / "global_step_3", run / "global_step_7")
    (run / "global_step_7" / "actor" / "model_world_size_3_rank_1.pt").unlink()


def other_size(run: Path) -> None:
    path = hugging_face_folder(run / "global_step_7") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_theta": 77.0, "rms_norm_eps": 0.5}))


def other_vocabulary(run: Path) -> None:
    path = hugging_face_folder(run / "global_step_7") / "tokenizer.json"
    raw = json.loads(path.read_text())
    words = raw["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    path.write_text(json.dumps(raw))


def test_steps_says_what_a_step_lacks_that_training_may_be_writing(run, talk):
    unfinished(run)
    (run / LATEST).write_text("3")
    _, console = talk(run / "global_step_3", "/steps")
    assert re.search(r"step 7 .*, half written: 1 of 3 shards are missing$", console.shown, re.MULTILINE)
    assert re.search(r"step 3 .*, loaded, latest$", console.shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("spoil", "line", "message"),
    [
        (unfinished, "/load 7", "Shard 1 of 3 is missing"),
        (lambda run: cut_in_half(run / "global_step_7"), "/load latest", "rank_2.pt"),
        (other_size, "/load 7", "holds another model than the loaded one.\nIt differs: its rms_norm_eps is 0.5"),
        (other_vocabulary, "/load 7", "has another vocabulary than the loaded one."),
        (lambda run: None, "/load 5", "There is no step 5 in"),
        (lambda run: None, "/load", "/load needs a step or a folder."),
        (lambda run: None, "/load ./nowhere", f"There is no {Path.cwd()}/nowhere."),
        (lambda run: None, "/load /", "is not a checkpoint"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_nothing_changed(run, talk, spoil, line, message):
    spoil(run)
    repl, console = talk(run / "global_step_3", "Hello", line, "/undo", "Hello")
    assert message in console.shown
    assert "Traceback" not in console.shown
    assert repl.talk.facts.step == 3
    assert repl.talk.transcript.messages[-1].token_ids == reply_by_plain_rule(
        run / "global_step_3", repl.talk.transcript, repl.talk.settings
    )


def test_another_architecture_is_refused_by_name(run, talk, tiny_checkpoint):
    other = tiny_checkpoint("fsdp2_tied", 3)
    repl, console = talk(run / "global_step_3", f"/load {other}")
    assert "It differs: it is a LlamaForCausalLM, the loaded one is a Qwen2ForCausalLM" in console.shown
    assert "Start the program again with that folder." in console.shown
    assert repl.talk.facts.step == 3


def test_a_folder_of_another_kind_with_the_same_model_can_be_loaded(run, talk):
    repl, console = talk(run / "global_step_7", "/load 3", "Hello", f"/load {run}/reference", "/undo", "Hello")
    assert repl.talk.facts.model.layout == "safetensors"
    assert repl.talk.facts.step is None
    assert console.toolbar.endswith("N 3  R 2  greedy")
    right = reply_by_plain_rule(run / "global_step_3", repl.talk.transcript, repl.talk.settings)
    assert repl.talk.transcript.messages[-1].token_ids == right


def test_under_verify_all_checksums_are_compared_before_weights_are_overwritten(run, talk):
    options = LaunchOptions(checkpoint_dir=str(run), settings=SHORT, dtype="float32", verify=True)
    shutil.copytree(run / "global_step_3", run / "global_step_9")
    files = sorted((run / "global_step_9" / "actor").glob("model_*.pt"))
    # What add_step changed in step 7, it changed behind the checksums.
    repl, console = talk(run / "global_step_3", "/load 9", "/load 7", options=options)
    seen = [text.partition(":")[0] for text in console.status]
    assert list(dict.fromkeys(seen)) == ["checking 9", "verifying", "loading", "", "checking 7"]
    total = sum(path.stat().st_size for path in files) / 1e9
    assert f"verifying: {total:.2f} of {total:.2f} GB, " in console.status[seen.index("loading") - 1]
    assert f"Shard 0 of 3 is damaged: {run}/global_step_7/actor/model_world_size_3_rank_0.pt." in console.shown
    assert "Its bytes do not match their checksums (Bad CRC-32 for file " in console.shown
    assert repl.talk.facts.step == 9


def test_completion_offers_steps_the_newest_first_and_folders(run, talk, tmp_path):
    repl, _ = talk(run / "global_step_3")
    offered = [(text, about) for text, about, _ in complete(repl, "/load ")]
    assert [text for text, _ in offered[:3]] == ["latest", "7", "3"]
    assert offered[1][1].endswith(", latest")
    assert offered[2][1].endswith(", loaded")
    assert [text for text, _, _ in complete(repl, f"/load {run}/gl")] == [
        f"{run}/global_step_3/",
        f"{run}/global_step_7/",
    ]
    alone, console = talk(run / "reference", "/steps", "/load 7")
    assert console.shown.count("The checkpoint has no steps beside it.") == 2
    assert [text for text, _, _ in complete(alone, f"/load {tmp_path}/r")] == [f"{run}/"]


def test_facts_are_given_in_readable_units():
    facts = known_facts(
        path=Path("/runs/a/global_step_30/actor"),
        step=30,
        saved_world_size=8,
        layout="FSDP2",
        torch_family="2.5 to 2.9",
        parameters=7_615_616_512,
        saved_dtype="float32",
        dtype="bfloat16",
        bytes_per_rank=15_231_233_024,
        load_seconds=10.0,
        load_bytes=30 << 30,
        processes=2,
        ledger=Ledger((Entry("generation_config.json", "min_p", False, "not supported", "0.1", matters=True),)),
    )
    rows = dict(facts_table(facts))
    assert rows["step"] == "30"
    assert rows["chat template"] == "chat_template.jinja"
    assert rows["not used"] == "generation_config.json: min_p 0.1 (not supported)"
    assert rows["layout"] == "FSDP2, torch 2.5 to 2.9"
    assert rows["world size"] == "8 when saved, 2 now"
    assert rows["parameters"] == "7,615,616,512 (7.6 B)"
    assert rows["dtype"] == "bfloat16, saved as float32"
    assert rows["memory per rank"] == "14.2 GiB of weights"
    assert rows["read"] == "30.0 GiB per rank in 10.0 s, 3.0 GiB/s"
    assert "adapters" not in rows
    assert [size(count) for count in (0, 1023, 1024, 1536 << 20)] == ["0 bytes", "1023 bytes", "1.0 KiB", "1.5 GiB"]
    assert [short_count(count) for count in (12, 12_345, 494_000_000)] == ["12", "12.3 K", "494.0 M"]


# The whole program.

FAILING_DISK = """
import os
real = os.preadv
def preadv(*arguments):
    if os.path.exists(os.environ["FAILING_DISK"]):
        raise OSError(5, "Input/output error")
    return real(*arguments)
os.preadv = preadv
"""


@pytest.mark.timeout(600)
def test_steps_load_and_model_on_two_ranks_until_the_disk_fails(tmp_path, run, monkeypatch):
    """Weights are read through os.preadv alone, so that a disk can be made to fail once all checks are over."""
    hook, flag = tmp_path / "hook", tmp_path / "disk has failed"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(FAILING_DISK)
    monkeypatch.setenv("PYTHONPATH", str(hook))
    monkeypatch.setenv("FAILING_DISK", str(flag))
    options = [f"--{name}={value}" for name, value in SHORT.items()]
    with Chat(tmp_path, "2", f"{run}/global_step_3", *options, "--dtype=float32") as chat:
        chat.say("Hello there")
        chat.wait_for(replied())
        chat.say("/steps")
        chat.wait_for("/load STEP switches to one of them.")
        chat.say("/watch")
        chat.wait_for("step 3, new: 7 (/watch load)")
        chat.say("/watch load")
        chat.wait_for("Step 7 answers from here on")
        chat.wait_for(replied(2))
        chat.wait_for("greedy  step 7")
        chat.say("And then?")
        chat.wait_for(replied(3))
        chat.say("/compare step 3 7")
        chat.wait_for("/compare keep N goes on with one of them.")
        chat.say("/compare keep 1")
        chat.wait_for("goes on with reply 1, step 3.")
        chat.wait_for("greedy  step 7")
        chat.say(f"/export {tmp_path}/talk.json")
        chat.wait_for("Wrote")
        chat.say("/clear")
        chat.say("/model")
        chat.wait_for("3 when saved, 2 now")
        chat.wait_for("memory per rank")
        flag.touch()
        chat.say("/load 3")
        assert chat.wait_end() == 3
        chat.wait_for("The model no longer has any weights.")
        shown = "".join("".join(chat.scrollback).split())  # without the breaks that the terminal makes
        assert shown.count("Input/outputerroratbyte") == 2
        assert "Continue:bashrun_chat.sh" in shown
        assert chat.mode == chat.mode_before
        assert not chat.ranks()
    assert "Traceback" not in "\n".join(chat.scrollback)
    (journal,) = chat.sessions()
    assert "Hello there" in journal
    steps = [record["step"] for record in map(json.loads, journal.splitlines()) if record["kind"] == "checkpoint"]
    assert steps == [3, 7, 3, 7]
