"""Devices other than this machine, by their makers' data sheets. No torch.

Memory is in 10⁹ bytes, 7 % less than the makers' units: about what the driver and error correction take. A time that is
computed from these numbers is an assumption, not a measurement.
"""

from dataclasses import dataclass

from gladstone.errors import ConfigError
from gladstone.machine.gpu import WANTED, install_line

EFFICIENCY = 0.35  # assumed share of the published peak that LoRA training reaches with small batches
GB = 1e9


@dataclass(frozen=True)
class Device:
    """A GPU: its memory, its peak rate for dense 16-bit matrix products, its memory bandwidth, its compute capability.

    `capability` is '' where any recent build of torch has kernels for it.
    """

    name: str
    memory_bytes: float
    flop_per_s: float
    bytes_per_s: float
    capability: str = ""

    @property
    def note(self) -> str:
        """Which build of torch it needs; '' if any recent one runs on it."""
        if not self.capability:
            return ""
        return (
            f"PyPI's torch has no kernels for {self.name} (compute capability {self.capability}): a run refuses it. "
            f"Install a build that has them: {install_line([self.capability])}"
        )


# sources: data sheets of NVIDIA's accelerators, whitepapers of its GeForce generations (tensor cores, dense products,
# 32-bit accumulation)
DEVICES = {
    "t4": Device("NVIDIA T4", 16 * GB, 65e12, 320e9),  # T4 data sheet
    "p100": Device("NVIDIA P100", 16 * GB, 18.7e12, 732e9, "6.0"),  # P100 data sheet, PCIe
    "v100": Device("NVIDIA V100", 16 * GB, 112e12, 900e9, "7.0"),  # V100 data sheet, PCIe
    "l4": Device("NVIDIA L4", 24 * GB, 121e12, 300e9),  # L4 data sheet, half of its rate for sparse products
    "a10": Device("NVIDIA A10", 24 * GB, 125e12, 600e9),  # A10 data sheet
    "a100": Device("NVIDIA A100 40 GB", 40 * GB, 312e12, 1555e9),  # A100 data sheet, 40 GB
    "a100-80gb": Device("NVIDIA A100 80 GB", 80 * GB, 312e12, 1935e9),  # A100 data sheet, PCIe
    "h100": Device(
        "NVIDIA H100", 80 * GB, 989e12, 3350e9
    ),  # H100 data sheet, SXM, half of its rate for sparse products
    "rtx3090": Device("NVIDIA RTX 3090", 24 * GB, 71e12, 936e9),  # GA102 whitepaper
    "rtx4090": Device("NVIDIA RTX 4090", 24 * GB, 165e12, 1008e9),  # Ada whitepaper
    # by size: the rates of a slow GPU with this memory
    "6gb": Device("a GPU of 6 GB", 6 * GB, 31e12, 168e9),  # as an RTX 3050, GA107
    "8gb": Device("a GPU of 8 GB", 8 * GB, 41e12, 224e9),  # as an RTX 3050 8 GB, GA106
    "12gb": Device("a GPU of 12 GB", 12 * GB, 51e12, 360e9),  # as an RTX 3060, GA106
    "16gb": Device("a GPU of 16 GB", 16 * GB, 65e12, 320e9),  # as a T4
    "24gb": Device("a GPU of 24 GB", 24 * GB, 71e12, 300e9),  # as an RTX 3090 with an L4's memory
}


def find_device(name: str) -> Device:
    """Return a device by its name, in any case. Raises ConfigError, which lists the known ones."""
    if name.lower() not in DEVICES:
        raise ConfigError(f"--device {name}: unknown; known: {', '.join((*WANTED, *DEVICES))}.")
    return DEVICES[name.lower()]
