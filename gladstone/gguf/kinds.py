"""GGUF files that hold no model, or one that writes no text: what they are, and which command takes them."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gladstone.commands.shell import command_line
from gladstone.gguf.identify_file import NOT_RUN, use_of_imatrix

# architectures of ComfyUI's and stable-diffusion.cpp's files (city96/ComfyUI-GGUF, leejet/stable-diffusion.cpp)
PICTURES = (
    "flux", "sd1", "sd2", "sdxl", "sd3", "aura", "hidream", "cosmos", "ltxv", "hyvid", "wan", "lumina2", "qwen_image",
    "hunyuan_image", "chroma", "omnigen2", "z_image", "pig",
)  # fmt: skip
SPEECH = (
    "whisper", "parakeet", "wavtokenizer-dec", "qwen3tts", "pockettts", "kokoro", "parler-tts", "dia", "orpheus-dec",
)  # fmt: skip
# of llama.cpp: those that make vectors; those that guess for another model; those that fill in words in any order
VECTORS = (
    "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
    "gemma-embedding", "t5encoder", "llama-embed",
)  # fmt: skip
DRAFTS = ("eagle3", "dflash", "gemma4-assistant")
DIFFUSION = ("dream", "llada", "llada-moe", "rnd1")
RANKING, UNPOOLED = 4, (None, 0, (1 << 32) - 1)
OF_PICTURES = re.compile(r"(?:model\.diffusion_model|double_blocks|first_stage_model)\.")


@dataclass(frozen=True)
class Kind:
    """What a file is, as a noun; `use` says of its path what it is for."""

    noun: str
    use: Callable[[Path], str]

    def told(self, path: Path) -> str:
        """In a sentence without its end."""
        return f"{self.noun}, no model that can be asked. {self.use(path)}"


def _laid_over(path: Path) -> str:
    return f"Lay it over its base: `{command_line('runtime', 'chat')} BASE.gguf {command_line('--lora', path)}`"


IMATRIX = Kind("an importance matrix", use_of_imatrix)
LORA = Kind("a LoRA adapter", _laid_over)
CONTROL_VECTOR = Kind(
    "a control vector",
    lambda _: "llama.cpp's own llama-cli takes it, with --control-vector; Gladstone has no use for it",
)
PROJECTOR = Kind(
    "the projector of a model that sees or hears (mmproj)",
    lambda _: "Give the model's own GGUF: Gladstone asks it in text, without pictures and sound",
)
PICTURE = Kind("a model that makes pictures or films", lambda _: f"{NOT_RUN} of models that write text")
VOICE = Kind("a model for speech", lambda _: f"{NOT_RUN} of models that write text")
OTHER_ADAPTER = Kind("an adapter", lambda _: "Of adapters Gladstone takes LoRA, with --lora")


def kind_of(metadata: Mapping[str, Any], tensors: Iterable[str] = ()) -> Kind | None:
    """What a GGUF is by its keys and the names of its tensors; None if it is a model for llama.cpp, or damaged."""
    kind, architecture = metadata.get("general.type"), metadata.get("general.architecture")
    if kind == "imatrix" or architecture == "imatrix":
        return IMATRIX
    if kind == "adapter":
        return LORA if metadata.get("adapter.type") == "lora" else OTHER_ADAPTER
    if architecture == "controlvector":
        return CONTROL_VECTOR
    if kind == "mmproj" or architecture == "clip":
        return PROJECTOR
    if architecture in PICTURES or (architecture is None and any(map(OF_PICTURES.match, tensors))):
        return PICTURE
    return VOICE if architecture in SPEECH else None


def writes_no_text(metadata: Mapping[str, Any], tensor_count: int) -> str | None:
    """Why a model cannot be asked, as a sentence's end; None if it can."""
    architecture = metadata.get("general.architecture")
    if not tensor_count:
        return "a vocabulary alone, without weights. Give the model's own file"
    if architecture in DRAFTS:
        return "a part that guesses ahead for another model. Give that model's own file"
    if architecture in DIFFUSION:
        return (
            f"a diffusion model ({architecture}), which fills in words in any order. llama.cpp's llama-diffusion-cli "
            "runs it"
        )
    pooling = metadata.get(f"{architecture}.pooling_type")
    if pooling == RANKING:
        return "a reranker, which scores texts and writes none. Give a model that writes text"
    if architecture in VECTORS or pooling not in UNPOOLED:
        return "an embedding model, which makes vectors of texts and writes none. Give a model that writes text"
    return None
