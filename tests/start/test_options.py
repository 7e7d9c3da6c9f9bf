"""The command line, the config file, and where settings come from."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from chat.start.config_file import ConfigFile
from chat.start.help_page import help_text
from chat.start.options import (
    VERSION,
    LaunchOptions,
    asked_options,
    load_config,
    parse_options,
    resolve_settings,
    with_config,
)
from dist.errors import CheckpointError, UsageError
from dist.settings import SETTINGS

ROOT = Path(__file__).parents[2]
NO_CONFIG = ConfigFile(path=Path("config.toml"))


def refusal(*argv: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_options(argv)
    assert caught.value.exit_code == 2
    return str(caught.value)


def config_at(folder: Path, text: str) -> ConfigFile:
    path = folder / "dllm-chat" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return load_config({"XDG_CONFIG_HOME": str(folder)})


def config_refusal(folder: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        config_at(folder, text)
    return str(caught.value)


def test_nothing_given_leaves_every_default() -> None:
    assert parse_options([]) == LaunchOptions()


@pytest.mark.parametrize("spelling", [["--add_eos_length", "7"], ["--add-eos-length", "7"], ["--add-eos_length=7"]])
def test_names_may_be_written_with_underscores_or_hyphens(spelling: list[str]) -> None:
    assert parse_options(spelling).settings == {"add_eos_length": 7}


def test_every_option_of_the_contract_is_taken_and_carried(tmp_path: Path) -> None:
    options = parse_options(
        [
            *("--checkpoint_dir", "ckpt", "--parallel", "verl", "--dtype", "bf16", "--base_model", "base"),
            *("--lora_alpha", "16", "--trust_remote_code", "--verify", "--prompt", "hello", "--output_file"),
            *(str(tmp_path / "r.json"), "--no-use_chat_template", "--system", "be brief", "--n", "3"),
            *("--batch_size", "4", "--json", "--verbose_trace", "--debug"),
            *("--refine_iter", "auto", "--max_new_tokens", "64", "--max_length", "128", "--temperature", "0.5"),
            *("--top_k", "20", "--top_p", "0.9", "--seed", "11", "--decoder", "plain"),
        ]
    )
    assert options.settings == {
        "refine_iter": "auto",
        "max_new_tokens": 64,
        "max_length": 128,
        "temperature": 0.5,
        "top_k": 20,
        "top_p": 0.9,
        "seed": 11,
        "decoder": "plain",
    }
    assert (options.checkpoint_dir, options.parallel, options.dtype) == ("ckpt", "verl", "bfloat16")
    assert (options.base_model, options.lora_alpha, options.trust_remote_code, options.verify) == (
        "base",
        16.0,
        True,
        True,
    )
    assert (options.prompt, options.use_chat_template, options.system) == ("hello", False, "be brief")
    assert (options.n, options.batch_size, options.json, options.verbose_trace) == (3, 4, True, True)
    assert options.debug and options.has_prompts and not options.reads_stdin


def test_the_chat_template_is_left_open_switched_on_or_switched_off() -> None:
    assert parse_options([]).use_chat_template is None
    assert parse_options(["--use-chat-template"]).use_chat_template is True
    assert parse_options(["--no-use-chat-template"]).use_chat_template is False
    assert parse_options(["--no_use_chat_template"]).use_chat_template is False


def test_resume_takes_a_name_or_none() -> None:
    assert parse_options(["--resume"]).resume == ""
    assert parse_options(["--resume", "poems"]).resume == "poems"
    assert parse_options(["--resume", "--debug"]).resume == ""
    assert parse_options([]).resume is None


def test_lines_of_standard_input_are_the_prompts_where_it_is_no_terminal_and_none_are_named() -> None:
    piped = parse_options(["--json", "--n", "2", "--verbose_trace"], stdin_is_terminal=False)
    assert (piped.prompts_file, piped.prompt, piped.n) == ("-", None, 2)
    assert piped.has_prompts and piped.reads_stdin
    for argv in (["--prompt", "-"], ["--prompt", "x"], ["--prompts_file", "-"]):
        assert parse_options(argv, stdin_is_terminal=False) == parse_options(argv)
    assert parse_options(["--prompt", "-"], stdin_is_terminal=False, text_is_piped=lambda: True).reads_stdin
    with pytest.raises(UsageError, match="Prompts were given, and text is piped in"):
        parse_options(["--prompt", "x"], stdin_is_terminal=False, text_is_piped=lambda: True)
    with pytest.raises(UsageError) as caught:
        parse_options(["--resume", "poems"], stdin_is_terminal=False)
    assert str(caught.value) == (
        "--resume opens a conversation, which needs a terminal. Standard input is not one, so each of its lines is "
        "a prompt. Start the program on a terminal, or leave --resume out."
    )


def test_a_follower_looks_at_no_file_and_no_stream(tmp_path: Path) -> None:
    argv = ["--prompts_file", str(tmp_path / "only on another host"), "--output_file", "/no/such/folder/r.json"]
    assert asked_options([*argv, "--dtype", "bf16"], io.StringIO()).dtype == "bfloat16"
    assert asked_options(["--json"], io.StringIO()).json


@pytest.mark.parametrize(("node", "code"), [("", 2), ("0", 2), ("1", 0)])
def test_the_start_script_on_a_host_of_followers_asks_for_no_file_of_rank_0(node: str, code: int) -> None:
    argv = ["--checkpoint_dir", "c", "--resume", "--output_file", "/no/such/folder/r.json"]
    command = [sys.executable, "-m", "chat.start.preflight", *argv]
    hosts = {"NNODES": "2", "NODE_RANK": node, "MASTER_ADDR": "127.0.0.1"} if node else {}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | hosts, stdin=subprocess.DEVNULL, capture_output=True)
    assert (done.returncode, done.stdout) == (code, b"" if code else b"checkpoint\n")


def half_written_run(folder: Path) -> Path:
    """A run with a complete step 3 and a step 4 that lacks one shard of two. Nothing looks into the files."""
    for step, ranks in ((3, 2), (4, 1)):
        actor = folder / f"global_step_{step}" / "actor"
        actor.mkdir(parents=True)
        for rank in range(ranks):
            (actor / f"model_world_size_2_rank_{rank}.pt").write_bytes(b"PK\x05\x06" + bytes(18))
    return folder


@pytest.mark.parametrize("answer", ["y", "Yes", "n", ""])
def test_a_user_at_a_terminal_is_asked_whether_to_open_the_newest_complete_step(
    answer: str, tmp_path: Path
) -> None:
    run = half_written_run(tmp_path)
    script = f"{sys.executable} -m chat.start.preflight --checkpoint_dir {run} > {tmp_path}/out; echo code $?"
    child = pexpect.spawn("sh", ["-c", script], cwd=str(ROOT), encoding="utf-8", timeout=30)
    child.expect_exact("It is half written: 1 of 2 shards are missing.")
    child.expect_exact("The newest complete step is global_step_3.")
    child.expect_exact("Open global_step_3? [y/N] ")
    child.sendline(answer)
    agreed = answer.lower().startswith("y")
    if not agreed:
        child.expect_exact(f"Give {run}/global_step_3 to open that one.")
    child.expect_exact(f"code {0 if agreed else 3}")
    child.expect(pexpect.EOF)
    assert (tmp_path / "out").read_text() == (f"checkpoint\n{run}/global_step_3\n" if agreed else "")


def test_nobody_is_asked_where_no_terminal_is(tmp_path: Path) -> None:
    run = half_written_run(tmp_path)
    command = [sys.executable, "-m", "chat.start.preflight", "--checkpoint_dir", str(run), "--prompt", "hi"]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "checkpoint\n", "")


def test_a_prompt_may_begin_with_hyphens_unless_it_is_an_option() -> None:
    assert parse_options(["--prompt", "-5 + 3 = ?"]).prompt == "-5 + 3 = ?"
    assert parse_options(["--prompt", "--> and then?"]).prompt == "--> and then?"
    assert parse_options(["--prompt=--json"]).prompt == "--json"
    assert refusal("--prompt", "--json") == (
        "--prompt needs a value (TEXT). --json follows. Write --prompt=--json if that is the value."
    )


def test_the_last_of_two_equal_options_counts() -> None:
    assert parse_options(["--seed", "1", "--seed", "2"]).settings == {"seed": 2}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--refine_itr", "2"], "Unknown option: --refine_itr. Did you mean --refine_iter?"),
        (["--no-use-chat-templat"], "Unknown option: --no-use-chat-templat. Did you mean --no_use_chat_template?"),
        (["--temp", "1"], "Unknown option: --temp. Did you mean --temperature?"),
        (["--zzz"], "Unknown option: --zzz. --help lists the options."),
        (["--no-json"], "Unknown option: --no-json."),
        (["--refine_iter"], "--refine_iter needs a value (VALUE)."),
        (["--json=yes"], "--json takes no value, but was given 'yes'."),
        (
            ["--refine_iter", "0"],
            "--refine_iter cannot be '0'. It takes a whole number from 1 to 4096, or auto (until nothing changes).",
        ),
        (["--n", "0"], "--n cannot be '0'. It takes a whole number from 1."),
        (["--n", "two"], "--n cannot be 'two'. It takes a whole number from 1."),
        (["--lora_alpha", "nan"], "--lora_alpha cannot be 'nan'. It takes a number above 0."),
        (["--prompt", "  "], "--prompt cannot be '  '. It takes text that is not empty."),
        (["--prompt", "caf\udce9"], "--prompt cannot be 'caf\\udce9'. It takes text in UTF-8."),
        (
            ["--parallel", "fdsp"],
            "--parallel cannot be 'fdsp'. It takes auto, tp, fsdp, none, verl or copies. Did you mean fsdp?",
        ),
        (["hello"], "Unexpected argument: hello. The checkpoint and a prompt come before the options,"),
        (["--prompt", "a", "--prompts_file", "b"], "--prompt and --prompts_file cannot be given together."),
        (["--prompt", "a", "--resume"], "--resume opens a conversation"),
        (["--json"], "--json is for prompts given at the start, and there are none."),
        (["--output_file", "r.json"], "--output_file is for prompts given at the start"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(argv: list[str], message: str) -> None:
    assert message in refusal(*argv)


def test_a_missing_or_unreadable_prompts_file_is_refused(tmp_path: Path) -> None:
    assert f"No such prompts file: {tmp_path / 'none.txt'}." in refusal(
        "--prompts_file", str(tmp_path / "none.txt")
    )
    (tmp_path / "folder.txt").mkdir()
    assert "It is a folder." in refusal("--prompts_file", str(tmp_path / "folder.txt"))
    (tmp_path / "p.csv").touch()
    assert "unknown extension: .csv. It takes .txt, .jsonl or .parquet." in refusal(
        "--prompts_file", str(tmp_path / "p.csv")
    )


def test_an_output_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    def output(path: Path) -> str:
        return refusal("--prompt", "a", "--output_file", str(path))

    assert "unknown extension: .csv. It takes .json or .jsonl." in output(tmp_path / "r.csv")
    assert "unknown extension: none." in output(tmp_path / "r")
    assert f"mkdir -p {tmp_path / 'no'}" in output(tmp_path / "no" / "r.json")
    (tmp_path / "r.json").mkdir()
    assert "It is a folder." in output(tmp_path / "r.json")
    prompts = tmp_path / "p.jsonl"
    prompts.touch()
    assert "are the same file" in refusal("--prompts_file", str(prompts), "--output_file", str(prompts))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "Permission denied" in refusal("--prompt", "a", "--output_file", str(tmp_path / "r.json"))


def test_what_torchrun_puts_before_or_cannot_pass_on_has_a_way() -> None:
    assert parse_options(["--", "--prompt", "x", "-n", "3"]).n == 3
    with pytest.raises(UsageError, match="Unexpected argument: --"):
        parse_options(["--prompt", "x", "--", "--json"])


def test_help_and_version_print_and_leave_with_zero() -> None:
    for flags, begins in (
        (["--help"], "usage: bash run_chat.sh"),
        (["-h"], "usage:"),
        (["--version"], "dllm-chat "),
    ):
        stdout = io.StringIO()
        with pytest.raises(SystemExit) as caught:
            parse_options(flags, stdout=stdout)
        assert caught.value.code == 0
        assert stdout.getvalue().startswith(begins)


def test_help_names_every_option_and_every_range_in_100_columns() -> None:
    page = help_text()
    flat = re.sub(r"\s+", " ", page)
    assert all(
        f"--{name} " in flat
        for name in (*LaunchOptions.__dataclass_fields__, *SETTINGS)
        if name
        not in (
            "settings",
            "given",
            "editing_mode",
            "use_chat_template",
        )
    )
    assert "--use_chat_template, --no-use_chat_template" in flat
    assert all(row.allowed in flat for row in SETTINGS.values())
    assert max(map(len, page.splitlines())) <= 100


def test_the_version_is_the_project_s() -> None:
    assert f'\nversion = "{VERSION}"\n' in (ROOT / "pyproject.toml").read_text()


def test_reading_the_command_line_imports_neither_torch_nor_transformers() -> None:
    modules = (
        "chat.start.options, chat.batch.prompts, chat.text.transcript, "
        "chat.sessions.session, chat.sessions.export, chat.batch.run"
    )
    heavy = "{'torch', 'transformers', 'rich', 'prompt_toolkit', 'jinja2', 'pyarrow'}"
    code = f"import sys, {modules}; found = {heavy} & set(sys.modules); sys.exit(str(found) if found else 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_settings_come_from_the_command_line_then_config_then_checkpoint_then_defaults(tmp_path: Path) -> None:
    config = config_at(tmp_path, "refine_iter = 'auto'\nadd_eos_length = 15\n")
    raw = {"refine_iter": 3, "add_eos_length": 31, "max_new_tokens": 99, "bos_token_id": 1, "top_k": None}
    settings, origins = resolve_settings(parse_options(["--refine_iter", "5"]), config, raw)
    assert (settings.refine_iter, settings.add_eos_length, settings.max_new_tokens) == (5, 15, 99)
    assert settings.max_length == 8192
    assert origins["refine_iter"] == "command line"
    assert origins["add_eos_length"] == f"config file {config.path}"
    assert origins["max_new_tokens"] == "checkpoint's generation_config.json"
    assert origins["max_length"] == origins["top_k"] == "default"
    assert set(origins) == set(SETTINGS)


def test_texts_and_template_arguments_come_by_option_and_by_config_file(tmp_path: Path) -> None:
    config = config_at(
        tmp_path, 'stop = ["\\n\\n", "User:"]\nprefill = "So "\nlogprobs = 2\ntemplate_args = {b = 1, a = false}\n'
    )
    settings, _ = resolve_settings(LaunchOptions(), config, None)
    assert (settings.stop, settings.prefill, settings.logprobs) == (("\n\n", "User:"), "So ", 2)
    assert settings.template_args == '{"a": false, "b": 1}'
    argv = [
        "--stop",
        "one",
        "--stop",
        '"two" "three"',
        "--prefill=",
        "--template-args",
        '{"a": [1]}',
        "--logprobs",
        "0",
    ]
    settings, origins = resolve_settings(parse_options(argv), config, None)
    assert (settings.stop, settings.prefill, settings.logprobs) == (("one", "two", "three"), "", 0)
    assert settings.template_arguments == {"a": [1]}
    assert {origins[name] for name in ("stop", "prefill", "logprobs", "template_args")} == {"command line"}
    assert refusal("--template_args", "[1]").startswith("--template_args cannot be '[1]'. It takes a JSON object")


def test_a_checkpoint_s_sampling_keys_count_only_where_it_samples() -> None:
    keys = {"temperature": 0.7, "top_k": 20, "top_p": 0.8}
    greedy, _ = resolve_settings(LaunchOptions(), NO_CONFIG, keys)
    assert (greedy.temperature, greedy.top_k, greedy.top_p) == (0.0, 0, 1.0)
    sampled, origins = resolve_settings(LaunchOptions(), NO_CONFIG, {**keys, "do_sample": True})
    assert (sampled.temperature, sampled.top_k, sampled.top_p) == (0.7, 20, 0.8)
    assert origins["temperature"] == "checkpoint's generation_config.json"


def test_a_bad_value_in_the_checkpoint_is_named_and_can_be_overruled() -> None:
    raw = {"max_new_tokens": -1}
    with pytest.raises(CheckpointError) as caught:
        resolve_settings(LaunchOptions(), NO_CONFIG, raw)
    assert str(caught.value) == (
        "In the checkpoint's generation_config.json, max_new_tokens cannot be -1. "
        "It takes a whole number from 1 to 2147483647. "
        "Correct the file, or give --max_new_tokens on the command line."
    )
    settings, _ = resolve_settings(parse_options(["--max_new_tokens", "5"]), NO_CONFIG, raw)
    assert settings.max_new_tokens == 5


def test_without_a_config_file_there_is_nothing_in_it(tmp_path: Path) -> None:
    config = load_config({"XDG_CONFIG_HOME": str(tmp_path), "HOME": "/nowhere"})
    assert (dict(config.settings), dict(config.options)) == ({}, {})


def test_a_relative_xdg_folder_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / ".config" / "dllm-chat" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text("seed = 5\n")
    assert load_config({"XDG_CONFIG_HOME": "somewhere", "HOME": str(tmp_path)}).settings == {"seed": 5}


def test_options_of_the_config_file_stand_where_the_command_line_is_silent(tmp_path: Path) -> None:
    text = 'dtype = "fp32"\nsystem = "Be brief."\nuse_chat_template = false\nediting_mode = "vi"\n'
    config = config_at(tmp_path, text)
    options = with_config(parse_options(["--system", ""]), config)
    assert (options.dtype, options.system, options.use_chat_template) == ("float32", "", False)
    assert (options.editing_mode, parse_options([]).editing_mode) == ("vi", "emacs")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "refine_itr = 2",
            "has an unknown key: refine_itr. Did you mean refine_iter? The keys are accept, ",
        ),
        ("top_p = 2.0", "top_p cannot be 2.0. It takes a number above 0, at most 1 (off)."),
        ("dtype = 'int8'", "dtype cannot be 'int8'. It takes auto, float32, bfloat16 or float16."),
        ("use_chat_template = 'yes'", "use_chat_template cannot be 'yes'. It takes true or false."),
        ("system = 3", "system cannot be 3. It takes text in UTF-8."),
        ("checkpoint_dir = 'x'", "has an unknown key: checkpoint_dir."),
        ("editing_mode = 'ed'", "editing_mode cannot be 'ed'. It takes emacs or vi."),
        ("seed 5", "is not TOML."),
    ],
)
def test_a_mistake_in_the_config_file_is_named_with_what_is_allowed(
    tmp_path: Path, text: str, message: str
) -> None:
    said = config_refusal(tmp_path, text)
    assert str(tmp_path / "dllm-chat" / "config.toml") in said
    assert message in said


def test_help_that_nobody_reads_to_its_end_ends_in_silence() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "chat", "--help"]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
