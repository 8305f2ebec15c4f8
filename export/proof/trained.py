"""What a file is held against: a run of ours, or any folder of a model as the Hub holds it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from export.merge import Onto
from export.run import Run
from gladstone.chat import Conversation, Message
from gladstone.errors import ArtifactError
from gladstone.formats import checked_conversations, find_layout, read_conversations
from gladstone.template import ChatTemplate
from gladstone.tokenizer import FolderTokenizer, load_tokenizer

TRAINED_ROWS = 400  # are enough where no row was held out
QUESTIONS = (
    "What does the heart do?", "Explain anaemia to a child.", "Which vitamin prevents scurvy?", "Write one sentence.",
    "How is blood pressure measured?", "2 + 2 =", "Name three bones.", "Why do we sleep?",
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """The training tokenizer and template, base and adapter, and rows, which were held out unless said otherwise."""

    tokenizer: FolderTokenizer
    template: ChatTemplate
    base: Path
    adapter: Path | None
    rows: Sequence[Conversation]
    onto: Onto = "16bit"  # whether the base is taken as it is, or as QLoRA held it
    held_out: bool = True  # false: the rows were trained on, since the run held none out

    @cached_property
    def config(self) -> dict[str, Any]:
        """The base's config.json; of a model with several parts, that of its text."""
        config: dict[str, Any] = json.loads((self.base / "config.json").read_text(encoding="utf-8"))
        return config | (config.get("text_config") or {})

    @property
    def seq2seq(self) -> bool:
        """Whether an encoder reads what a decoder answers."""
        return bool(self.config.get("is_encoder_decoder"))

    def prompt(self, row: Conversation, text_tokens: int) -> list[int]:
        """Token ids of a rendered question, or of the beginning of a plain text, as in training."""
        if row.is_text:
            ids = self.tokenizer.encode(row.answer.content)[:text_tokens]
        else:
            text = self.template.render(row.prompt, tools=row.tools, add_generation_prompt=True)
            ids = self.tokenizer.encode(text)
        if self.tokenizer.bos_id is not None and ids[:1] != [self.tokenizer.bos_id]:
            ids = [self.tokenizer.bos_id, *ids]
        end = self.tokenizer.eos_id
        return [*ids, end] if self.seq2seq and end is not None else ids

    def answer_text(self, row: Conversation) -> str:
        """What the model writes to a row's question; a call of tools as the template writes it."""
        answer = row.answer
        return self.template.segments(row.messages, row.tools)[-1].text if answer.tool_calls else answer.content


def of_run(run: Run, adapter: Path | None, onto: Onto = "16bit") -> Trained:
    """What a run trained, or with no adapter its base with the run's tokenizer and template."""
    tokenizer = load_tokenizer(run.folder / "tokenizer")
    moment = run.template_date or datetime.now()  # one moment for the whole proof, whatever the clock says meanwhile
    template = ChatTemplate(run.template_source, tokenizer.named_tokens, now=moment)
    recorded = {record.path for record in run.manifest.files}
    held_out = [f"data/{name}.jsonl" for name in ("test", "validation") if f"data/{name}.jsonl" in recorded]
    if held_out:
        rows = [row for path in held_out for row in read_conversations(run.folder / path, "prepared")]
    else:
        path = run.folder / "data" / "train.jsonl"
        rows = list(islice(checked_conversations(path, find_layout(path, "prepared")), TRAINED_ROWS))
    return Trained(tokenizer, template, run.base.folder, adapter, rows, onto, held_out=bool(held_out))


def date_note(run: Run, template: ChatTemplate) -> list[str]:
    """What a user should know where the chat template writes the date."""
    if not template.writes_time:
        return []
    if run.template_date is None:
        return [
            "the chat template writes the date, and the run does not say which one it was trained with (an older "
            "version made it): the proof renders with today's."
        ]
    return [
        f"the chat template writes the date: proof and Modelfile have {run.template_date}, with which the run was "
        "trained; the runtime writes the real one."
    ]


def of_folder(folder: Path, rows: Path | None) -> Trained:
    """A model's folder as the Hub holds it, on rows of one's own or on a few questions.

    Raises ArtifactError for a folder without a model, ConfigError for one without a chat template, DataError for rows.
    """
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise ArtifactError(
            f"{folder}: neither a run nor a model: expected manifest.json, or config.json and *.safetensors."
        )
    tokenizer = load_tokenizer(folder)
    asked = [Conversation((Message("user", text), Message("assistant", "…")), "question") for text in QUESTIONS]
    conversations = read_conversations(rows, "auto") if rows else asked
    return Trained(tokenizer, tokenizer.template(now=datetime.now()), folder, None, conversations)
