"""Tables of data sets."""

from typing import Annotated, Literal

from pydantic import Field

from gflow.configuration.values import Count, Digit, FilePath, Name, NotNegative, Seed, Table


class Digits(Table):
    """scikit-learn's 8 x 8 handwritten digits, two classes, pixels in [0, 1]."""

    kind: Literal["digits"] = "digits"
    positive: Digit = Field(default=3, description="the digit labelled +1")
    negative: Digit = Field(default=8, description="the digit labelled -1")
    limit: int | None = Field(
        default=None,
        ge=2,
        description="train on so many examples, as many of each digit; the others are held out",
    )


class Mnist(Table):
    """MNIST, two classes, 28 x 28 pixels in [0, 1]."""

    kind: Literal["mnist"] = "mnist"
    path: FilePath | None = Field(
        default=None,
        description="folder with the four IDX files, plain or .gz; without it the environment "
        "variable GFLOW_DATA, and without that scikit-learn fetches them",
    )
    positive: Digit = Field(default=3, description="the digit labelled +1")
    negative: Digit = Field(default=7, description="the digit labelled -1")
    limit: int | None = Field(default=None, ge=2, description="use the first so many examples")
    split: Literal["train", "test"] = Field(
        default="train", description="which part of MNIST; of train, test is held out"
    )


class Gaussian(Table):
    """Normal points labelled by a random hyperplane, moved away from it."""

    kind: Literal["gaussian"] = "gaussian"
    n: int = Field(default=40, ge=2, description="number of examples")
    d: Count = Field(default=5, description="number of inputs")
    gap: NotNegative = Field(default=0.5, description="distance by which points are moved apart")
    seed: Seed = Field(default=0, description="seed of the points")


class RandomLabels(Table):
    """Points on the unit sphere whose labels have nothing to do with them."""

    kind: Literal["random_labels"] = "random_labels"
    n: int = Field(default=20, ge=2, description="number of examples")
    d: Count = Field(default=20, description="number of inputs")
    seed: Seed = Field(default=0, description="seed of the points and labels")


class Soudry(Table):
    """Points in the plane with max-margin direction (1, 1)/sqrt(2) (Soudry et al. 2018)."""

    kind: Literal["soudry"] = "soudry"
    num_random: int = Field(default=12, ge=0, multiple_of=2, description="points beyond the margin")
    seed: Seed = Field(default=0, description="seed of those points")


class Npz(Table):
    """Your own data: arrays x (n, d) and y (n,) in a NumPy .npz file; y in {-1, +1} or 0 .. k-1."""

    kind: Literal["npz"] = "npz"
    path: FilePath = Field(description="the file, relative to the configuration file")
    x: Name = Field(default="x", description="name of the array of inputs")
    y: Name = Field(default="y", description="name of the array of labels")
    held_out: FilePath | None = Field(
        default=None, description="a file like it, of examples held out to tell the accuracy"
    )


class Csv(Table):
    """Your own data: one example a line, numbers only; labels in {-1, +1} or 0 .. k-1."""

    kind: Literal["csv"] = "csv"
    path: FilePath = Field(description="the file, relative to the configuration file")
    label: int = Field(default=-1, description="column of the label: 0 is the first, -1 the last")
    delimiter: str = Field(
        default=",", min_length=1, max_length=1, description="what parts the columns"
    )
    skip_lines: int = Field(default=0, ge=0, description="lines to skip first, such as a header")
    held_out: FilePath | None = Field(
        default=None, description="a file like it, of examples held out to tell the accuracy"
    )


Data = Annotated[
    Digits | Mnist | Gaussian | RandomLabels | Soudry | Npz | Csv, Field(discriminator="kind")
]
