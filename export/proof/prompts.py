"""Checks of the prompt: chat template, rendered turns, BOS, context length."""

import dataclasses
from collections.abc import Callable

from export.proof.check import Check
from export.proof.texts import HAND_PICKED
from export.proof.trained import Trained
from gladstone.chat.jinja_sandbox import make_strftime_now
from gladstone.chat.messages import Conversation, Message
from gladstone.chat.template import ChatTemplate
from gladstone.chat.tool_turns import parse_tools
from gladstone.errors import DataError
from gladstone.gguf.header import GgufHeader
from gladstone.llamacpp.model import Model

CONVERSATIONS, LONG = 50, 200
CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length")
OTHER_TEMPLATE = "Export again: with another template than in training a model answers worse, or never stops."


def check_template(header: GgufHeader, template: ChatTemplate) -> Check:
    """Check that the chat template is equal byte for byte."""
    found = header.metadata.get("tokenizer.chat_template")
    if found == template.source:
        return Check("chat template", True, "equal byte for byte", {"sha256": template.sha256})
    detail = "the GGUF has none" if found is None else "differs from the trained one"
    return Check("chat template", False, detail, {"trained_sha256": template.sha256}, OTHER_TEMPLATE)


def check_rendering(header: GgufHeader, model: Model, trained: Trained) -> Check:
    """Compare turns rendered with the file's template and tokens with transformers' rendering."""
    name, source = "rendered turns", header.metadata.get("tokenizer.chat_template")
    if not isinstance(source, str):
        return Check(name, False, "the GGUF has no template", {}, OTHER_TEMPLATE)
    tokens = {"bos_token": model.bos, "eos_token": model.eos, "pad_token": model.pad}
    named = {
        key: model.token_text(token)
        for key, token in tokens.items()
        if key in trained.tokenizer.named_tokens and token >= 0
    }
    try:
        ours = ChatTemplate(source, named, now=trained.template.now)
    except DataError as error:
        return Check(name, False, str(error), {}, OTHER_TEMPLATE)
    turns = conversations(trained)
    wrong = []
    for row in turns:
        for prompt in (False, True):
            shown = row.prompt if prompt else row.messages
            asked = dataclasses.replace(row, messages=tuple(shown))
            found = _rendered(lambda: ours.render(shown, tools=row.tools, add_generation_prompt=prompt))  # noqa: B023 - called at once
            theirs = _rendered(lambda: _by_transformers(trained, asked, prompt=prompt))  # noqa: B023
            wrong += [row] if found != theirs else []
    detail = f"{len(turns)} conversations, with and without an answer, as transformers renders them"
    if wrong:
        first = wrong[0].prompt[-1].content[:60]
        detail = f"{len(wrong)} of {2 * len(turns)} renderings differ from transformers', first of {first!r}"
    return Check(name, not wrong, detail, {"conversations": len(turns), "differing": len(wrong)}, OTHER_TEMPLATE)


def _rendered(render: Callable[[], str]) -> str | None:
    """The text; None if the template refuses these turns."""
    from jinja2 import TemplateError

    try:
        return render()
    except (DataError, TemplateError, TypeError):
        return None


def _by_transformers(trained: Trained, row: Conversation, *, prompt: bool) -> str:
    template = trained.template
    text: str = trained.tokenizer.hf.apply_chat_template(
        template.turns(row.messages, row.tools),
        tools=parse_tools(row.tools) or None,
        tokenize=False,
        add_generation_prompt=prompt,
        chat_template=template.source,
        strftime_now=make_strftime_now(template.now),
    )
    return text


def conversations(trained: Trained) -> list[Conversation]:
    """Conversations to render: rows without reasoning, several turns, system prompts, other scripts, white space."""
    rows = [
        dataclasses.replace(row, messages=tuple(dataclasses.replace(turn, reasoning=None) for turn in row.messages))
        for row in trained.rows
        if not row.is_text
    ]
    texts: tuple[str, ...] = (
        "What is anaemia?",
        "  spaces  \n",
        "Größe? 血液 😀",
        "a\nb\n\nc",
        "{{ x }} {% y %}",
        "1. one\n2. two",
        "?",
    )
    texts += tuple(text for text in HAND_PICKED if len(text) < LONG)[: CONVERSATIONS // 3]
    made = []
    for place, text in enumerate(texts):
        asked = [Message("user", text), Message("assistant", texts[place - 1])]
        more = [Message("user", "And?"), Message("assistant", "So.")]
        made += [asked, [*asked, *more], [Message("system", "Be brief."), *asked]]
    own = [Conversation(tuple(messages), "") for messages in made]
    return [*rows[: CONVERSATIONS // 2], *own][:CONVERSATIONS]


def check_beginning(model: Model, trained: Trained) -> Check:
    """Check that rendered prompts get the token ids of training, with at most one BOS."""
    prompts = [row for row in trained.rows if not row.is_text][:CONVERSATIONS]
    wrong = doubled = 0
    for row in prompts:
        wanted = trained.prompt(row, 0)
        rendered = trained.template.render(row.prompt, tools=row.tools, add_generation_prompt=True)
        found = model.add_bos_eos(model.tokenize(rendered, parse_special=True))
        wrong += found != wanted
        doubled += found[:2] == [model.bos, model.bos] and model.bos >= 0
    detail = f"{len(prompts)} rendered prompts get the ids of training, none with two BOS"
    if doubled:
        detail = f"{doubled} of {len(prompts)} rendered prompts begin with two BOS"
    elif wrong:
        detail = f"{wrong} of {len(prompts)} rendered prompts get other ids than in training"
    cure = "Both the template and the tokenizer add BOS, or neither does: keep exactly one, and export again."
    return Check("prompts", not wrong and not doubled, detail, {"prompts": len(prompts), "differing": wrong}, cure)


def check_context(header: GgufHeader, trained: Trained) -> Check:
    """Check the context length."""
    architecture = header.metadata["general.architecture"]
    found = header.metadata.get(f"{architecture}.context_length")
    wanted = next((trained.config[field] for field in CONTEXT_FIELDS if trained.config.get(field)), None)
    if wanted is None:
        return Check("context", True, f"{found:,} tokens; the base's config names none", {"context": found})
    passed = found == wanted
    detail = f"{wanted:,} tokens" if passed else f"the GGUF says {found} tokens, the base was made for {wanted:,}"
    return Check(
        "context",
        passed,
        detail,
        {"context": found, "base": wanted},
        "Export again: the model cannot use a longer context.",
    )
