"""GGUF files without a model, or with a model that does not generate text: what they are and what they are for."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gladstone.commands.shell import command_line
from gladstone.gguf.identify_file import NOT_RUN, use_of_imatrix
from gladstone.gguf.types import Pooling

# architectures of ComfyUI's and stable-diffusion.cpp's files (city96/ComfyUI-GGUF, leejet/stable-diffusion.cpp)
IMAGE_ARCHITECTURES = (
    "flux", "sd1", "sd2", "sdxl", "sd3", "aura", "hidream", "cosmos", "ltxv", "hyvid", "wan", "lumina2", "qwen_image",
    "hunyuan_image", "chroma", "omnigen2", "z_image", "pig",
)  # fmt: skip
SPEECH_ARCHITECTURES = (
    "whisper", "parakeet", "wavtokenizer-dec", "qwen3tts", "pockettts", "kokoro", "parler-tts", "dia", "orpheus-dec",
)  # fmt: skip
# architectures of llama.cpp: embedding models; drafters for another model; diffusion models
EMBEDDING_ARCHITECTURES = (
    "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
    "gemma-embedding", "t5encoder", "llama-embed",
)  # fmt: skip
DRAFTER_ARCHITECTURES = ("eagle3", "dflash", "gemma4-assistant")
DIFFUSION_ARCHITECTURES = ("dream", "llada", "llada-moe", "rnd1")
UNPOOLED = (None, Pooling.NONE, (1 << 32) - 1)
IMAGE_TENSOR = re.compile(r"(?:model\.diffusion_model|double_blocks|first_stage_model)\.")


@dataclass(frozen=True)
class Kind:
    """The kind of a file, as a noun; `use` returns a sentence that says what a file at a path is for."""

    noun: str
    use: Callable[[Path], str]

    def describe(self, path: Path) -> str:
        """The end of an error message, without its full stop."""
        return f"{self.noun}, not a model that generates text. {self.use(path)}"


def _use_of_lora(path: Path) -> str:
    return f"Use it with its base model: `{command_line('runtime', 'chat')} BASE.gguf {command_line('--lora', path)}`"


IMATRIX = Kind("an importance matrix", use_of_imatrix)
LORA = Kind("a LoRA adapter", _use_of_lora)
CONTROL_VECTOR = Kind(
    "a control vector",
    lambda _: "llama.cpp's own llama-cli takes it, with --control-vector; Gladstone does not support it",
)
PROJECTOR = Kind(
    "the multimodal projector of a vision or audio model (mmproj)",
    lambda _: "Give the model's own GGUF: Gladstone uses its text part, without images and audio",
)
IMAGE_MODEL = Kind("a model that generates images or video", lambda _: f"{NOT_RUN} of models that generate text")
SPEECH_MODEL = Kind("a speech model", lambda _: f"{NOT_RUN} of models that generate text")
OTHER_ADAPTER = Kind("an adapter", lambda _: "Gladstone supports LoRA adapters only, with --lora")


def identify_kind(metadata: Mapping[str, Any], tensors: Iterable[str] = ()) -> Kind | None:
    """The kind of a GGUF by its keys and tensor names; None if it is a model for llama.cpp, or damaged."""
    kind, architecture = metadata.get("general.type"), metadata.get("general.architecture")
    if kind == "imatrix" or architecture == "imatrix":
        return IMATRIX
    if kind == "adapter":
        return LORA if metadata.get("adapter.type") == "lora" else OTHER_ADAPTER
    if architecture == "controlvector":
        return CONTROL_VECTOR
    if kind == "mmproj" or architecture == "clip":
        return PROJECTOR
    if architecture in IMAGE_ARCHITECTURES or (architecture is None and any(map(IMAGE_TENSOR.match, tensors))):
        return IMAGE_MODEL
    return SPEECH_MODEL if architecture in SPEECH_ARCHITECTURES else None


def reason_not_generative(metadata: Mapping[str, Any], tensor_count: int) -> str | None:
    """Why a model cannot generate text, as the end of a message; None if it can."""
    architecture = metadata.get("general.architecture")
    if not tensor_count:
        return "a vocabulary without weights. Give the model's own file"
    if architecture in DRAFTER_ARCHITECTURES:
        return "a drafter that proposes tokens for another model. Give that model's own file"
    if architecture in DIFFUSION_ARCHITECTURES:
        return (
            f"a diffusion model ({architecture}), which fills in tokens in any order. llama.cpp's llama-diffusion-cli "
            "runs it"
        )
    pooling = metadata.get(f"{architecture}.pooling_type")
    if pooling == Pooling.RANK:
        return "a reranker, which scores texts. Give a model that generates text"
    if architecture in EMBEDDING_ARCHITECTURES or pooling not in UNPOOLED:
        return "an embedding model, which turns texts into vectors. Give a model that generates text"
    return None
