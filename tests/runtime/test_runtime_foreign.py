import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from gladstone.chat import Message
from gladstone.errors import UnsupportedError
from gladstone.llama import Model
from gladstone.named_templates import read_template
from runtime.engine import Engine, EngineOptions, Sampling
from tests.runtime.foreign_models import BOS, EOS, TEMPLATE, write_tiny

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
