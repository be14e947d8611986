"""Whether a state dict fits a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dataseg.structures import UserError


@dataclass(frozen=True)
class FitReport:
    """How a state dict differs from what a network takes; true where it does not.

    Attributes:
        missing: names that the network needs.
        surplus: names that the network does not know.
        misshapen: names of other shapes, with the shapes.
    """

    missing: list[str]
    surplus: list[str]
    misshapen: list[str]

    @classmethod
    def of(cls, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> FitReport:
        """Compare names and shapes.

        Args:
            state: to be loaded.
            own: the network's; may lie on the meta device.
        """
        return cls(
            sorted(own.keys() - state.keys()),
            sorted(state.keys() - own.keys()),
            [
                f"{name} {list(state[name].shape)}, not {list(own[name].shape)}"
                for name in sorted(own.keys() & state.keys())
                if state[name].shape != own[name].shape
            ],
        )

    def __bool__(self) -> bool:
        return not (self.missing or self.surplus or self.misshapen)

    def __str__(self) -> str:
        kinds = (
            ("missing", self.missing),
            ("left over", self.surplus),
            ("of another shape", self.misshapen),
        )
        return "; ".join(
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in kinds
            if names
        )

    def require(self, source: object) -> None:
        """Refuse a state dict that does not fit.

        Args:
            source: where it comes from, for the message.

        Raises:
            UserError: it does not fit; names tensors.
        """
        if not self:
            raise UserError(f"{source}: its tensors do not fit the configured network: {self}")
