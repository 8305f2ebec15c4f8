"""`runtime ask`: one question, one answer, fit for pipes."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gladstone.chat import Message
from gladstone.errors import ConfigError, DataError
from gladstone.template_options import template_options
from gladstone.terminal import visible
from runtime.console import Waiting, tolerate_narrow_encodings, write
from runtime.options import ASK, build_sampling, engine_options, load_engine, model_argument, sampling_options

if TYPE_CHECKING:
    from runtime.engine import Completion, Engine
    from runtime.generation.reasoning import Piece
    from runtime.grammars.grammar import Grammar


@click.command()
@model_argument
@click.argument("question", required=False)
@click.option(
    "--raw", is_flag=True, help="Continue QUESTION as it is, without a chat template; its special tokens count."
)
@template_options
@engine_options
@sampling_options(ASK)
@click.option("--json-schema", metavar="FILE", help="The answer is JSON that this schema allows.")
@click.option("--json-object", is_flag=True, help="The answer is a JSON object.")
@click.option("--regex", metavar="PATTERN", help="The answer matches this regular expression.")
@click.option("--grammar", metavar="FILE", help="The answer follows this grammar (GBNF).")
@click.option(
    "--logprobs", type=int, metavar="N", help="With --json: log-probabilities, of the N likeliest tokens too."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the answer, token counts and times.")
def ask(model: Path, question: str | None, system: str | None, as_json: bool, **options: Any) -> None:
    """Put one QUESTION and print the answer.

    The question is read from standard input if it is '-' or missing. Reasoning goes to standard error, so that standard
    output holds nothing but the answer.
    """
    _check_raw(options, system)
    sampling = build_sampling(options)
    grammar = _read_grammar(options)
    messages = [Message("system", system)] if system else []
    messages.append(Message("user", _read_question(question)))
    tolerate_narrow_encodings()
    from runtime.request import Request

    with load_engine(model, options) as engine:
        tokens = engine.text_tokens(messages[-1].content) if options["raw"] else engine.prompt_tokens(messages)
        with Waiting("thinking") as waiting:
            show = _Show(waiting, silent=as_json)
            request = Request(tokens, sampling, grammar, options["reasoning_tokens"])
            completion = engine.answer(request, show.piece)
        show.finish(completion, engine)


def _check_raw(options: dict[str, Any], system: str | None) -> None:
    """Raises UsageError for what only a chat template could do."""
    given = {
        "--system": system,
        "--chat-template": options["chat_template"],
        "--template-arg": options["template_args"],
    }
    given["--reasoning-tokens"] = options["reasoning_tokens"]
    wrong = [name for name, value in given.items() if value not in (None, ())]
    if options["raw"] and wrong:
        raise click.UsageError(f"--raw has no chat template, so {' and '.join(wrong)} cannot count.")


class _Show:
    """Puts the pieces of an answer where they belong."""

    def __init__(self, waiting: Waiting, *, silent: bool) -> None:
        self._waiting, self._silent = waiting, silent
        self._to_terminal = sys.stdout.isatty()
        self._reasoning_open = False

    def piece(self, piece: "Piece") -> None:
        """Show one piece as it comes."""
        if self._silent:
            return
        self._waiting.end()
        if piece.reasoning:
            self._reasoning_open = True
            write(visible(piece.text), dim=True, err=True)
        else:
            self._close_reasoning()
            write(visible(piece.text) if self._to_terminal else piece.text)

    def finish(self, completion: "Completion", engine: "Engine") -> None:
        """The end of the line, or the JSON object, and on standard error whatever else the user should know."""
        if self._silent:
            click.echo(json.dumps(_as_json(completion, engine), ensure_ascii=False, indent=2))
            return
        self._close_reasoning()
        if completion.text:
            click.echo()
        note = _note(completion, engine)
        if note:
            click.echo(note, err=True)

    def _close_reasoning(self) -> None:
        if self._reasoning_open:
            click.echo(err=True)
        self._reasoning_open = False


def _read_question(argument: str | None) -> str:
    if argument not in (None, "-"):
        question = argument
    elif argument is None and sys.stdin.isatty():
        raise click.UsageError("a question is missing: give it after the model file, or on standard input.")
    else:
        try:
            question = sys.stdin.buffer.read().decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"standard input: byte {error.start + 1} is not UTF-8.") from None
    if not question or not question.strip():
        raise DataError("the question is empty.")
    return question


def _read_grammar(options: dict[str, Any]) -> "Grammar | None":
    """What the answer has to be, if anything."""
    from runtime.grammars.grammar import Grammar

    wanted = {name: options[name] for name in ("json_schema", "json_object", "regex", "grammar") if options[name]}
    if len(wanted) > 1:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in wanted)
        raise click.UsageError(f"{flags} exclude each other.")
    match wanted:
        case {"json_schema": file}:
            return Grammar("json_schema", _read_text(Path(file)))
        case {"json_object": _}:
            return Grammar("json_object")
        case {"regex": pattern}:
            return Grammar("regex", pattern)
        case {"grammar": file}:
            return Grammar("gbnf", _read_text(Path(file)))
    return None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start + 1} is not UTF-8.") from None


def _note(completion: "Completion", engine: "Engine") -> str | None:
    if completion.stop_reason == "length":
        return f"The answer is cut after {completion.generated_tokens:,} tokens: --max-tokens allows more."
    if completion.stop_reason == "context":
        return (
            f"The answer is cut: question and answer fill the context of {engine.context_tokens:,} tokens. "
            "--context allows more, up to what the model was trained for."
        )
    return None if completion.text else "The model ended its turn without an answer."


def _as_json(completion: "Completion", engine: "Engine") -> dict[str, Any]:
    facts = dataclasses.asdict(completion)
    if completion.logprobs is None:
        del facts["logprobs"]
    else:
        facts["logprobs"] = [
            {
                "token": _shown(engine, each.token),
                "logprob": each.logprob,
                "top": [[_shown(engine, t), p] for t, p in each.top],
            }
            for each in completion.logprobs
        ]
    return {"model": str(engine.model.path)} | facts | {"load_s": engine.load_s}


def _shown(engine: "Engine", token: int) -> str:
    return engine.model.piece(token, special=True).decode("utf-8", "replace")
