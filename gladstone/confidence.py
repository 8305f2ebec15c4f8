"""The confidence of every interval that is reported."""

from statistics import NormalDist

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)  # standard errors on either side of a normal mean: 1.96
