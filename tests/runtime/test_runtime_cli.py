import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import runtime.cli
from gladstone.artifacts import Manifest, record_file, write_json, write_manifest
from gladstone.chat.messages import NO_MEDICAL_ADVICE, Message
from gladstone.gguf.header import read_info
from runtime.engine import Engine, Sampling
from tests.gladstone.wrong_files import WRONG
from tests.waiting import PATIENCE_S

Run = Callable[..., Result]
Rewrite = Callable[..., Path]
ONE_THREAD = ("--threads", "1")
SUM = "What is 2+2?"
STORY = "Write a long story about a doctor and a dragon."


@pytest.fixture
def run_folder(smollm: Path, tmp_path: Path) -> Path:
    """A finished export with one model in it."""
    shutil.copy(smollm, tmp_path / "model.gguf")
    template = read_info(smollm).template_sha256
    files = (record_file(tmp_path, tmp_path / "model.gguf"),)
    write_manifest(tmp_path, Manifest("export", files, {}, {}, {}, template_sha256=template))
    return tmp_path


def greedy(engine: Engine, question: str, max_tokens: int = 512) -> str:
    engine.clear_cache()
    return engine.complete(engine.prompt_tokens([Message("user", question)]), Sampling(max_tokens=max_tokens)).text


def steady(output: str) -> str:
    """The output without speeds and what depends on the machine's memory, which differ from run to run."""
    output = re.sub(r"[\d.]+ tokens/s", "N tokens/s", output)
    output = re.sub(r"weights (mapped|copied into huge pages)", "weights N", output)
    return re.sub(r"[\d.]+ of [\d.]+ GB free", "N of N GB free", output)


def test_help_names_the_commands_and_loads_nothing_heavy() -> None:
    code = """if True:
        import sys
        from runtime.cli import main
        for arguments in ([], ["chat"], ["ask"], ["info"]):
            main([*arguments, "--help"], standalone_mode=False)
        heavy = {"numpy", "llama_cpp", "jinja2", "prompt_toolkit", "pydantic", "yaml"}
        print("loaded:", sorted(heavy & set(sys.modules)))
    """
    environment = os.environ | {"PYTHONPATH": str(Path(runtime.cli.__file__).parents[1])}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.endswith("loaded: []\n")
    for text in ("Chat with a model in the terminal.", "--hide-reasoning", "--json", "--top-k", "[default: 0.3]"):
        assert text in output.stdout


def test_ask_prints_the_answer_and_nothing_else(runtime: Run, smollm: Path, engine: Engine) -> None:
    result = runtime("ask", smollm, SUM, *ONE_THREAD)
    assert (result.exit_code, result.stdout, result.stderr) == (0, greedy(engine, SUM) + "\n", "")


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_ask_reads_the_question_from_standard_input(
    runtime: Run, smollm: Path, engine: Engine, arguments: tuple[str, ...]
) -> None:
    result = runtime("ask", smollm, *arguments, *ONE_THREAD, stdin=f"{SUM}\n")
    assert (result.exit_code, result.output) == (0, greedy(engine, SUM) + "\n")


def test_ask_with_json_prints_one_object(runtime: Run, smollm: Path, engine: Engine) -> None:
    result = runtime("ask", smollm, SUM, "--json", *ONE_THREAD)
    answer = json.loads(result.stdout)
    assert result.exit_code == 0
    assert set(answer) == {
        *("model", "text", "reasoning", "stop_reason", "prompt_tokens", "cached_tokens", "generated_tokens"),
        *(
            "reasoning_tokens",
            "complete",
            "seed",
            "accepted_draft_tokens",
            "guessed_tokens",
            "queued_s",
            "prefill_s",
            "decode_s",
            "first_token_s",
            "load_s",
        ),
    }
    assert (answer["text"], answer["stop_reason"]) == (greedy(engine, SUM), "end")
    assert answer["model"] == str(smollm)
    assert answer["guessed_tokens"] == answer["accepted_draft_tokens"]  # the earlier name


def test_ask_reports_a_cut_answer_on_standard_error(runtime: Run, smollm: Path, engine: Engine) -> None:
    result = runtime("ask", smollm, STORY, "--max-tokens", 6, *ONE_THREAD)
    assert (result.exit_code, result.stdout) == (0, greedy(engine, STORY, 6) + "\n")
    assert result.stderr == "The answer is cut after 6 tokens: --max-tokens raises the limit.\n"
    result = runtime("ask", smollm, STORY, "--context", 45, *ONE_THREAD)
    assert result.exit_code == 0
    assert result.stderr.startswith("The answer is cut: question and answer fill the context of 45 tokens. --context")


def test_ask_hands_the_system_prompt_on(runtime: Run, smollm: Path, engine: Engine) -> None:
    result = runtime("ask", smollm, SUM, "--system", "Answer like a pirate.", "--json", "--max-tokens", 1, *ONE_THREAD)
    turns = [Message("system", "Answer like a pirate."), Message("user", SUM)]
    assert json.loads(result.stdout)["prompt_tokens"] == len(engine.prompt_tokens(turns))


def test_a_piped_chat_answers_line_by_line_and_remembers(runtime: Run, smollm: Path, engine: Engine) -> None:
    first = greedy(engine, SUM)
    turns = [Message("user", SUM), Message("assistant", first), Message("user", "And 3+3?")]
    second = engine.complete(engine.prompt_tokens(turns), Sampling())
    options = ("--temperature", 0, "--repeat-penalty", 1, *ONE_THREAD)
    result = runtime("chat", smollm, *options, stdin=f"{SUM}\n\nAnd 3+3?\n/clear\n{SUM}\n/exit\nnever asked\n")
    count, used = len(engine.model.tokenize(first)), len(engine.prompt_tokens(turns[:1]))
    assert result.exit_code == 0
    assert result.stderr == ""
    assert steady(result.stdout) == (
        f"{smollm.name}, context 4,096 tokens. {NO_MEDICAL_ADVICE}\n"
        "1 thread, no GPU backend (N of N GB free), weights N, context 4,096 (f16 cache 0.09 GB) of at most 8,192 (--context), batch 512, flash attention on.\n"
        "/help lists the commands.\n"
        f"{first}\n{count} tokens, N tokens/s, context {used + count:,} of 4,096\n"
        f"{second.text}\n{second.generated_tokens} tokens, N tokens/s, "
        f"context {second.prompt_tokens + second.generated_tokens:,} of 4,096\n"
        "The conversation is cleared.\n"
        f"{first}\n{count} tokens, N tokens/s, context {used + count:,} of 4,096\n"
    )


def test_chat_commands(runtime: Run, smollm: Path) -> None:
    script = "/help\n/bogus \x1b[31m\n/system\n/system Be brief.\n/system\n"
    result = runtime("chat", smollm, *ONE_THREAD, stdin=script)
    assert (result.exit_code, "1 of the lines" in result.stderr) == (1, True)  # what is no command is not obeyed
    assert result.stdout.split("\n", 3)[3] == (
        "/help            this list\n"
        "/clear           clear the conversation; the system prompt stays\n"
        "/retry           generate another answer to the last question\n"
        "/system [TEXT]   show the system prompt, or set it for the next questions; /system off removes it\n"
        "/think on|off    turn the model's reasoning on or off\n"
        "/exit            leave (also Ctrl-D, or Ctrl-C twice at the prompt)\n"
        "Ctrl-C stops an answer and keeps its text so far. To send text that starts with '/', type a space first.\n"
        "/bogus is not a command. Commands: /help, /clear, /retry, /system, /think, /exit.\n"
        "No system prompt is set: the chat template may add its own.\n"
        "The system prompt is set.\n"
        "System prompt: Be brief.\n"
    )


def test_a_full_context_in_chat_is_reported_with_a_fix(runtime: Run, smollm: Path, engine: Engine) -> None:
    options = ("--context", 50, "--temperature", 0, *ONE_THREAD)
    result = runtime("chat", smollm, *options, stdin=f"{STORY}\n{'word ' * 60}\n")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        1,
        "Error: 1 of the lines got no answer, or were not valid commands.",
    )
    prompt = len(engine.prompt_tokens([Message("user", STORY)]))
    assert (
        "Cut: the context of 50 tokens is full. /clear starts a new conversation.\n"
        f"{51 - prompt} tokens, N tokens/s, context 50 of 50\n"
    ) in steady(result.stdout)
    assert re.search(
        r"Not sent: the prompt of \d+ tokens and at least 1 for the answer do not fit the context of 50 tokens\. "
        r"Shorten it, or take a larger context: the model was trained for 8,192\. /clear drops the earlier turns; "
        r"--context sets the size\.\n$",
        result.stdout,
    )


def test_ctrl_c_stops_the_answer_and_not_the_chat(smollm: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(runtime.cli.__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "runtime.cli", "chat", str(smollm), *ONE_THREAD, "--max-tokens", "3000"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(f"{STORY}\n".encode())
        process.stdin.flush()
        for _ in range(2):
            process.stdout.readline()
        begun = process.stdout.read(40)
        process.send_signal(2)
        rest, _ = process.communicate(f"/system\n/clear\n{SUM}\n".encode(), timeout=PATIENCE_S)
    lines = rest.decode("utf-8", "replace").splitlines()
    stopped = lines.index("Stopped.")
    assert len(begun) == 40
    assert re.fullmatch(r"[\d,]+ tokens, [\d.]+ tokens/s, context [\d,]+ of 4,096", lines[stopped + 1])
    assert lines[stopped + 2 : stopped + 4] == [
        "No system prompt is set: the chat template may add its own.",
        "The conversation is cleared.",
    ]
    assert len(lines) > stopped + 4  # and there is another answer
    assert process.returncode == 0


def test_info_shows_what_the_file_holds(runtime: Run, smollm: Path) -> None:
    result = runtime("info", smollm)
    assert result.exit_code == 0
    assert result.output == (
        f"file            {smollm}\n"
        "architecture    llama\n"
        "name            Smollm2 135M 8k Lc100K Mix1 Ep2\n"
        "parameters      134,515,008\n"
        "size            98.4 MB (5.85 bits a weight)\n"
        "quantisation    Q4_1 (tensors: 210 Q4_1, 61 F32, 1 Q8_0)\n"
        "context         8,192 tokens\n"
        "vocabulary      49,152 tokens\n"
        "special tokens  BOS 1 <|im_start|>, EOS 2 <|im_end|>, EOT 0 <|endoftext|>\n"
        "manifest        no manifest\n"
        "proof           no proof\n"
        "template        872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788\n"
        "  | {% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        "  | You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "  | ' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n"
        "  | ' + message['content'] + '<|im_end|>' + '\n"
        "  | '}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n"
        "  | ' }}{% endif %}\n"
    )


def test_info_shows_a_template_that_is_not_utf8_and_chat_refuses_it(runtime: Run, rewrite: Rewrite) -> None:
    path = rewrite("tokenizer.chat_template", "a\udcff\x1b[31m")
    output = runtime("info", path).output
    assert output.endswith("\n  | a\ufffd␛[31m\n")
    result = runtime("chat", path, stdin="")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: {path}: its chat template is not UTF-8.\n"


def test_info_verifies_a_file_against_its_manifest(runtime: Run, run_folder: Path) -> None:
    model = run_folder / "model.gguf"
    write_json(run_folder / "proof.json", {"passed": True})
    output = runtime("info", model).output
    assert "manifest        verified (made by export: size, sha256 and template as recorded)\n" in output
    assert "proof           passed\n" in output
    write_json(run_folder / "proof.json", {"passed": False})
    facts = json.loads(runtime("info", model, "--json").stdout)
    assert (facts["manifest"], facts["manifest_stage"], facts["proof_passed"]) == ("verified", "export", False)
    assert facts["special_tokens"]["eos"] == {"id": 2, "text": "<|im_end|>"}
    model.rename(run_folder / "other.gguf")
    output = runtime("info", run_folder / "other.gguf").output
    assert "manifest        no manifest (the one beside it does not list other.gguf)\n" in output
    assert "proof           FAILED" in output


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("imatrix", ("kind            an importance matrix", "chunks          3", "text            train.jsonl")),
        ("adapter", ("kind            a LoRA adapter", "rank            4", "alpha           16.0")),
        ("mmproj", ("projector", "projector       mlp")),
        ("control vector", ("kind            a control vector", "for models of   llama")),
    ],
)
def test_info_shows_what_a_gguf_without_a_model_is(
    name: str, rows: tuple[str, ...], runtime: Run, tmp_path: Path
) -> None:
    path = WRONG[name](tmp_path)
    files, template = (record_file(tmp_path, path),), "0" * 64  # of the model that was exported with it
    write_manifest(tmp_path, Manifest("export", files, {}, {}, {}, template_sha256=template))
    result = runtime("info", path)
    assert (result.exit_code, result.stderr) == (0, "")
    for row in (*rows, "manifest        verified (made by export: size and sha256 as recorded)"):
        assert f"\n{row}" in result.stdout
    assert json.loads(runtime("info", path, "--json").stdout)["kind"] in result.stdout
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert "its bytes differ from the manifest's sha256" in runtime("info", path).stderr


def test_a_model_that_declares_an_endless_context_gets_a_useful_one(runtime: Run, tmp_path: Path) -> None:
    path = WRONG["endless context"](tmp_path)
    result = runtime("ask", path, "the heart", "--max-tokens", "2", *ONE_THREAD)
    assert result.exit_code == 0, result.output
    talk = runtime("chat", path, "--max-tokens", "2", *ONE_THREAD, stdin="")
    assert "tiny.gguf, context 4,096 tokens" in talk.output
    assert "of at most 16,777,216 (--context)" in talk.output
    refused = runtime("ask", path, "the heart", "--context", "4294967295")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "expected 1 to 16,777,216" in refused.stderr
    assert "of which 16,777,216 can be used" in runtime("info", path).stdout


def test_info_reports_a_template_with_a_date_and_the_date_in_training(runtime: Run, rewrite: Rewrite) -> None:
    path = rewrite("tokenizer.chat_template", "{{ strftime_now('%d %b %Y') }}")
    assert "date            the template writes today's date\n" in runtime("info", path).output
    template, files = read_info(path).template_sha256, (record_file(path.parent, path),)
    facts = {"template_date": "2026-11-30T23:59:58"}
    write_manifest(path.parent, Manifest("export", files, {}, {}, {}, template_sha256=template, facts=facts))
    assert (
        "date            the template writes today's date; trained with 2026-11-30T23:59:58\n"
        in runtime("info", path).output
    )
    said = json.loads(runtime("info", path, "--json").stdout)
    assert (said["template_writes_date"], said["template_trained_date"]) == (True, "2026-11-30T23:59:58")
    talk = runtime("chat", path, *ONE_THREAD, stdin="").output
    assert "adds today's date to every prompt; the model was trained with 2026-11-30." in talk


def test_info_refuses_a_file_that_is_not_the_manifests(runtime: Run, run_folder: Path) -> None:
    model = run_folder / "model.gguf"
    data = bytearray(model.read_bytes())
    data[-1000] ^= 1
    model.write_bytes(data)
    result = runtime("info", model)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"Error: {model}: its bytes differ from the manifest's sha256: damaged or changed since it was made.\n"
    )
    files = (record_file(run_folder, model),)
    write_manifest(run_folder, Manifest("export", files, {}, {}, {}, template_sha256="0" * 64))
    result = runtime("info", model)
    assert result.exit_code == 1
    assert f"the manifest says {'0' * 64}: trained on one template, served on another" in result.stderr


@pytest.mark.parametrize("text", ["", "[]", '{"passed": 1}', "{"])
def test_info_refuses_a_proof_that_is_none(runtime: Run, run_folder: Path, text: str) -> None:
    (run_folder / "proof.json").write_text(text)
    result = runtime("info", run_folder / "model.gguf")
    assert (result.exit_code, result.stderr) == (
        1,
        f'Error: {run_folder / "proof.json"}: not a proof: expected an object with "passed": true or false.\n',
    )


def bad_files(folder: Path, smollm: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no usable model, each with the whole message."""
    for name in ("empty", "text", "short", "folder"):
        (folder / name).mkdir() if name == "folder" else (folder / name).touch()
    (folder / "text").write_text("Dear model,\nhow are you?\n")
    with zipfile.ZipFile(folder / "zip", "w") as archive:
        archive.writestr("model.gguf", "x")
    data = smollm.read_bytes()
    (folder / "short").write_bytes(data[: len(data) // 2])
    (folder / "head").write_bytes(data[:1000])
    messages = {
        "missing": "no such model file.",
        "empty": "the file is empty, expected a GGUF model.",
        "text": "expected a GGUF model, this is a text file.",
        "zip": "expected a GGUF model, this is a zip archive.",
        "folder": "not a regular file.",
    }
    return {name: (folder / name, message) for name, message in messages.items()}


@pytest.mark.parametrize("command", ["info", "ask", "chat"])
def test_a_file_that_is_no_model_gets_one_clear_message(
    runtime: Run, smollm: Path, tmp_path: Path, command: str
) -> None:
    question = ("hello",) if command == "ask" else ()
    for path, message in bad_files(tmp_path, smollm).values():
        result = runtime(command, path, *question, stdin="")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"Error: {path}: {message.removesuffix('.')}")
        assert result.stderr.count("\n") == 1
    for name in ("short", "head"):
        result = runtime(command, tmp_path / name, *question, stdin="")
        assert (result.exit_code, result.stdout) == (1, "")
        assert re.fullmatch(
            rf"Error: {re.escape(str(tmp_path / name))}: not a usable GGUF file: .*cut short.*"
            r"Download or copy it again\.\n",
            result.stderr,
        )


@pytest.mark.parametrize("command", ["ask", "chat"])
def test_a_template_that_does_not_compile_is_named(runtime: Run, rewrite: Rewrite, command: str) -> None:
    path = rewrite("tokenizer.chat_template", "{% for message in messages %}\n{{ message.content }\n{% endfor %}")
    result = runtime(command, path, *(["hello"] if command == "ask" else []), stdin="hello\n")
    assert (result.exit_code, result.stdout) == (1, "")
    (error,) = result.stderr.splitlines()
    assert error.startswith(f"Error: {path}: the chat template does not compile: ")
    assert "(line 2)" in error
    assert runtime("info", path).exit_code == 0


def test_a_template_that_refuses_a_system_prompt_is_reported_once_and_the_chat_continues(
    runtime: Run, rewrite: Rewrite
) -> None:
    path = rewrite(
        "tokenizer.chat_template",
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "<|im_start|>user\n{{ messages[-1].content }}<|im_end|>\n<|im_start|>assistant\n",
    )
    result = runtime("ask", path, SUM, "--system", "Be brief.", *ONE_THREAD)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the chat template does not accept a system prompt" in result.stderr
    assert "no system role" in result.stderr
    assert "--system-as user" in result.stderr
    script = f"/system Be brief.\n{SUM}\n/help\n"
    result = runtime("chat", path, *ONE_THREAD, "--max-tokens", 4, stdin=script)
    assert result.exit_code == 1
    assert result.stdout.count("no system role") == 1
    assert "tokens, context" in re.sub(r"[\d.]+ tokens/s, ", "", result.stdout)  # the question is answered without


def test_a_question_too_long_for_the_context_is_refused(runtime: Run, smollm: Path) -> None:
    result = runtime("ask", smollm, "word " * 100, "--context", 100)
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(
        r"Error: the prompt of 13\d tokens and at least 1 for the answer do not fit the context of 100 tokens\. "
        r"Shorten it, or take a larger context: the model was trained for 8,192\.\n",
        result.stderr,
    )


def test_every_wrong_setting_is_named_at_once(runtime: Run, smollm: Path) -> None:
    result = runtime("ask", smollm, SUM, "--top-p", 3, "--temperature", -1)
    assert (result.exit_code, result.output) == (
        1,
        "Error: the sampling settings cannot be used (2 problems):\n"
        "  - temperature is -1.0, expected 0 (greedy) to 100\n"
        "  - top_p is 3.0, expected more than 0, at most 1 (all tokens)\n",
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--threads", "0"), "threads is 0, expected 1 or more."),
        (("--context", "9999"), "a context of 9,999 tokens: expected 1 to 8,192, which {name} was trained for."),
    ],
)
def test_sizes_that_cannot_be_are_refused(runtime: Run, smollm: Path, option: tuple[str, str], message: str) -> None:
    result = runtime("ask", smollm, SUM, *option)
    assert (result.exit_code, result.output) == (1, f"Error: {message.format(name=smollm.name)}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("ask", "m.gguf", "hi", "--temperature", "hot"),
            "Invalid value for '--temperature': 'hot' is not a valid float.",
        ),
        (("ask",), "Missing argument 'MODEL.gguf'."),
        (("talk",), "No such command 'talk'."),
        (("chat", "m.gguf", "--top-x", "1"), "No such option '--top-x'."),
    ],
)
def test_wrong_usage_exits_with_2(runtime: Run, arguments: tuple[str, ...], message: str) -> None:
    result = runtime(*arguments)
    assert result.exit_code == 2
    assert f"Error: {message}" in result.stderr


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"", "the question is empty."),
        (b" \n", "the question is empty."),
        (b"ab\xff", "standard input: byte 3 is not UTF-8."),
    ],
)
def test_a_question_that_is_none_is_refused(runtime: Run, smollm: Path, stdin: bytes, message: str) -> None:
    result = runtime("ask", smollm, "-", stdin=stdin)
    assert (result.exit_code, result.output) == (1, f"Error: {message}\n")


def test_a_chat_line_that_is_not_utf8_is_named(runtime: Run, smollm: Path) -> None:
    result = runtime("chat", smollm, *ONE_THREAD, stdin=b"/system\nab\xff\n")
    assert result.exit_code == 1
    assert result.stderr == "Error: standard input, line 2: not UTF-8.\n"
