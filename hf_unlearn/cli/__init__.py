"""The command `hf-unlearn`, and what the recipes share with it."""
