"""The confidence level of all reported intervals."""

from statistics import NormalDist

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)  # half-width of the interval in standard errors: 1.96
