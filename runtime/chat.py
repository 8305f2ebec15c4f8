"""`runtime chat`: a conversation in the terminal."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gladstone.chat import NO_MEDICAL_ADVICE, Message
from gladstone.errors import GladstoneError
from gladstone.template_options import template_options
from gladstone.terminal import visible
from runtime.console import (
    LineSource,
    Waiting,
    cancel_on_interrupt,
    open_lines,
    tolerate_narrow_encodings,
    write,
)
from runtime.generation.sampler import Sampling
from runtime.options import CHAT, build_sampling, engine_options, load_engine, model_argument, sampling_options

if TYPE_CHECKING:
    from runtime.engine import Completion, Engine
    from runtime.generation.reasoning import Piece

COMMANDS = {
    "/help": "this list",
    "/clear": "forget the conversation; the system prompt stays",
    "/system [TEXT]": "show the system prompt, or set it from the next question on",
    "/exit": "leave (also Ctrl-D, or Ctrl-C twice at the prompt)",
}
HELP = "\n".join(
    [
        *(f"{name:<16} {text}" for name, text in COMMANDS.items()),
        "Ctrl-C stops an answer and keeps what is there. Begin with a space to send a text that starts with '/'.",
    ]
)


@click.command()
@model_argument
@template_options
@engine_options
@sampling_options(CHAT)
@click.option("--show-reasoning/--hide-reasoning", default=True, help="Show reasoning, dimmed.  [default: show]")
def chat(model: Path, system: str | None, show_reasoning: bool, **options: Any) -> None:
    """Talk with a model in the terminal.

    Lines that are piped in are questions too, one each. The defaults suit small models: little randomness, a mild
    penalty on repetition.
    """
    sampling = build_sampling(options)
    tolerate_narrow_encodings()
    with load_engine(model, options) as engine:
        chat = Chat(engine, sampling, system=system, show_reasoning=show_reasoning)
        chat.reasoning_tokens = options["reasoning_tokens"]
        chat.run(open_lines())


class Chat:
    """One conversation: the turns so far, and what a line of the user does to them."""

    def __init__(self, engine: "Engine", sampling: Sampling, *, system: str | None, show_reasoning: bool) -> None:
        self._engine, self._sampling, self._show_reasoning = engine, sampling, show_reasoning
        self._system = system
        self.reasoning_tokens: int | None = None  # after which a thought is closed
        self._turns: list[Message] = []

    def run(self, lines: LineSource) -> None:
        """Greet, then answer until the user leaves."""
        engine = self._engine
        click.echo(f"{engine.model.path.name}, context {engine.context_tokens:,} tokens. {NO_MEDICAL_ADVICE}")
        threads = engine.threads.decode
        _remark(f"{threads} thread{'s' if threads > 1 else ''}, {engine.fit.reason}.")
        _remark("/help lists the commands.")
        while (line := lines.read()) is not None:
            if line.startswith("/"):
                if not self._command(line):
                    return
            elif line.strip():
                self._ask(line.strip())

    def _command(self, line: str) -> bool:
        """Obey a slash command; False if it is the one that leaves."""
        name, _, text = line.strip().partition(" ")
        if name == "/exit":
            return False
        if name == "/help":
            click.echo(HELP)
        elif name == "/clear":
            self._turns = []
            _remark("The conversation is forgotten.")
        elif name == "/system":
            self._set_system(text.strip())
        else:
            known = ", ".join(command.split()[0] for command in COMMANDS)
            _remark(f"{visible(name)} is no command. Known: {known}.")
        return True

    def _set_system(self, text: str) -> None:
        if text:
            self._system = text
            _remark("The system prompt is set.")
        elif self._system:
            _remark(f"System prompt: {visible(self._system)}")
        else:
            _remark("No system prompt is set: the model's template decides.")

    def _ask(self, question: str) -> None:
        from runtime.request import Request

        system = [Message("system", self._system)] if self._system else []
        turns = [*self._turns, Message("user", question)]
        screen = _AnswerScreen(show_reasoning=self._show_reasoning)
        try:
            with cancel_on_interrupt() as cancelled, Waiting("reading the question") as waiting:
                screen.waiting = waiting
                tokens = self._engine.prompt_tokens([*system, *turns])
                request = Request(tokens, self._sampling, reasoning_tokens=self.reasoning_tokens)
                completion = self._engine.answer(request, screen.piece, cancelled)
        except GladstoneError as error:
            self._refuse(error)
            return
        screen.finish()
        self._tell_end(completion)
        if completion.text:  # the template decides what of the reasoning is in the next prompt; without a say, nothing
            kept = completion.reasoning if self._engine.template.reasoning_field else None
            self._turns = [*turns, Message("assistant", completion.text, kept)]

    def _refuse(self, error: GladstoneError) -> None:
        from runtime.engine import ContextFullError

        advice = ""
        if isinstance(error, ContextFullError):
            advice = " /clear forgets the earlier turns; --context sets the size."
        _remark(f"Not sent: {error}{advice}")

    def _tell_end(self, completion: "Completion") -> None:
        size = self._engine.context_tokens
        ends = {
            "cancelled": "Stopped.",
            "length": f"Cut after {completion.generated_tokens:,} tokens (--max-tokens).",
            "context": f"Cut: the context of {size:,} tokens is full. /clear forgets the conversation.",
        }
        if completion.stop_reason in ends:
            _remark(ends[completion.stop_reason])
        if not completion.text:
            _remark("There is no answer, so the question is taken back.")
        count = completion.generated_tokens
        used = min(size, completion.prompt_tokens + count)
        speed = f"{(count - 1) / completion.decode_s:.1f} tokens/s, " if count > 1 else ""
        _remark(f"{count:,} tokens, {speed}context {used:,} of {size:,}")


class _AnswerScreen:
    """Shows the pieces of one answer; hidden reasoning is at least mentioned."""

    def __init__(self, *, show_reasoning: bool) -> None:
        self.waiting: Waiting | None = None
        self._show_reasoning = show_reasoning
        self._at_line_start = True
        self._in_reasoning = False

    def piece(self, piece: "Piece") -> None:
        """Show one piece as it comes."""
        if self.waiting:
            self.waiting.end()
        text = visible(piece.text)
        if piece.reasoning and not self._show_reasoning:
            text = "" if self._in_reasoning else "(thinking)"
        if self._in_reasoning and not piece.reasoning:
            self.finish()
        self._in_reasoning = piece.reasoning
        if text:
            write(text, dim=piece.reasoning)
            self._at_line_start = text.endswith("\n")

    def finish(self) -> None:
        """Leave the cursor at the beginning of a line."""
        if not self._at_line_start:
            click.echo()
        self._at_line_start = True


def _remark(text: str) -> None:
    """A line of the program, not of the model."""
    write(f"{text}\n", dim=True)
