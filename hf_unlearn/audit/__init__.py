"""What is left in a model: scores in one pass, and the metrics, attacks and statistics that read them."""

from .extraction import (
    exact_memorization,
    extraction_probability,
    extraction_strength,
    first_mismatch,
    queries_needed,
    verbatim_extracted,
)
from .membership import ATTACKS, loss, min_k, min_k_plus_plus, reference_loss, zlib_ratio
from .quality import (
    Aggregate,
    answer_probability,
    corpus_perplexity,
    forget_quality,
    forget_truth_ratio_aggregate,
    model_utility,
    option_probability,
    perplexity,
    privleak,
    true_better,
    truth_ratio,
)
from .scores import DEFAULT_SAMPLING, Sampling, Scores
from .statistics import (
    Difference,
    Estimate,
    KolmogorovSmirnov,
    OperatingPoint,
    auc,
    ks,
    mean,
    paired_auc_difference,
    paired_difference,
    rate,
    tpr_at_fpr,
)


__all__ = [
    "ATTACKS",
    "Aggregate",
    "DEFAULT_SAMPLING",
    "Difference",
    "Estimate",
    "KolmogorovSmirnov",
    "OperatingPoint",
    "Sampling",
    "Scores",
    "answer_probability",
    "auc",
    "corpus_perplexity",
    "exact_memorization",
    "extraction_probability",
    "extraction_strength",
    "first_mismatch",
    "forget_quality",
    "forget_truth_ratio_aggregate",
    "ks",
    "loss",
    "mean",
    "min_k",
    "min_k_plus_plus",
    "model_utility",
    "option_probability",
    "paired_auc_difference",
    "paired_difference",
    "perplexity",
    "privleak",
    "queries_needed",
    "rate",
    "reference_loss",
    "score",
    "tpr_at_fpr",
    "true_better",
    "truth_ratio",
    "verbatim_extracted",
    "zlib_ratio",
]


def __getattr__(name: str):
    # `score` runs a model and may need torch; everything else reads a table and must import without it.
    if name == "score":
        from .scores import score

        return score
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
