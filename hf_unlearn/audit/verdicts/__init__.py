"""From differences with intervals to verdicts, and the sentences that may be said."""
