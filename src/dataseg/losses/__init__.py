"""Losses: point sampling, mask and projection terms, Hungarian matching, and the criterion that composes them."""

from dataseg.losses.criterion import Criterion
from dataseg.losses.matcher import HungarianMatcher, Matches, NonFiniteCostError

__all__ = ["Criterion", "HungarianMatcher", "Matches", "NonFiniteCostError"]
