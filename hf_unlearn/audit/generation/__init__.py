"""Answers of a model, greedy and sampled, and how much of the truth is in them."""
