"""What is left in a model: scores in one pass, and the metrics, attacks and statistics that read them."""

from __future__ import annotations

import importlib


# Lazily: what reads a table needs no torch, and a reader of numbers not all the rest.
_MODULES = {
    "hf_unlearn.audit.measures.aggregates": [
        "average_gap",
        "memorization_score",
        "overall_score",
        "privacy_score",
        "tug_of_war",
        "utility_score",
    ],
    "hf_unlearn.audit.run": ["audit"],
    "hf_unlearn.audit.comparison": ["compare"],
    "hf_unlearn.audit.table.cache": ["ScoreCache"],
    "hf_unlearn.audit.measures.classifiers": [
        "CLASS_ATTACKS",
        "forget_efficacy",
        "salun_row",
        "svc_attack",
    ],
    "hf_unlearn.audit.cost": ["cost_ratios"],
    "hf_unlearn.statistics.differences": ["Difference", "paired_auc_difference", "paired_difference"],
    "hf_unlearn.audit.measures.exposure": ["fitted_exposure", "make_canaries"],
    "hf_unlearn.audit.measures.extraction": [
        "exact_memorization",
        "extraction_probability",
        "extraction_strength",
        "queries_needed",
        "verbatim_extracted",
    ],
    "hf_unlearn.models.generate": ["greedy", "sample"],
    "hf_unlearn.audit.attacks.guidance": ["guided_extraction"],
    "hf_unlearn.audit.measures.likelihoods": ["score_sets"],
    "hf_unlearn.audit.measures.membership": [
        "ATTACKS",
        "dc_pdd",
        "further_passes",
        "likelihood_drop",
        "loss",
        "lowercase_ratio",
        "min_k",
        "min_k_plus_plus",
        "recall",
        "reference_loss",
        "zlib_ratio",
    ],
    "hf_unlearn.audit.attacks.probing": ["layer_probe", "logit_lens"],
    "hf_unlearn.audit.measures.quality": [
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
    "hf_unlearn.audit.attacks.patching": ["patching_depth"],
    "hf_unlearn.audit.attacks.perturbation": ["noised", "pruned"],
    "hf_unlearn.audit.attacks.quantization": ["WEIGHT_ATTACKS", "quantized"],
    "hf_unlearn.audit.attacks.relearning": ["relearn", "relearn_grid", "split_in_half"],
    "hf_unlearn.audit.attacks.relearning_curves": [
        "RelearningCurve",
        "anamnesis_index",
        "area_between",
        "steps_to",
        "strongest",
    ],
    "hf_unlearn.audit.report": ["AuditReport"],
    "hf_unlearn.audit.table.scores": ["Scores"],
    "hf_unlearn.models.sampling": ["DEFAULT_SAMPLING", "Sampling"],
    "hf_unlearn.audit.table.score": ["score"],
    "hf_unlearn.audit.measures.shadow": ["lira", "logit_confidence", "rmia"],
    "hf_unlearn.audit.attacks.stability": ["distances", "null_band", "pairwise_distances", "zrf"],
    "hf_unlearn.statistics.estimate": ["Estimate"],
    "hf_unlearn.statistics.intervals": [
        "KolmogorovSmirnov",
        "OperatingPoint",
        "auc",
        "ks",
        "mean",
        "rate",
        "tpr_at_fpr",
    ],
    "hf_unlearn.audit.config": ["AuditConfig"],
    "hf_unlearn.audit.verdicts.surfaces": ["THREATS"],
    "hf_unlearn.audit.verdicts.margins": ["Margins"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
