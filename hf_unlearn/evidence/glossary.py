"""What the words of a result mean, for readers who do not know machine learning."""

VERDICTS = {
    "residual": "Something was found: the attack tells the model apart from one that never saw the records, by more than the "
    "margin.",
    "over_forgotten": "Something was found: the records score lower than in a model that never saw them, which can show which "
    "records they were.",
    "no_trace_found": "As far as this test can see, the model is like one that never saw the records: the difference lies "
    "within the margin. This is evidence, and no proof.",
    "inconclusive": "Neither a trace nor its absence was shown, mostly because there are too few records. Nothing is attested.",
    "no_baseline": "There is nothing to compare the number with: the attack did not see the records in the original model "
    "either, or a model to compare with is missing. Nothing is attested.",
    "not_tested": "Nothing was tested, and nothing is said.",
}
MODELS = {
    "original": "the model before the erasure; it shows that an attack sees the records where they are",
    "unlearned": "the model after the erasure, which is judged",
    "retrained": "trained in the same way without the records: the goal of every number, since what it gives away can be guessed",
}
#: What each margin says; a difference within the margin counts as equal.
MARGINS = {
    "auc": "{:g} of an AUC",
    "share": "{:g} of rates and shares",
    "share_records": "or {:g} records where that is more",
    "rate_most": "but at most {:g} of a rate",
    "share_most": "at most {:g} of a share",
    "relearn": "{:g} of the original's value for relearning",
    "distribution": "{:g} of the distance of two distributions",
}
EXIT_CODES = {
    0: "Every surface that was asked for and that could be tested shows no trace, at the power stated under *Why*.",
    1: "**Something was found**: see the surfaces that are *residual* or *over forgotten*.",
    3: "**Nothing was found, and nothing is shown** on at least one surface that was asked for.",
}
