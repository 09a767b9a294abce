"""Tables of networks."""

from typing import Annotated, Literal

from pydantic import Field

from gflow.configuration.values import (
    MOST_LAYERS,
    Count,
    Name,
    NotNegative,
    Positive,
    Power,
    Table,
    Widths,
    Window,
)


class NetworkTable(Table):
    """What networks of every kind have; inputs and outputs follow from the data."""

    name: Name | None = Field(default=None, description="what tables and figures call it")
    scale: Positive = Field(
        default=1.0,
        description="initial weights are normal, standard deviation scale / sqrt(fan_in)",
    )


class Linear(NetworkTable):
    """f(x) = <w, x>, degree 1."""

    kind: Literal["linear"] = "linear"


class DeepLinear(NetworkTable):
    """f(x) = W_L ... W_1 x, degree L: the number of layers."""

    kind: Literal["deep_linear"] = "deep_linear"
    hidden: Widths = Field(default=[16, 16], description="widths of the hidden layers")


class Mlp(NetworkTable):
    """Multi-layer perceptron with the activation ReLU^k."""

    kind: Literal["mlp"] = "mlp"
    hidden: Widths = Field(default=[32], description="widths of the hidden layers")
    power: Power = Field(default=1.0, description="the k of ReLU^k")
    smoothing: NotNegative = Field(
        default=0.0,
        description="mu: the kink of ReLU rounded to relative width mu, homogeneity kept",
    )
    bias: bool = Field(default=False, description="a constant input 1 for the first layer")


class Diagonal(NetworkTable):
    """f(x) = <u^L - v^L, x>, powers by coordinate; it starts at u = v = scale."""

    kind: Literal["diagonal"] = "diagonal"
    depth: int = Field(default=2, ge=1, le=MOST_LAYERS, description="the degree L")


class Conv(NetworkTable):
    """Convolutional network with the activation ReLU^k: convolutions, then dense layers."""

    kind: Literal["conv"] = "conv"
    input_shape: list[Count] | None = Field(
        default=None,
        min_length=3,
        max_length=3,
        description="[channels, height, width] of an example; a square image of one channel "
        "without it",
    )
    channels: list[Count] = Field(
        default=[8],
        min_length=1,
        max_length=MOST_LAYERS,
        description="number of filters of each convolution",
    )
    size: Window = Field(default=3, description="height and width of the filters")
    stride: Window = Field(default=1, description="step between the windows of a convolution")
    padding: Literal["SAME", "VALID"] = Field(
        default="SAME", description="SAME: zeros around the image; VALID: windows within the image"
    )
    pool: Literal["none", "max", "average"] = Field(
        default="none", description="pooling after each convolution"
    )
    pool_size: Window = Field(default=2, description="height, width and step of pooled windows")
    hidden: Widths = Field(
        default=[], description="widths of dense layers between the convolutions and the output"
    )
    power: Power = Field(default=1.0, description="the k of ReLU^k")
    smoothing: NotNegative = Field(
        default=0.0,
        description="mu: the kink of ReLU rounded to relative width mu, homogeneity kept; those of "
        "max pooling stay",
    )


Network = Annotated[Linear | DeepLinear | Mlp | Diagonal | Conv, Field(discriminator="kind")]
