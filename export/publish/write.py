"""Writes the Modelfile and the model card of an export."""

from collections.abc import Sequence
from pathlib import Path

from export.proof.prompts import conversations
from export.proof.trained import Trained
from export.publish.metadata import About
from export.publish.model_card import NAME as CARD_NAME
from export.publish.model_card import Card, model_card
from export.publish.modelfile import ADAPTER_NAME, NO_ADAPTER, Ollama, modelfile
from export.publish.modelfile import NAME as MODELFILE_NAME
from export.publish.template_turns import check_turns, read_turns
from gladstone.artifacts import write_text
from gladstone.chat.messages import CHAT_CONTEXT_TOKENS, CHAT_SAMPLING, Conversation, Message
from gladstone.errors import DataError, UnsupportedError
from gladstone.gguf.header import read_info
from gladstone.llamacpp.model import Model

MODELFILES = (MODELFILE_NAME, ADAPTER_NAME)


def write_modelfile(trained: Trained, model: Path, lora: Path | None, about: About, system: str | None) -> str | None:
    """Write the Modelfile; returns the reason if there can be none, else None.

    With an adapter, it is written under another name, for older versions of Ollama.
    """
    for name in MODELFILES:
        (model.parent / name).unlink(missing_ok=True)
    try:
        text = _modelfile(trained, model, lora, about, system)
    except (UnsupportedError, DataError) as error:
        return str(error).rstrip(".")
    write_text(model.parent / (ADAPTER_NAME if lora else MODELFILE_NAME), text)
    return NO_ADAPTER if lora else None


def _modelfile(trained: Trained, path: Path, lora: Path | None, about: About, system: str | None) -> str:
    if trained.seq2seq:
        raise UnsupportedError("Ollama does not run encoder-decoder models")
    if "-of-" in path.name:
        raise UnsupportedError("Ollama does not load split models")
    with Model(path, vocab_only=True) as model:
        bos = model.token_text(model.bos) if model.adds_bos and model.bos >= 0 else ""
        ends = dict.fromkeys(token for token in (model.eot, model.eos) if token >= 0)
        stops = [model.piece(token, special=True).decode("utf-8", "replace") for token in ends]
    context = min(read_info(path).context_tokens, CHAT_CONTEXT_TOKENS)
    turns = read_turns(trained.template, bos, stops)
    # Ollama's template gets no tools: only turns without them can be compared
    asked = [row.prompt for row in conversations(trained) if not row.tools and all(map(_is_plain, row.messages))]
    check_turns(turns, trained.template, asked, bos)
    wanted = Ollama(
        model=path.name,
        turns=turns,
        stops=stops,
        parameters={**CHAT_SAMPLING, "num_ctx": context},
        system=system if turns.with_system else None,
        adapter=lora.name if lora else None,
        license=about.license,
    )
    return modelfile(wanted)


def _is_plain(message: Message) -> bool:
    return message.role != "tool" and not message.tool_calls


def write_card(card: Card, folder: Path) -> None:
    """Write README.md."""
    write_text(folder / CARD_NAME, model_card(card))


def common_system(rows: Sequence[Conversation]) -> str | None:
    """The system prompt shared by all rows; None if they differ or have none."""
    found = {row.messages[0].content if row.messages[0].role == "system" else None for row in rows}
    return found.pop() if len(found) == 1 else None
