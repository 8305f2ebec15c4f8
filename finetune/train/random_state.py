"""The state of torch's random generators, as a checkpoint holds it. Names torch."""

from typing import Any


def random_state() -> dict[str, Any]:
    """Return the state of every generator by its device, as uint8 tensors."""
    import torch

    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{device}": state for device, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def set_random_state(states: dict[str, Any]) -> None:
    """Restore what `random_state` returned; a device that is not in it keeps its state."""
    import torch

    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            if f"cuda:{device}" in states:  # a run may resume on a machine with more devices
                torch.cuda.set_rng_state(states[f"cuda:{device}"], device)
