"""VPTShape: how large a VPT network is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VPTShape:
    """Sizes of a VPT network; the defaults are the 1x model's.

    Attributes:
      hidsize: D, width of the transformer.
      heads: of the attention; D / heads is the size of each.
      layers: L, recurrent blocks.
      memory: M, frames that a frame sees, itself included.
      pointwise_ratio: the blocks' hidden layers are so many times D wide.
      channels: of the three convolution stacks.
      image_size: height and width, pixels.
      temperature: by which the policy's logits are divided.
    """

    hidsize: int = 1024
    heads: int = 8
    layers: int = 4
    memory: int = 128
    pointwise_ratio: int = 4
    channels: tuple[int, ...] = (64, 128, 128)
    image_size: tuple[int, int] = (128, 128)
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if self.hidsize % self.heads:
            raise ValueError(f"a VPT network of hidsize={self.hidsize} cannot have {self.heads} heads: not a multiple")

    @classmethod
    def of_width(cls, factor: int) -> VPTShape:
        """OpenAI's 1x, 2x or 3x."""
        return cls(1024 * factor, 8 * factor, channels=(64 * factor, 128 * factor, 128 * factor))

    @property
    def final_map(self) -> tuple[int, int, int]:
        """Channels, height and width behind the last stack."""
        height, width = self.image_size
        for _ in self.channels:
            height, width = -(-height // 2), -(-width // 2)
        return self.channels[-1], height, width
