"""What a row of a data set looks like."""

#: Label of a position that is not scored, as in torch and transformers.
IGNORE_INDEX = -100
