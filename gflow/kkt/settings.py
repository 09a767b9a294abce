"""Sizes and thresholds of the KKT system and of its second order, with their reasons."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters P up to which dense algorithms are used.

    A matrix of P parameters takes 8 P^2 bytes: 8 MB at 1000, 32 MB at 2000.

    Attributes:
        formed: up to here cooling forms its matrix, from all examples. Beyond, GMRES solves its
            systems, and second derivatives leave out the examples that do not push.
        formed_at_kinks: up to here the matrices of systems at kinks are formed. Beyond, they are
            formed only within a subspace that holds the solution (`gflow.kkt.subspace`).
        factored: up to here systems that lack rank are solved by rank-revealing factors, all
            eigenvalues are computed, and the flow at infinite kappa is followed. At 1500 a
            rank-revealing QR takes 0.3 s and all eigenvalues 1.2 s of one core, and they grow like
            P^3; LU factors take 0.07 s.
        at_kinks: up to here the smoothing is led to 0. Beyond, limits at kinks are not found; those
            at no kink are.
        judged: up to here limits are sought at all. The last steps of Newton's method and the
            eigenvalues of the verdict need some four matrices of P x P, at 15 000 of 1.8 GB each.
        judged_within: the same of networks that are linear in their inputs, whose systems are
            formed within a subspace of s dimensions (`gflow.kkt.within`): some six matrices of
            P x s. A network 64-500-1, with s = 1100, took 3.2 GB and 210 seconds of one core.
    """

    formed: int = 1000
    formed_at_kinks: int = 2000
    factored: int = 1500
    at_kinks: int = 10000
    judged: int = 15000
    judged_within: int = 80000


@dataclass(frozen=True)
class DeadSettings:
    """What counts as dead: a neuron all of whose weights tend to 0 along the flow. All relative.

    Attributes:
        weight: weights below this part of the largest belong to a neuron that has died out.
        tried: the size, relative to the largest weight, at which directions of a dead neuron are
            tried: below `weight`, and far above rounding.
        pointed: the same for directions other than that in which it has died. So small a neuron
            moves the margins by its square, 1e-12, and rounding its growth by 1e-10.
        directions: how many random directions are tried, all neurons together. On smoothed ReLU
            networks 10-20-1 where any grew, a seventh to a third of them led to one that does.
        draws: how many random directions show which weights belong to one neuron.
        turns: how often each is turned at most,
        turn: by this angle at most. With 0.5 directions went to and fro where the activation bends.
        turned: in a direction whose force across it is smaller it rests.
        growing: a larger rate of growth is no rounding. The neurons of a family have the rate 0.
    """

    weight: float = 1e-7
    tried: float = 1e-9
    pointed: float = 1e-6
    directions: int = 48
    draws: int = 6
    turns: int = 200
    turn: float = 0.1
    turned: float = 1e-4
    growing: float = 1e-4


@dataclass(frozen=True)
class CurvatureSettings:
    """Constants of the eigenvalues at a KKT point.

    Attributes:
        rank: singular values of gradients below this part of the largest count as 0.
        symmetric: asymmetries below this part of the largest entry are rounding.
        num_nearest: of large systems, how many eigenvalues next to `-aside` are sought.
        aside: the eigenvalues nearest to `-aside` are sought, a little to the left of 0, so that
            those between -0.02 and 0 are found even if many are 0. H is `I - ...`, so that
            eigenvalues are pure numbers.
        num_leftmost: how many of the smallest eigenvalues are sought beside these.
        leftmost_error: to within which these are found; only their signs matter.
        away: the shift of the spectrum for the smallest eigenvalues: it makes all of them negative
            on the tangent space, while the normal space has the eigenvalue 0.
        num_vectors: vectors kept by Arnoldi's method.
        most_restarts: of Arnoldi's method.
        stiffness: at kinks, what stands for an infinite kappa and 1/mu in a symmetric matrix: the
            errors are its inverse, and rounding times it.
        stiffness_of_pencils: likewise in a pencil, which the QZ method solves without that loss.
        tolerance_at_kinks: of a zero eigenvalue there, as the two errors above leave it.
    """

    rank: float = 1e-10
    symmetric: float = 1e-9
    num_nearest: int = 16
    aside: float = 1e-2
    num_leftmost: int = 3
    leftmost_error: float = 3e-3
    away: float = 10.0
    num_vectors: int = 48
    most_restarts: int = 50
    stiffness: float = 1e7
    stiffness_of_pencils: float = 1e8
    tolerance_at_kinks: float = 1e-5


SIZES, DEAD, CURVATURE = Sizes(), DeadSettings(), CurvatureSettings()
