"""Devices other than this machine, by their makers' data sheets. No torch.

Memory is in 10⁹ bytes, 7 % less than the makers' units: about what the driver and error correction take. A time that is
computed from these numbers is an assumption, not a measurement.
"""

import re
from dataclasses import dataclass

from gladstone.errors import ConfigError
from gladstone.machine.gpu import WANTED, install_line

EFFICIENCY = 0.35  # assumed share of the published peak that LoRA training reaches with small batches
EFFICIENCIES = (0.1, 0.5)  # the least and the most that are assumed
PYPI_CAPABILITY = (7, 5)  # the lowest that PyPI's torch 2.13 has kernels for: sm_75 80 86 90 100 120
GB = 1e9


@dataclass(frozen=True)
class Device:
    """A GPU: its memory, its peak rates for dense 16-bit and 32-bit matrix products, and its memory bandwidth.

    `capability` is its compute capability, `names` are words that its driver's name for it has.
    """

    name: str
    memory_bytes: float
    flop_per_s: float
    float32_flop_per_s: float
    bytes_per_s: float
    capability: tuple[int, int]
    names: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """Which build of torch it needs; '' if any recent one runs on it."""
        if self.capability >= PYPI_CAPABILITY:
            return ""
        found = ".".join(map(str, self.capability))
        return (
            f"PyPI's torch has no kernels for {self.name} (compute capability {found}): a run refuses it. "
            f"Install a build that has them: {install_line([found])}"
        )


# sources: data sheets of NVIDIA's accelerators, whitepapers of its GeForce generations (16 bit: tensor cores, dense
# products, 32-bit accumulation; 32 bit: without tensor cores, which torch does not use for them)
DEVICES = {
    # T4 data sheet; 14.74 GiB by torch
    "t4": Device("NVIDIA T4", 15.8 * GB, 65e12, 8.1e12, 320e9, (7, 5), ("t4",)),
    # P100 and V100 data sheets, PCIe
    "p100": Device("NVIDIA P100", 16 * GB, 18.7e12, 9.3e12, 732e9, (6, 0), ("p100",)),
    "v100": Device("NVIDIA V100", 16 * GB, 112e12, 14e12, 900e9, (7, 0), ("v100",)),
    # L4 data sheet, half of its rate for sparse products
    "l4": Device("NVIDIA L4", 24 * GB, 121e12, 30.3e12, 300e9, (8, 9), ("l4",)),
    # A10 data sheet
    "a10": Device("NVIDIA A10", 24 * GB, 125e12, 31.2e12, 600e9, (8, 6), ("a10",)),
    # A100 data sheet, 40 GB, and 80 GB PCIe
    "a100": Device("NVIDIA A100 40 GB", 40 * GB, 312e12, 19.5e12, 1555e9, (8, 0), ("a100", "40gb")),
    "a100-80gb": Device("NVIDIA A100 80 GB", 80 * GB, 312e12, 19.5e12, 1935e9, (8, 0), ("a100", "80gb")),
    # H100 data sheet, SXM, half of its rate for sparse products
    "h100": Device("NVIDIA H100", 80 * GB, 989e12, 67e12, 3350e9, (9, 0), ("h100", "hbm3")),
    # GA102 and Ada whitepapers
    "rtx3090": Device("NVIDIA RTX 3090", 24 * GB, 71e12, 35.6e12, 936e9, (8, 6), ("3090",)),
    "rtx4090": Device("NVIDIA RTX 4090", 24 * GB, 165e12, 82.6e12, 1008e9, (8, 9), ("4090",)),
    # by size: the rates of a slow GPU with this memory
    "6gb": Device("a GPU of 6 GB", 6 * GB, 31e12, 9.1e12, 168e9, (8, 6)),  # as an RTX 3050, GA107
    "8gb": Device("a GPU of 8 GB", 8 * GB, 41e12, 9.1e12, 224e9, (8, 6)),  # as an RTX 3050 8 GB, GA106
    "12gb": Device("a GPU of 12 GB", 12 * GB, 51e12, 12.7e12, 360e9, (8, 6)),  # as an RTX 3060, GA106
    "16gb": Device("a GPU of 16 GB", 16 * GB, 65e12, 8.1e12, 320e9, (7, 5)),  # as a T4
    "24gb": Device("a GPU of 24 GB", 24 * GB, 71e12, 35.6e12, 300e9, (8, 6)),  # as an RTX 3090 with an L4's memory
}
OTHER_MODELS = ("ti", "d", "laptop", "mobile", "max", "super", "mig")  # words of slower or faster relatives


def find_device(name: str) -> Device:
    """Return a device by its name, in any case. Raises ConfigError, which lists the known ones."""
    if name.lower() not in DEVICES:
        raise ConfigError(f"--device {name}: unknown; known: {', '.join((*WANTED, *DEVICES))}.")
    return DEVICES[name.lower()]


def known_device(name: str) -> Device | None:
    """The device that a driver calls `name`; None if the table does not have it.

    >>> names = ["Tesla T4", "NVIDIA A100-SXM4-80GB", "NVIDIA GeForce RTX 4090 Laptop GPU"]
    >>> [device and device.name for device in map(known_device, names)]
    ['NVIDIA T4', 'NVIDIA A100 80 GB', None]
    """
    words = re.split(r"[^a-z0-9]+", name.lower())
    if any(word in words for word in OTHER_MODELS):
        return None
    fitting = (device for device in DEVICES.values() if device.names)
    return next((device for device in fitting if all(word in words for word in device.names)), None)
