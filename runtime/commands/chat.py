"""`runtime chat`: a conversation in the terminal."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gladstone.chat.messages import NO_MEDICAL_ADVICE, Message
from gladstone.errors import DataError, GladstoneError
from gladstone.report.terminal import visible
from runtime.commands.console import (
    LineSource,
    PipedLines,
    Waiting,
    cancel_on_interrupt,
    open_lines,
    remark,
    tolerate_narrow_encodings,
)
from runtime.commands.options import (
    CHAT,
    build_sampling,
    engine_options,
    load_engine,
    model_argument,
    sampling_options,
    seed_remark,
)
from runtime.commands.prompt_options import prompt_options, prompt_settings
from runtime.commands.screen import AnswerScreen, cut_by_thought
from runtime.sampling.sampler import MAX_SEED, Sampling

if TYPE_CHECKING:
    from runtime.commands.prompt_builder import PromptBuilder
    from runtime.engine import Completion, Engine

COMMANDS = {
    "/help": "this list",
    "/clear": "clear the conversation; the system prompt stays",
    "/retry": "generate another answer to the last question",
    "/system [TEXT]": "show the system prompt, or set it for the next questions; /system off removes it",
    "/think on|off": "turn the model's reasoning on or off",
    "/exit": "leave (also Ctrl-D, or Ctrl-C twice at the prompt)",
}
HELP = "\n".join(
    [
        *(f"{name:<16} {text}" for name, text in COMMANDS.items()),
        "Ctrl-C stops an answer and keeps its text so far. To send text that starts with '/', type a space first.",
    ]
)


@click.command()
@model_argument
@prompt_options
@engine_options
@sampling_options(CHAT)
@click.option("--raw", is_flag=True, hidden=True)
@click.option("--show-reasoning/--hide-reasoning", default=True, help="Show reasoning, dimmed.  [default: show]")
def chat(model: Path, raw: bool, show_reasoning: bool, **options: Any) -> None:
    """Chat with a model in the terminal.

    Each line from a pipe is a question; if one gets no answer, the exit code is 1. The defaults suit small models: a
    low temperature and a mild repetition penalty.
    """
    if raw:
        raise click.UsageError("a chat needs a chat template. To continue a text, use `runtime ask MODEL.gguf --raw`.")
    sampling, settings = build_sampling(options), prompt_settings(options)
    tolerate_narrow_encodings()
    with load_engine(model, options) as engine:
        from runtime.commands.prompt_builder import PromptBuilder

        chat = Chat(engine, sampling, PromptBuilder(engine, settings), show_reasoning=show_reasoning)
        lines = open_lines()
        chat.run(lines)
    if chat.failures and isinstance(lines, PipedLines):
        raise DataError(f"{chat.failures:,} of the lines got no answer, or were not valid commands.")


class Chat:
    """One conversation: its turns so far, and what each line of the user does."""

    def __init__(self, engine: "Engine", sampling: Sampling, prompts: "PromptBuilder", *, show_reasoning: bool) -> None:
        self._engine, self._sampling, self._show_reasoning = engine, sampling, show_reasoning
        self._prompts = prompts
        self._turns: list[Message] = []
        self._asked: tuple[list[Message], int] | None = None  # turns up to the last question, and its answers so far
        self.failures = 0

    def run(self, lines: LineSource) -> None:
        """Show a greeting, then answer until the user leaves."""
        engine = self._engine
        click.echo(f"{engine.model.path.name}, context {engine.context_tokens:,} tokens. {NO_MEDICAL_ADVICE}")
        threads = engine.threads.decode
        remark(f"{threads} thread{'s' if threads > 1 else ''}, {engine.fit.reason}.")
        for text in filter(None, [*self._prompts.remarks, seed_remark(self._sampling)]):
            remark(text[0].upper() + visible(text[1:]))
        remark("/help lists the commands.")
        while (line := lines.read()) is not None:
            if line.startswith("/"):
                if not self._command(line):
                    return
            elif line.strip():
                self._ask([*self._turns, Message("user", line.strip())])

    def _command(self, line: str) -> bool:
        """Run a slash command; False for /exit."""
        name, _, text = line.strip().partition(" ")
        text = text.strip()
        match name:
            case "/exit":
                return False
            case "/help":
                click.echo(HELP)
            case "/clear":
                self._turns, self._asked = [], None
                remark("The conversation is cleared.")
            case "/retry":
                self._retry()
            case "/system":
                self._set_system(text)
            case "/think":
                self._think(text)
            case _:
                known = ", ".join(command.split()[0] for command in COMMANDS)
                remark(f"{visible(name)} is not a command. Commands: {known}.")
                self.failures += 1
        return True

    def _set_system(self, text: str) -> None:
        if text == "off" and self._prompts.system:
            self._prompts.set_system(None)
            remark("The system prompt is removed.")
        elif text and text != "off":
            try:
                self._prompts.set_system(text)
            except DataError as error:
                self._refuse(f"The system prompt is not set: {error}")
                return
            remark("The system prompt is set.")
        elif self._prompts.system:
            remark(f"System prompt: {visible(self._prompts.system)}")
        else:
            remark("No system prompt is set: the chat template may add its own.")

    def _think(self, text: str) -> None:
        if text not in ("on", "off"):
            self._refuse("/think takes on or off.")
            return
        warning = self._prompts.think(on=text == "on")
        how = "as the template and --reasoning-tokens set it" if text == "on" else f"by {self._prompts.thinking_by()}"
        remark(warning or f"Reasoning is {text}, {how}.")

    def _retry(self) -> None:
        if self._asked is None:
            self._refuse("There is no question to answer again.")
            return
        turns, answers = self._asked
        if self._sampling.temperature == 0:
            remark("At temperature 0 the answer stays the same: start the chat with --temperature 0.7 for another one.")
        else:
            remark(f"Again, with seed {self._seed(answers)}.")
        self._ask(turns, answers)

    def _ask(self, turns: list[Message], answers: int = 0) -> None:
        """Answer the last turn; each further answer to it uses the next seed."""
        from runtime.request import Request

        self._asked = turns, answers + 1
        sampling = replace(self._sampling, seed=self._seed(answers))
        screen = AnswerScreen(show_reasoning=self._show_reasoning)
        try:
            with cancel_on_interrupt() as cancelled, Waiting("reading the question") as waiting:
                screen.waiting = waiting
                tokens = self._engine.prompt_tokens(self._prompts.messages(turns))
                request = Request(tokens, sampling, reasoning_tokens=self._prompts.reasoning_tokens)
                completion = self._engine.answer(request, screen.piece, cancelled)
        except GladstoneError as error:
            self._refuse(f"Not sent: {error}{_advice(error)}")
            return
        screen.finish()
        self._show_end(completion)
        if completion.text:  # the template decides which reasoning enters the next prompt; without a field for it, none
            kept = completion.reasoning if self._engine.template.reasoning_field else None
            self._turns = [*turns, Message("assistant", completion.text, kept)]

    def _seed(self, answers: int) -> int:
        return (self._sampling.seed + answers) % (MAX_SEED + 1)

    def _refuse(self, why: str) -> None:
        self.failures += 1
        remark(visible(why))

    def _show_end(self, completion: "Completion") -> None:
        size = self._engine.context_tokens
        ends = {
            "cancelled": "Stopped.",
            "length": f"Cut after {completion.generated_tokens:,} tokens (--max-tokens).",
            "context": f"Cut: the context of {size:,} tokens is full. /clear starts a new conversation.",
        }
        if completion.stop_reason in ends:
            remark(ends[completion.stop_reason])
        if not completion.text:
            self.failures += 1
            remark(cut_by_thought(completion, "/think off") or "There is no answer, so the question is not kept.")
        count = completion.generated_tokens
        used = min(size, completion.prompt_tokens + count)
        speed = f"{(count - 1) / completion.decode_s:.1f} tokens/s, " if count > 1 else ""
        remark(f"{count:,} tokens, {speed}context {used:,} of {size:,}")


def _advice(error: GladstoneError) -> str:
    from runtime.errors import ContextFullError

    if isinstance(error, ContextFullError):
        return " /clear drops the earlier turns; --context sets the size."
    return ""
