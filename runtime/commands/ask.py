"""`runtime ask`: one question and its answer, for use in pipes."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gladstone.chat.messages import Message
from gladstone.commands.group import EXIT_INTERRUPTED
from gladstone.errors import DataError
from gladstone.report.terminal import visible
from runtime.commands.console import Waiting, cancel_on_interrupt, tolerate_narrow_encodings, write
from runtime.commands.options import (
    ASK,
    build_sampling,
    engine_options,
    load_engine,
    model_argument,
    sampling_options,
    seed_remark,
)
from runtime.commands.prompt_options import PromptSettings, check_raw, prompt_options, prompt_settings, read_text
from runtime.commands.screen import cut_by_thought

if TYPE_CHECKING:
    from runtime.engine import Completion, Engine
    from runtime.grammars.grammar import Grammar
    from runtime.text.reasoning_splitter import Piece


@click.command()
@model_argument
@click.argument("question", required=False)
@click.option("--file", type=click.Path(path_type=Path), metavar="FILE", help="Read the question from a file.")
@click.option(
    "--raw", is_flag=True, help="Continue QUESTION without a chat template; special tokens in it are recognised."
)
@prompt_options
@engine_options
@sampling_options(ASK)
@click.option("--json-schema", metavar="FILE", help="Constrain the answer to JSON that matches this schema.")
@click.option("--json-object", is_flag=True, help="Constrain the answer to a JSON object.")
@click.option("--regex", metavar="PATTERN", help="Constrain the answer to this regular expression.")
@click.option("--grammar", metavar="FILE", help="Constrain the answer to this grammar (GBNF).")
@click.option(
    "--logprobs", type=int, metavar="N", help="With --json: log-probabilities of each token and the N likeliest ones."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the answer, token counts and times.")
def ask(model: Path, question: str | None, file: Path | None, as_json: bool, **options: Any) -> None:
    """Ask one QUESTION and print the answer.

    The question is read from standard input if it is '-' or missing. Reasoning goes to standard error, so that standard
    output holds only the answer. The exit code is 1 if the answer is cut before it matches its schema, grammar or
    pattern, and 130 after Ctrl-C.
    """
    check_raw(options)
    if options["logprobs"] is not None and not as_json:
        raise click.UsageError("--logprobs needs --json, which prints them.")
    sampling, settings = build_sampling(options), prompt_settings(options)
    grammar = _read_grammar(options)
    text = _read_question(question, file, raw=options["raw"])
    tolerate_narrow_encodings()
    from runtime.request import Request

    with load_engine(model, options) as engine:
        tokens, reasoning_tokens = _prompt(engine, text, None if options["raw"] else settings)
        if drawn := seed_remark(sampling):
            click.echo(drawn, err=True)
        with cancel_on_interrupt() as cancelled, Waiting("thinking") as waiting:
            show = _Show(waiting, silent=as_json)
            completion = engine.answer(Request(tokens, sampling, grammar, reasoning_tokens), show.piece, cancelled)
        if as_json:
            from runtime.commands.answer_json import answer_json

            click.echo(answer_json(completion, engine, sampling.seed))
        show.finish(completion)
        _end(completion, engine, constrained=grammar is not None, as_json=as_json)


def _prompt(engine: "Engine", text: str, settings: PromptSettings | None) -> tuple[list[int], int | None]:
    """The tokens of a question (of a raw text if there are no settings), and the budget of reasoning tokens."""
    if settings is None:
        return engine.text_tokens(text), None
    from runtime.commands.prompt_builder import PromptBuilder

    prompts = PromptBuilder(engine, settings)
    for remark in prompts.remarks:
        click.echo(remark[0].upper() + visible(remark[1:]), err=True)
    return engine.prompt_tokens(prompts.messages([Message("user", text)])), prompts.reasoning_tokens


class _Show:
    """Prints the pieces of an answer: the answer to standard output, reasoning to standard error."""

    def __init__(self, waiting: Waiting, *, silent: bool) -> None:
        self._waiting, self._silent = waiting, silent
        self._to_terminal = sys.stdout.isatty()
        self._reasoning_open = False

    def piece(self, piece: "Piece") -> None:
        """Print one piece."""
        if self._silent:
            return
        self._waiting.end()
        if piece.reasoning:
            self._reasoning_open = True
            write(visible(piece.text), dim=True, err=True)
        else:
            self._close_reasoning()
            write(visible(piece.text) if self._to_terminal else piece.text)

    def finish(self, completion: "Completion") -> None:
        """End the last line."""
        if not self._silent:
            self._close_reasoning()
            if completion.text:
                click.echo()

    def _close_reasoning(self) -> None:
        if self._reasoning_open:
            click.echo(err=True)
        self._reasoning_open = False


def _end(completion: "Completion", engine: "Engine", *, constrained: bool, as_json: bool) -> None:
    """Print a note on standard error if the answer is cut; exit with 130 after Ctrl-C.

    Raises DataError for an answer that does not match its schema, grammar or pattern.
    """
    if completion.stop_reason == "cancelled":
        click.echo("\nStopped.", err=True)
        click.get_current_context().exit(EXIT_INTERRUPTED)
    note = _note(completion, engine)
    if constrained and not completion.complete:
        raise DataError(f"the answer is incomplete: it does not match its grammar. {note or 'A stop string ended it.'}")
    if note and not as_json:
        click.echo(note, err=True)


def _note(completion: "Completion", engine: "Engine") -> str | None:
    if by_thought := cut_by_thought(completion, "--no-think"):
        return by_thought
    if completion.stop_reason == "length":
        return f"The answer is cut after {completion.generated_tokens:,} tokens: --max-tokens raises the limit."
    if completion.stop_reason == "context":
        return (
            f"The answer is cut: question and answer fill the context of {engine.context_tokens:,} tokens. "
            "--context sets a larger one, up to what the model was trained for."
        )
    return None if completion.text else "The model ended its turn without an answer."


def _read_question(argument: str | None, file: Path | None, *, raw: bool) -> str:
    """The question, without the line end of a file or a pipe. Raises DataError if it is empty."""
    from gladstone.rows.encodings import decoded

    if argument is not None and file is not None:
        raise click.UsageError("a question and --file exclude each other: give one of them.")
    if file is not None:
        text = read_text(file)
    elif argument not in (None, "-"):
        text = argument or ""
    elif argument is None and sys.stdin.isatty():
        raise click.UsageError("a question is missing: give it after the model file, or on standard input.")
    else:
        text = decoded(sys.stdin.buffer.read(), "standard input")
    if argument in (None, "-"):
        text = text.removesuffix("\n").removesuffix("\r") if raw else text.rstrip("\r\n")
    if not text or not (raw or text.strip()):
        raise DataError("the question is empty.")
    return text


def _read_grammar(options: dict[str, Any]) -> "Grammar | None":
    """The grammar that constrains the answer, if there is one."""
    from runtime.grammars.grammar import Grammar

    given = {name: options[name] for name in ("json_schema", "regex", "grammar") if options[name] is not None}
    given |= {"json_object": True} if options["json_object"] else {}
    if len(given) > 1:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"{flags} exclude each other.")
    empty = [name for name, value in given.items() if value == ""]
    if empty:
        raise click.UsageError(f"--{empty[0].replace('_', '-')} is empty: it would not constrain the answer.")
    match given:
        case {"json_schema": file}:
            return Grammar("json_schema", read_text(Path(file)))
        case {"json_object": _}:
            return Grammar("json_object")
        case {"regex": pattern}:
            return Grammar("regex", pattern)
        case {"grammar": file}:
            return Grammar("gbnf", read_text(Path(file)))
    return None
