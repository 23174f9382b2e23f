"""Tells what unrelated corrections have in common by chance: exact means and variances, and bounds on the tails.

Two corrections are unrelated when the directions of one know nothing of the other's: turned at random (Haar), they keep
their singular values. Then, in any two spaces of `m` rows and `n` columns and for any ranks and spectra,

- the cosine has the mean 0 and the variance 1 / (m n);
- subspaces of ranks p and q in d dimensions share p q / d, with variance 2 p q (d - p)(d - q) / (d^2 (d - 1)(d + 2));
- |X^T Y|^2 has the mean |X|^2 |Y|^2 / d.

Each is a sum of terms of unequal weight, products of two nearly normal numbers (cosine) or squares of one. The tails
are Chernoff bounds for `terms` = all the variance over the largest term's share of it, which is the worst that unequal
weights can be. So a correction of rank 1, whose cosines have heavy tails, needs a higher z than one of rank 16.
"""

from __future__ import annotations

from math import exp, inf, log, sqrt

FALSE_ALARM = 0.01  # at most this share of reports on unrelated LoRAs marks anything


def overlap_variance(p: float, q: float, d: int) -> float:
    return 2 * p * q * (d - p) * (d - q) / (d * d * (d - 1) * (d + 2)) if d > 1 else 0.0


def cosine_tail(z: float, terms: float) -> float:
    """Return the most that the probability of |z| can be: min over t of E[exp(t z)] exp(-t z) for a sum of `terms`
    equal products of two normal numbers."""
    z = abs(z)
    if z == 0:
        return 1.0
    root = sqrt(1 + 4 * z * z / terms)
    t = terms * (root - 1) / (2 * z)
    return min(1.0, 2 * exp(-t * z - terms / 2 * log(1 - t * t / terms)))


def excess_tail(ratio: float, terms: float) -> float:
    """The most that the probability of `ratio` times the mean can be, of a sum of `terms` equal squares."""
    return exp(-terms / 2 * (ratio - 1 - log(ratio))) if ratio > 1 else 1.0


def cosine_floor(terms: float, comparisons: int) -> float:
    """Return the |z| beyond which one of so many comparisons is no chance: there the tail ends that each may have as
    its share of false alarms."""
    wanted, low, high = FALSE_ALARM / max(comparisons, 1), 0.0, 1.0
    while cosine_tail(high, terms) > wanted:
        high *= 2
        if high > 1e9:
            return inf
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cosine_tail(middle, terms) > wanted else (low, middle)
    return high
