"""What can be chosen for every architecture."""

from dataclasses import dataclass, replace

from models.blocks import AveragePool, Conv, MaxPool, Split, Step


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

    def changed(
        self,
        *,
        size: tuple[int, int] | None = None,
        channels: int | None = None,
        classes: int | None = None,
        width: float | None = None,
        dropout: float | None = None,
    ) -> "Options":
        """The same options but for those that are given."""
        height, columns, colours = self.image_shape
        return Options(
            image_shape=(*(size or (height, columns)), channels or colours),
            classes=classes or self.classes,
            width=width or self.width,
            dropout=self.dropout if dropout is None else dropout,
        )

    def widened(self, filters: int) -> int:
        """That many filters, times the width multiplier; at least one."""
        return max(1, round(filters * self.width))

    def widened_step(self, step: Step) -> Step:
        """The same step with all its filters, also those of its branches, widened."""
        match step:
            case Conv():
                return replace(step, filters=self.widened(step.filters))
            case Split(branches):
                return Split(
                    {
                        name: tuple(map(self.widened_step, steps))
                        for name, steps in branches.items()
                    }
                )
            case MaxPool() | AveragePool():
                return step
