"""AUCs of many resamples at the price of one sort."""

from __future__ import annotations

import math

import numpy as np


class Ranking:
    """Where each member falls among the sorted non-members: all that an AUC, weighted or not, needs."""

    def __init__(self, members: np.ndarray, non_members: np.ndarray):
        self.members, self.non_members = members, non_members
        self.order = np.argsort(non_members, kind="stable")
        ordered = non_members[self.order]
        self.below = np.searchsorted(ordered, members, side="left")
        self.up_to = np.searchsorted(ordered, members, side="right")

    def auc(self, member_counts: np.ndarray | None = None, non_member_counts: np.ndarray | None = None):
        """AUC, or with counts `(draws, n)` and `(draws, m)` the AUC of each resample: `(draws,)`."""
        if member_counts is None or non_member_counts is None:
            return (self.below + self.up_to).mean() / (2 * len(self.order))
        mass = np.zeros((len(non_member_counts), len(self.order) + 1))
        np.cumsum(non_member_counts[:, self.order], axis=1, out=mass[:, 1:])
        wins = (member_counts * (mass[:, self.below] + mass[:, self.up_to])).sum(axis=1) / 2
        return wins / (member_counts.sum(axis=1) * mass[:, -1])

    def delong_std(self) -> float:
        n, m = len(self.members), len(self.order)
        members = (self.below + self.up_to) / (2 * m)
        ordered = np.sort(self.members)
        left, right = (np.searchsorted(ordered, self.non_members, side=side) for side in ("left", "right"))
        non_members = 1 - (left + right) / (2 * n)
        return math.sqrt(members.var(ddof=1) / n + non_members.var(ddof=1) / m)
