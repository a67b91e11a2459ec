"""What can be chosen for every architecture."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The size of a network.

    Attributes:
        image_shape: Height, width and channels of its images.
        classes: How many labels it tells apart.
        width: Multiplies the filters of every block and the units of every dense
            layer but the last.
        dropout: The share of features that training leaves out before the last layer.
    """

    image_shape: tuple[int, int, int]
    classes: int
    width: float = 1.0
    dropout: float

    def widened(self, filters: int) -> int:
        """That many filters, times the width multiplier; at least one."""
        return max(1, round(filters * self.width))
