"""What a backbone offers: images -> four feature maps of strides 4, 8, 16 and 32."""

from __future__ import annotations

from torch import Tensor, nn

from dataseg.structures import UserError

STRIDES = (4, 8, 16, 32)


IMAGENET_MEAN = (0.485, 0.456, 0.406)


IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """What the network asks of a backbone.

    Attributes:
        channels: of the maps of strides 4, 8, 16, 32.
        mean: RGB of the images it was trained on, of values in [0, 1].
        std: likewise.
    """

    channels: tuple[int, ...]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def forward(self, images: Tensor) -> list[Tensor]:
        """``[B, 3, H, W]``, normalised -> maps ``[B, channels[i], ceil(H / STRIDES[i]), ceil(W / STRIDES[i])]``."""
        raise NotImplementedError

    def fsdp_blocks(self) -> list[nn.Module]:
        """What is gathered and freed at a time in sharded training; the rest is gathered with the whole network."""
        return []

    def checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass from now on, in training mode, to save memory.

        Raises:
            UserError: this backbone cannot.
        """
        raise UserError(f"{type(self).__name__} offers no activation_checkpointing: take none or deformable")

    def lr_scale(self, parameter: str) -> float:
        """Factor on the learning rate of one of the backbone's parameters, by its name in `named_parameters`."""
        return 1.0

    def no_weight_decay(self) -> set[str]:
        """Names in `named_parameters` of those that take no weight decay though they have more than one dimension."""
        return set()
