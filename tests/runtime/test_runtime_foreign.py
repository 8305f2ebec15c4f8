import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from gladstone.artifacts import Manifest, record_file, write_manifest
from gladstone.chat.messages import Message
from gladstone.chat.named_templates import read_template
from gladstone.chat.reasoning_markers import THINK, Markers
from gladstone.chat.template import ChatTemplate
from gladstone.errors import UnsupportedError
from gladstone.gguf.header import read_info
from gladstone.llamacpp.model import Model
from gladstone.report.terminal import visible
from runtime.engine import Engine, EngineOptions, Sampling
from runtime.text.turn_end import find_turn_end
from tests.runtime.foreign_models import BOS, EOS, TEMPLATE, write_tiny
from tests.waiting import PATIENCE_S

Run = Callable[..., Result]
QUICK = ("--threads", "1", "--max-tokens", "8")
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model: no chat template."""
    return write_tiny(tmp_path_factory.mktemp("base model") / "base.gguf", {TEMPLATE: None})


@pytest.mark.parametrize("command", ["ask", "chat"])
def test_a_model_without_a_template_is_refused_with_what_can_be_done(runtime: Run, bare: Path, command: str) -> None:
    result = runtime(command, bare, *(["hello"] if command == "ask" else []), stdin="hello\n")
    assert result.exit_code == 1
    for part in ("carries no chat template", "--chat-template", "chatml", f"runtime ask '{bare}' --raw"):
        assert part in result.stderr


def test_a_raw_text_is_continued_as_it_is(runtime: Run, bare: Path, smollm: Path) -> None:
    result = runtime("ask", bare, "The heart", "--raw", "--json", *QUICK)
    said = json.loads(result.stdout)
    with Engine(bare, EngineOptions(raw=True, threads=1)) as engine:
        tokens = engine.text_tokens("The heart")
        assert tokens == engine.model.tokenize("The heart")
        assert said["text"] == engine.complete(tokens, Sampling(max_tokens=8)).text
        assert said["prompt_tokens"] == len(tokens)
        with pytest.raises(UnsupportedError, match="no chat template"):
            engine.prompt_tokens([Message("user", "hello")])
    with Model(smollm, vocab_only=True) as model:
        marked = "<|im_start|>user\nHi<|im_end|>\n"
        expected = len(model.tokenize(marked, parse_special=True))
    result = runtime("ask", smollm, marked, "--raw", "--json", "--max-tokens", 1, "--threads", 1)
    assert json.loads(result.stdout)["prompt_tokens"] == expected


@pytest.mark.parametrize(
    "option",
    [
        ("--system", "Be brief."),
        ("--chat-template", "chatml"),
        ("--template-arg", "a=1"),
        ("--reasoning-tokens", "0"),
    ],
)
def test_raw_text_and_what_needs_a_template_exclude_each_other(
    runtime: Run, bare: Path, option: tuple[str, str]
) -> None:
    result = runtime("ask", bare, "hello", "--raw", *option)
    assert result.exit_code == 2
    assert option[0] in result.stderr


def test_a_named_template_makes_a_base_model_chat(runtime: Run, bare: Path) -> None:
    result = runtime("ask", bare, "hello", "--chat-template", "chatml", "--json", *QUICK)
    assert result.exit_code == 0
    with Engine(bare, EngineOptions(chat_template=read_template("chatml"), threads=1)) as engine:
        assert json.loads(result.stdout)["prompt_tokens"] == len(engine.prompt_tokens([Message("user", "hello")]))
    result = runtime("chat", bare, "--chat-template", "chatml", *QUICK, stdin="hello\nand more\n")
    assert result.exit_code == 0
    result = runtime("ask", bare, "hello", "--chat-template", "chatmll")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "--chat-template: no template 'chatmll'; there are: alpaca, chatml" in result.stderr


def test_a_template_file_that_cannot_compile_is_named(runtime: Run, bare: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.jinja").write_text("{{ messages\n")
    result = runtime("ask", bare, "hello", "--chat-template", tmp_path / "wrong.jinja")
    assert result.exit_code == 1
    assert re.search(
        r"--chat-template .*wrong\.jinja: the chat template does not compile: .*\(line \d\)", result.stderr
    )


def test_template_arguments_reach_the_template_and_wrong_ones_are_named(runtime: Run, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "thinks.gguf", {TEMPLATE: THINKS})
    counts = [
        json.loads(runtime("ask", path, "hello", "--json", *QUICK, *option).stdout)["prompt_tokens"]
        for option in ((), ("--template-arg", "enable_thinking=false"), ("--template-arg", "enable_thinking=true"))
    ]
    assert counts[0] == counts[2] < counts[1]
    for wrong, said in (
        (
            "thinking=false",
            "never reads 'thinking', so it would change nothing. Arguments that it reads: enable_thinking.",
        ),
        ("enable_thinking", "expected KEY=VALUE"),
        ("enable_thinking=False", "write enable_thinking=false"),
    ):
        result = runtime("ask", path, "hello", "--template-arg", wrong)
        assert (result.exit_code, result.stdout) == (1, "")
        assert said in result.stderr
    twice = ("--template-arg", "enable_thinking=false", "--template-arg", "enable_thinking=true")
    assert "given twice" in runtime("ask", path, "hello", *twice).stderr


def test_a_vocabulary_that_names_no_end_of_text_does_not_take_a_comma_for_it(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "endless.gguf", {EOS: None, BOS: None})
    with Model(path, vocab_only=True) as model:
        ends = {model.token_text(token) for token in range(model.vocab_size) if model.ends_generation(token)}
        assert ends == {"<|endoftext|>", "<|im_end|>"}
        assert (model.bos, model.token_text(model.eos)) == (-1, "<|endoftext|>")


IGNORES = "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}" + IGNORES


@pytest.fixture(scope="module")
def ignores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template leaves the system prompt out."""
    return write_tiny(tmp_path_factory.mktemp("ignores") / "ignores.gguf", {TEMPLATE: IGNORES})


@pytest.fixture(scope="module")
def refuses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template raises for a system prompt."""
    return write_tiny(tmp_path_factory.mktemp("refuses") / "refuses.gguf", {TEMPLATE: REFUSES})


def test_a_system_prompt_that_the_model_does_not_see_is_a_warning(runtime: Run, ignores: Path) -> None:
    result = runtime("ask", ignores, "hello", "--system", "Be brief.", *QUICK)
    assert result.exit_code == 0
    assert "omits the system prompt, so the model does not see it. --system-as user" in result.stderr
    result = runtime("chat", ignores, *QUICK, stdin="/system Be brief.\n/system\nhello\n")
    assert result.exit_code == 1
    assert "The system prompt is set." not in result.stdout
    assert "The system prompt is not set: the chat template omits" in result.stdout
    assert "No system prompt is set" in result.stdout


def test_a_system_prompt_that_a_template_refuses_is_an_error_once_and_can_be_unset(runtime: Run, refuses: Path) -> None:
    for command, question in (("ask", ["hello"]), ("chat", [])):
        result = runtime(command, refuses, *question, "--system", "Be brief.", *QUICK, stdin="hello\n")
        assert (result.exit_code, result.stdout) == (1, "")
        for part in ("does not accept a system prompt", "No system role", "--system-as user"):
            assert part in result.stderr
    result = runtime("chat", refuses, *QUICK, stdin="/system Be brief.\nhello\nand more\n")
    assert (result.exit_code, result.stdout.count("No system role"), result.stdout.count("of 256")) == (1, 1, 2)


def test_a_system_prompt_can_stand_before_the_first_question(runtime: Run, refuses: Path, tmp_path: Path) -> None:
    with Engine(refuses, EngineOptions(threads=1)) as engine:
        expected = len(engine.prompt_tokens([Message("user", "Be brief.\n\nhello")]))
    (tmp_path / "system.txt").write_bytes("Be brief.\n".encode("utf-16"))
    for option in (("--system", "Be brief."), ("--system-file", tmp_path / "system.txt")):
        result = runtime("ask", refuses, "hello", *option, "--system-as", "user", "--json", *QUICK)
        assert (result.exit_code, json.loads(result.stdout)["prompt_tokens"]) == (0, expected)
    result = runtime(
        "chat", refuses, "--system-as", "user", *QUICK, stdin="/system Be brief.\nhello\n/system off\nhi\n/system\n"
    )
    assert result.exit_code == 0
    assert "The system prompt is set." in result.stdout
    assert "The system prompt is removed." in result.stdout
    assert result.stdout.endswith("No system prompt is set: the chat template may add its own.\n")


def test_thinking_is_turned_off_by_what_the_template_reads(runtime: Run, ignores: Path, tmp_path: Path) -> None:
    thinks = write_tiny(tmp_path / "thinks.gguf", {TEMPLATE: THINKS})
    counts = [
        json.loads(runtime("ask", thinks, "hello", "--json", *QUICK, *option).stdout)["prompt_tokens"]
        for option in (("--template-arg", "enable_thinking=false"), ("--no-think",))
    ]
    assert counts[0] == counts[1]
    result = runtime("ask", thinks, "hello", "--no-think", "--template-arg", "enable_thinking=true")
    assert result.exit_code == 1
    assert "contradict" in result.stderr
    result = runtime("ask", ignores, "hello", "--no-think", *QUICK)
    assert result.exit_code == 0
    assert "no switch for reasoning" in result.stderr
    result = runtime("chat", thinks, *QUICK, stdin="/think off\nhello\n/think on\n/think\n")
    assert result.exit_code == 1
    assert "Reasoning is off, by enable_thinking=false.\n" in result.stdout
    assert "Reasoning is on" in result.stdout
    assert "/think takes on or off." in result.stdout


def test_a_drawn_seed_is_shown_and_repeats_the_answer(runtime: Run, ignores: Path) -> None:
    hot = ("--temperature", "1", *QUICK)
    first = runtime("ask", ignores, "hello", "--seed", "random", *hot)
    seed = re.search(r"Seed (\d+): --seed", first.stderr)
    assert seed
    again = json.loads(runtime("ask", ignores, "hello", "--seed", seed[1], "--json", *hot).stdout)
    assert (again["text"] + "\n" * bool(again["text"]), again["seed"]) == (first.stdout, int(seed[1]))
    assert "at temperature 0: every seed" in runtime("ask", ignores, "hello", "--seed", "random", *QUICK).stderr
    assert runtime("ask", ignores, "hello", "--seed", "often").exit_code == 2


def test_a_retry_uses_another_seed(runtime: Run, ignores: Path) -> None:
    options = (
        "--temperature",
        "1.5",
        "--top-k",
        "0",
        "--top-p",
        "1",
        "--min-p",
        "0",
        "--threads",
        "1",
        "--max-tokens",
        "12",
    )
    told = runtime("chat", ignores, *options, stdin="hello\n/retry\n/retry\n")
    assert told.exit_code == 0
    wanted = [
        json.loads(
            runtime("ask", ignores, "hello", "--json", "--repeat-penalty", "1.1", "--seed", seed, *options).stdout
        )["text"]
        for seed in range(3)
    ]
    assert len(set(wanted)) == 3
    places = [told.stdout.find(visible(text)) for text in wanted]
    assert -1 < places[0] < places[1] < places[2]
    result = runtime("chat", ignores, *QUICK, stdin="/retry\n")
    assert (result.exit_code, "no question to answer again" in result.stdout) == (1, True)


def test_an_answer_cut_before_it_matches_its_schema_is_an_error(runtime: Run, ignores: Path, tmp_path: Path) -> None:
    schema = {
        "type": "json_schema",
        "json_schema": {
            "name": "a",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {"a": {"type": "string", "minLength": 40}},
                "required": ["a"],
                "additionalProperties": False,
            },
        },
    }
    (tmp_path / "schema.json").write_text("\ufeff" + json.dumps(schema))
    asked = ("ask", ignores, "hello", "--json-schema", tmp_path / "schema.json", "--threads", 1)
    result = runtime(*asked, "--max-tokens", 8)
    assert result.exit_code == 1
    assert "does not match its grammar" in result.stderr
    assert "--max-tokens raises the limit" in result.stderr
    result = runtime(*asked, "--max-tokens", 8, "--json")
    said = json.loads(result.stdout)
    assert (result.exit_code, said["complete"], said["stop_reason"]) == (1, False, "length")
    result = runtime(*asked, "--max-tokens", 200, "--json", "--temperature", 1, "--repeat-penalty", 1.3)
    said = json.loads(result.stdout)
    if said["stop_reason"] == "end":
        assert (result.exit_code, said["complete"], list(json.loads(said["text"]))) == (0, True, ["a"])


@pytest.mark.parametrize("option", ["--regex", "--json-schema", "--grammar"])
def test_an_empty_form_is_refused(runtime: Run, ignores: Path, option: str) -> None:
    result = runtime("ask", ignores, "hello", option, "")
    assert result.exit_code == 2
    assert f"{option} is empty" in result.stderr


@pytest.mark.parametrize(
    "data", [b"\xef\xbb\xbfhello\n", "\ufeffhello\r\n".encode("utf-16-le"), "\ufeffhello\n".encode("utf-16-be")]
)
def test_a_byte_order_mark_is_no_part_of_a_question(runtime: Run, ignores: Path, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "question.txt").write_bytes(data)
    with Engine(ignores, EngineOptions(threads=1)) as engine:
        expected = len(engine.prompt_tokens([Message("user", "hello")]))
    for result in (
        runtime("ask", ignores, "--json", *QUICK, stdin=data),
        runtime("ask", ignores, "--file", tmp_path / "question.txt", "--json", *QUICK),
    ):
        assert json.loads(result.stdout)["prompt_tokens"] == expected
    chatted = runtime("chat", ignores, *QUICK, stdin=data)
    assert chatted.exit_code == 0
    counted = re.search(r"(\d+) tokens, .*context (\d+) of 256", chatted.stdout)
    assert counted
    assert int(counted[2]) - int(counted[1]) == expected


def test_a_text_of_two_bytes_a_character_without_a_mark_is_named(runtime: Run, ignores: Path) -> None:
    result = runtime("ask", ignores, stdin="hello".encode("utf-16-le"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "standard input: it contains NUL characters, like UTF-16 without" in result.stderr


def test_a_form_may_hold_a_comma_where_no_end_of_text_is_named(runtime: Run, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "endless.gguf", {EOS: None, BOS: None})
    result = runtime("ask", path, "hello", "--regex", "[a-z],[a-z]", *QUICK)
    assert (result.exit_code, bool(re.fullmatch("[a-z],[a-z]\n", result.stdout))) == (0, True)


def test_log_probabilities_tell_the_bytes_of_parts_of_a_character(runtime: Run, ignores: Path) -> None:
    result = runtime("ask", ignores, "hello", "--regex", "😀", "--logprobs", 2, "--json", "--threads", 1)
    tokens = json.loads(result.stdout)["logprobs"]
    assert bytes(byte for token in tokens for byte in token["bytes"]).decode() == "😀"
    assert len(tokens) == 4
    assert {token["token"] for token in tokens} == {"\ufffd"}
    with Model(ignores, vocab_only=True) as model:
        for token in (each for first in tokens for each in (first, *first["top_logprobs"])):
            assert list(model.piece(token["id"], special=True)) == token["bytes"]
    assert [len(token["top"]) for token in tokens] == [2] * 4


def test_a_replaced_template_is_reported(runtime: Run, ignores: Path, bare: Path) -> None:
    result = runtime("ask", ignores, "hello", "--chat-template", "llama3", *QUICK)
    assert result.exit_code == 0
    assert "The chat template llama3 replaces the file's own." in result.stderr
    assert "The vocabulary has no tokens for <|end_header_id|>, <|eot_id|>, <|start_header_id|>" in result.stderr
    assert "chat template" not in runtime("ask", bare, "hello", "--chat-template", "chatml", *QUICK).stderr


@pytest.mark.parametrize(
    ("template", "token", "stop"),
    [
        ("{% for m in messages %}{{ m.content }}<|im_start|>{% endfor %}", "<|im_start|>", ""),
        ("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", None, ""),
        (
            "{% for m in messages %}{% if m.role == 'user' %}### Question: {% endif %}{{ m.content }}\n\n{% endfor %}",
            None,
            "\n### Question:",
        ),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}", None, " user:"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", None, ""),
        ("{% for m in messages %}{{ m.content }}</s>{% endfor %}", None, "</s>"),
        ("{{ messages[-1].content }}", None, ""),
    ],
)
def test_an_answer_ends_by_what_the_template_writes_behind_one(
    bare: Path, template: str, token: str | None, stop: str
) -> None:
    with Model(bare, vocab_only=True) as model:
        end, text = find_turn_end(model, ChatTemplate(template), THINK)
        assert (end if end is None else model.token_text(end), text) == (token, stop)


def test_a_token_that_closes_reasoning_is_not_taken_for_the_end_of_an_answer(bare: Path) -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}<|im_start|>{% endfor %}")
    with Model(bare, vocab_only=True) as model:
        assert find_turn_end(model, template, Markers("<|im_start|>x", "</think>")) == (None, "")


def test_a_template_without_an_end_ends_answers_before_the_next_question(runtime: Run, tmp_path: Path) -> None:
    source = "{% for m in messages %}{{ '#' if m.role == 'user' else '' }}{{ m.content }}{% endfor %}="
    path = write_tiny(tmp_path / "endless.gguf", {TEMPLATE: source, EOS: None})
    result = runtime("ask", path, "hello", *QUICK)
    assert "no token for the end of an answer: it stops before '#'" in result.stderr
    with Engine(path, EngineOptions(threads=1)) as engine:
        hash_token = engine.model.tokenize("#")[0]
        likely = Sampling(max_tokens=4, logit_bias=((hash_token, 1000.0),))
        answer = engine.complete(engine.prompt_tokens([Message("user", "hello")]), likely)
        assert (answer.text, answer.stop_reason) == ("", "stop")


def test_the_replaced_template_of_a_verified_file_is_reported(runtime: Run, ignores: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(ignores, tmp_path / "model.gguf"))
    own = read_info(path).template_sha256
    write_manifest(tmp_path, Manifest("export", (record_file(tmp_path, path),), {}, {}, {}, template_sha256=own))
    result = runtime("ask", path, "hello", "--chat-template", "chatml", *QUICK)
    assert result.exit_code == 0
    assert "replaces the file's own, which the manifest says the model was trained with." in result.stderr


def test_a_template_that_omits_the_question_is_reported(runtime: Run, bare: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.jinja").write_text("{% for m in messages if m.role == 'human' %}{{ m.content }}{% endfor %}Hello")
    result = runtime("ask", bare, "hello", "--chat-template", tmp_path / "odd.jinja", *QUICK)
    assert "omits the question" in result.stderr


def test_chat_refuses_raw_text_with_what_does_it(runtime: Run, bare: Path) -> None:
    result = runtime("chat", bare, "--raw", stdin="")
    assert result.exit_code == 2
    assert "runtime ask MODEL.gguf --raw" in result.stderr


def test_ctrl_c_leaves_whole_json_with_the_reason(smollm: Path) -> None:
    command = [sys.executable, "-m", "runtime.cli", "ask", str(smollm), "Write a very long story.", "--json"]
    command += ["--threads", "1", "--max-tokens", "4000", "--regex", "[a-z ,.A-Z]{3000,4000}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr
        while b"thinking" not in process.stderr.readline():  # what is said where an answer takes more than 2 s
            pass
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE_S)
    said = json.loads(output)
    assert (process.returncode, said["complete"], said["stop_reason"]) == (130, False, "cancelled")
    assert errors.endswith(b"\nStopped.\n")  # behind a line that a slow machine is loading
