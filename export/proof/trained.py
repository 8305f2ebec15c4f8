"""The reference of a proof: base and adapter, tokenizer and template, and rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from export.merge.plan import Onto
from export.original.model import Original
from export.original.rows import Rows
from gladstone import file_names
from gladstone.chat.messages import Conversation, Message
from gladstone.chat.template import ChatTemplate
from gladstone.models.tokenizer import FolderTokenizer, load_tokenizer

HELD_OUT = Rows()
# used when no rows are known; the answers serve to measure a loss and come from no model
QUESTIONS = (
    ("What does the heart do?", "The heart pumps blood through the body, and so brings oxygen to every organ."),
    ("Explain anaemia to a child.", "Your blood has too few red cells, so you feel tired and look pale."),
    ("Which vitamin prevents scurvy?", "Vitamin C, which is found in fresh fruit and vegetables."),
    ("Write one sentence.", "The train leaves the station at eight in the morning."),
    ("How is blood pressure measured?", "With a cuff around the upper arm that is filled with air and slowly emptied."),
    ("2 + 2 =", "2 + 2 = 4"),
    ("Name three bones.", "The femur, the tibia and the humerus are three bones of the human body."),
    ("Why do we sleep?", "Sleep lets the body rest and repair itself, and helps the brain to keep what it learnt."),
    ("Was ist Fieber?", "Fieber ist eine erhöhte Körpertemperatur, meist als Antwort auf eine Infektion."),
    ("Translate to French: Good morning, doctor.", "Bonjour, docteur."),
    ("¿Qué hace el hígado?", "El hígado filtra la sangre, produce bilis y guarda energía para el cuerpo."),
    ("Write a haiku about rain.", "Soft rain on the roof,\nthe garden drinks without haste,\nevening smells of earth."),
    ("How do I reverse a list in Python?", "Call `items.reverse()`, or take a reversed copy: `items[::-1]`."),
    ("List two causes of a headache.", "1. Too little sleep\n2. Too little water"),
    ("Как называется столица Франции?", "Столица Франции называется Париж."),
    ("Answer in JSON: the boiling point of water in °C.", '{"boiling_point_celsius": 100}'),
)


@dataclass(frozen=True)
class Trained:
    """Tokenizer, template, base and adapter as trained, and rows, held out unless `held_out` is False."""

    tokenizer: FolderTokenizer
    template: ChatTemplate
    base: Path
    adapter: Path | None
    rows: Sequence[Conversation]
    onto: Onto = "16bit"  # the base in 16 bit, or in NF4 as QLoRA used it
    held_out: bool = True  # whether the loss on the rows measures unseen questions
    which: Rows = HELD_OUT

    @cached_property
    def config(self) -> dict[str, Any]:
        """The base's config.json, with the text part of a multimodal model merged in."""
        config: dict[str, Any] = json.loads((self.base / file_names.CONFIG).read_text(encoding="utf-8"))
        return config | (config.get("text_config") or {})

    @property
    def seq2seq(self) -> bool:
        """True for encoder-decoder models."""
        return bool(self.config.get("is_encoder_decoder"))

    @property
    def has_experts(self) -> bool:
        """True for models of which each token uses a part."""
        return any("expert" in name and value for name, value in self.config.items())

    def prompt(self, row: Conversation, text_tokens: int) -> list[int]:
        """Token ids of a rendered prompt, or of the first `text_tokens` of a plain text, as in training."""
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
        """The expected answer of a row; tool calls as the template renders them."""
        answer = row.answer
        return self.template.segments(row.messages, row.tools)[-1].text if answer.tool_calls else answer.content


def trained_of(original: Original, onto: Onto = "16bit") -> Trained:
    """The reference for files of a source, with its rows, or with built-in questions if it has none."""
    tokenizer = load_tokenizer(original.tokenizer)
    moment = original.training.template_date or datetime.now()  # one date for the whole proof
    template = ChatTemplate(original.template_source, tokenizer.named_tokens, now=moment)
    rows = original.rows.read() or [
        Conversation((Message("user", question), Message("assistant", answer)), "question")
        for question, answer in QUESTIONS
    ]
    which = original.rows
    return Trained(tokenizer, template, original.base.folder, original.adapter, rows, onto, which.measures, which)


def date_note(original: Original, template: ChatTemplate) -> list[str]:
    """Notes for a chat template that writes the date; empty for other templates."""
    if not template.depends_on_time:
        return []
    date = original.training.template_date
    if date is None:
        why = " (an older version made it)" if original.origin == "run" else ""
        return [
            "the chat template writes the date, and the date used in training is not recorded"
            f"{why}: the proof uses today's date."
        ]
    return [
        f"the chat template writes the date: proof and Modelfile use {date}, the date of the training; the runtime "
        "uses the current date."
    ]
