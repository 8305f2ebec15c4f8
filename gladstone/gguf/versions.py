"""GGUF versions and tensor types that Gladstone does not read, and what to tell the user about each."""

from gladstone.gguf.check_model import ForeignError

# type ids that ggml.h once had, with their names; ik_llama.cpp numbers its own types from 97
DROPPED_TYPES = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}  # fmt: skip
FIRST_OF_IK, LAST_OF_IK = 97, 1024
NEWEST_PLAUSIBLE = 256  # a larger version number means damage


def check_version(version: int) -> None:
    """Raise ForeignError for a version other than 2 and 3, saying what that version is."""
    if version in (2, 3):
        return
    message = f"version {version}; versions 2 and 3 (little-endian) are supported"
    if version & 0xFFFF == 0:
        message += ": this file is big-endian, for machines like IBM Z; look for a little-endian one"
    elif version == 1:
        message += ": this one is from August 2023, before GGUF's first revision; look for a newer file"
    elif version < NEWEST_PLAUSIBLE:
        message += "; a newer llama.cpp may read it"
    raise ForeignError(message)


def unknown_type(tensor: str, kind: int) -> ForeignError:
    """Return the error for a tensor whose type llama.cpp does not have."""
    message = f"tensor {tensor!r} has the unknown type {kind}"
    if kind in DROPPED_TYPES:
        return ForeignError(f"{message}: {DROPPED_TYPES[kind]}, which llama.cpp has dropped; use its Q4_0 or Q4_K_M")
    if FIRST_OF_IK <= kind < LAST_OF_IK:
        return ForeignError(
            f"{message}: one of ik_llama.cpp's own types, which llama.cpp lacks; use the model in another type"
        )
    return ForeignError(f"{message}; the file is damaged or needs a newer llama.cpp")
