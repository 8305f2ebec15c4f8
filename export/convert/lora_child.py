"""Child process that writes a LoRA adapter as GGUF with llama.cpp's `conversion` package. Names torch.

The model class of the base's architecture renames, permutes and splits each pair as it does the matching matrix.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from export.convert.convert_child import describe, plan_of, read_model
from export.convert.lora_gguf import pairs_of
from gladstone.errors import UnsupportedError
from gladstone.process.child_main import serve


def write(job: dict[str, Any]) -> None:
    """Write `job["out"]` from the adapter in `job["adapters"]`; `job["model"]` holds tokenizer and config."""
    folder = Path(job["model"])
    known, hparams = read_model(folder)
    import gguf
    import torch
    from convert_lora_to_gguf import LoraTorchTensor

    pairs = pairs_of(plan_of(job))

    class Pairs(known):  # type: ignore[misc, valid-type]
        """The model class with LoRA pairs in place of matrices."""

        model_arch = known.model_arch

        def set_vocab(self) -> None:
            self.gguf_writer.add_chat_template(job["template"])

        def set_type(self) -> None:
            describe(self.metadata, job["about"])
            self.gguf_writer.add_type(gguf.GGUFType.ADAPTER)
            self.gguf_writer.add_string(gguf.Keys.Adapter.TYPE, "lora")

        def set_gguf_parameters(self) -> None:
            self.gguf_writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)

        def generate_extra_tensors(self) -> Iterable[tuple[str, Any]]:
            return ()  # the base's file holds what a model needs besides weights

        def index_tensors(self, remote_hf_model_id: str | None = None) -> dict[str, Any]:
            return {}

        def get_tensors(self) -> Iterator[tuple[str, Any]]:
            for name, pair in pairs:
                kept = self.filter_tensors((name, lambda: None))
                if kept is None:
                    raise UnsupportedError(f"{name}: llama.cpp's converter drops this tensor for models of this kind.")
                yield kept[0], LoraTorchTensor(pair.down.read().float(), pair.up.read().float() * pair.scale)

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Iterable[tuple[str, Any]]:
            made = list(super().modify_tensors(data_torch, name, bid))
            if not made:
                raise UnsupportedError(f"{name}: llama.cpp's converter drops this tensor for models of this kind.")
            for target, pair in made:
                down, up = pair.get_lora_A_B()
                yield f"{target}.lora_a", down
                yield f"{target}.lora_b", up

    with torch.inference_mode():
        made = Pairs(
            folder, gguf.LlamaFileType.ALL_F32, Path(job["out"]), model_name=job["name"], hparams=hparams, eager=True
        )
        made.write()


if __name__ == "__main__":
    serve(write)
