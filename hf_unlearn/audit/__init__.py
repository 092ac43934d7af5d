"""What is left in a model: scores in one pass, and the metrics, attacks and statistics that read them."""

from __future__ import annotations

import importlib


# Lazily: what reads a table needs no torch, and a reader of numbers not all the rest.
_MODULES = {
    "metrics.aggregates": [
        "average_gap",
        "memorization_score",
        "overall_score",
        "privacy_score",
        "quantization_robustness",
        "relearning_robustness",
        "tug_of_war",
        "utility_score",
    ],
    "auditing": ["audit", "compare"],
    "scoring.cache": ["ScoreCache"],
    "metrics.classifiers": ["CLASS_ATTACKS", "forget_efficacy", "salun_row", "svc_attack", "top_k_correct"],
    "cost": ["cost_ratios"],
    "statistics.differences": ["Difference", "paired_auc_difference", "paired_difference"],
    "metrics.exposure": ["fitted_exposure", "make_canaries"],
    "metrics.extraction": [
        "exact_memorization",
        "extraction_probability",
        "extraction_strength",
        "first_mismatch",
        "queries_needed",
        "verbatim_extracted",
    ],
    "generation.generate": ["greedy", "sample"],
    "attacks.guidance": ["guided_extraction", "likelihood_drop"],
    "likelihoods": ["score_sets"],
    "metrics.membership": [
        "ATTACKS",
        "dc_pdd",
        "further_passes",
        "loss",
        "lowercase_ratio",
        "min_k",
        "min_k_plus_plus",
        "recall",
        "reference_loss",
        "zlib_ratio",
    ],
    "attacks.probing": ["layer_probe", "logit_lens"],
    "metrics.quality": [
        "Aggregate",
        "answer_probability",
        "corpus_perplexity",
        "forget_quality",
        "forget_truth_ratio_aggregate",
        "harmonic_mean",
        "model_utility",
        "option_probability",
        "perplexity",
        "privleak",
        "true_better",
        "truth_ratio",
    ],
    "attacks.patching": ["patching_depth"],
    "attacks.perturbation": ["averaged", "noised", "pruned"],
    "attacks.quantization": ["WEIGHT_ATTACKS", "quantized", "recovered_share"],
    "attacks.relearning": ["relearn", "relearn_grid", "split_in_half"],
    "attacks.relearning_curves": ["RelearningCurve", "anamnesis_index", "area_between", "steps_to", "strongest"],
    "report": ["AuditReport"],
    "scoring.scores": ["DEFAULT_SAMPLING", "Sampling", "Scores"],
    "scoring.score": ["score"],
    "metrics.shadow": ["lira", "logit_confidence", "rmia"],
    "metrics.stability": ["distances", "null_band", "pairwise_distances", "table_distances", "zrf"],
    "statistics.intervals": [
        "Estimate",
        "KolmogorovSmirnov",
        "OperatingPoint",
        "auc",
        "ks",
        "mean",
        "rate",
        "tpr_at_fpr",
    ],
    "subjects": ["AuditConfig"],
    "threats": ["THREATS"],
    "verdicts.verdict": ["Margins"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
