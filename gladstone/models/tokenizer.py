"""The Hugging Face tokenizer of a model folder, as far as Gladstone needs it. Names transformers."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gladstone.chat.messages import Message
from gladstone.chat.template import ChatTemplate
from gladstone.errors import ConfigError, DataError
from gladstone.file_names import TOKENIZER_FILES
from gladstone.process.import_without_gc import import_without_gc


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer files that a model's folder has."""
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


@dataclass(frozen=True)
class FolderTokenizer:
    """A tokenizer and the chat template stored with it.

    `special_tokens` maps texts to ids. `named_tokens` maps the names that templates may use (bos_token, eos_token, …)
    to texts. `bos_id` is the token that the tokenizer puts before every text, None if it puts none.
    """

    hf: Any
    special_tokens: dict[str, int]
    named_tokens: dict[str, str]
    bos_id: int | None
    template_source: str | None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text: special tokens are recognised, none is added."""
        ids: list[int] = self.hf(text, add_special_tokens=False).input_ids
        return ids

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text as `encode` returns them, many times faster."""
        ids: list[list[int]] = self.hf(texts, add_special_tokens=False).input_ids if texts else []
        return ids

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text."""
        end: int | None = self.hf.eos_token_id
        return end

    @property
    def normalizes_nfc(self) -> bool:
        """Whether the tokenizer applies NFC normalization to a text, as Qwen's does."""
        backend = getattr(self.hf, "backend_tokenizer", None)
        if backend is None or backend.normalizer is None:
            return False
        normalizer = json.loads(backend.normalizer.__getstate__())
        return any(step.get("type") == "NFC" for step in normalizer.get("normalizers", [normalizer]))

    @property
    def padding_id(self) -> int:
        """The padding token (masked in training): end of text if the tokenizer names none."""
        pad: int | None = self.hf.pad_token_id
        return pad if pad is not None else self.eos_id or 0

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included."""
        text: str = self.hf.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def decode_all(self, ids: list[list[int]]) -> list[str]:
        """The text of each list as `decode` returns it, many times faster."""
        backend = getattr(self.hf, "backend_tokenizer", None)
        if backend is None:  # a slow tokenizer, written in Python
            return [self.decode(tokens) for tokens in ids]
        texts: list[str] = backend.decode_batch(ids, skip_special_tokens=False)
        return texts

    def template(
        self, source: str | None = None, *, now: datetime | None = None, name: str | None = None
    ) -> ChatTemplate:
        """Compile `source`, or the tokenizer's own chat template if it is None; `now` and `name` as for ChatTemplate.

        Raises ConfigError if there is neither, DataError if it does not compile.
        """
        source = source if source is not None else self.template_source
        if source is None:
            raise ConfigError(
                "the base model has no chat template: give one with base.chat_template (a Jinja file). Without a "
                "template there is no mark for where a question ends."
            )
        return ChatTemplate(source, self.named_tokens, now=now, name=name)


def end_of_turn_token(tokenizer: FolderTokenizer, template: ChatTemplate | None = None) -> int | None:
    """The last special or added token of a rendered answer: the token that a model is trained to end with.

    `template` replaces the tokenizer's own. None if there is no template, if it refuses a plain question and answer, or
    if it ends an answer without such a token.
    """
    turns = (Message("user", "?"), Message("assistant", "!"))
    try:
        answer = (template or tokenizer.template()).segments(turns)[-1].text
    except (ConfigError, DataError):
        return None
    marks = {*tokenizer.special_tokens.values(), *tokenizer.hf.added_tokens_decoder}
    return next((token for token in reversed(tokenizer.encode(answer)) if token in marks), None)


def load_tokenizer(folder: Path) -> FolderTokenizer:
    """Load a tokenizer from a local folder, without the Hub and without code from the folder.

    Raises DataError if it cannot be loaded.
    """
    with import_without_gc():
        from transformers import AutoTokenizer

    try:
        hf = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: its tokenizer cannot be loaded: {error}") from None
    special = {str(token): int(hf.convert_tokens_to_ids(str(token))) for token in hf.all_special_tokens}
    special |= {str(added): index for index, added in hf.added_tokens_decoder.items() if added.special}
    named = {name: str(value) for name, value in hf.special_tokens_map.items() if isinstance(value, str)}
    first = hf("", add_special_tokens=True).input_ids[:1]
    bos = int(first[0]) if first and first[0] == hf.bos_token_id else None
    template = hf.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return FolderTokenizer(hf, special, named, bos, template)
