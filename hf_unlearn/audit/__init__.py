"""What is left in a model: scores in one pass, and the metrics, attacks and statistics that read them."""

from __future__ import annotations

import importlib


# The public names by module. They are imported when they are asked for: who reads numbers needs no torch.
_NAMES = """
audit.attacks.guidance: guided_extraction
audit.attacks.patching: patching_depth
audit.attacks.perturbation: noised pruned
audit.attacks.probing: layer_probe logit_lens
audit.attacks.quantization: WEIGHT_ATTACKS quantized
audit.attacks.relearning: relearn relearn_grid split_in_half
audit.attacks.relearning_curves: RelearningCurve anamnesis_index area_between steps_to strongest
audit.attacks.stability: distances null_band pairwise_distances zrf
audit.comparison: compare
audit.config: AuditConfig
audit.cost: cost_ratios
audit.measures.aggregates: average_gap memorization_score overall_score privacy_score tug_of_war utility_score
audit.measures.classifiers: CLASS_ATTACKS forget_efficacy salun_row svc_attack
audit.measures.exposure: fitted_exposure make_canaries
audit.measures.extraction: exact_memorization extraction_probability extraction_strength
audit.measures.extraction: queries_needed verbatim_extracted
audit.measures.membership: ATTACKS dc_pdd further_passes likelihood_drop loss lowercase_ratio min_k min_k_plus_plus
audit.measures.membership: recall reference_loss zlib_ratio
audit.measures.quality: Aggregate answer_probability corpus_perplexity forget_quality forget_truth_ratio_aggregate
audit.measures.quality: harmonic_mean model_utility option_probability perplexity privleak true_better truth_ratio
audit.measures.score_sets: score_sets
audit.measures.shadow: lira logit_confidence rmia
audit.report: AuditReport
audit.run: audit
audit.table.cache: ScoreCache
audit.table.score: score
audit.table.scores: Scores
audit.verdicts.margins: Margins
audit.verdicts.surfaces: THREATS
models.generate: greedy sample
models.sampling: DEFAULT_SAMPLING Sampling
statistics.differences: Difference paired_auc_difference paired_difference
statistics.estimate: Estimate
statistics.intervals: KolmogorovSmirnov OperatingPoint auc ks mean rate tpr_at_fpr
"""
_MODULES = {
    name: f"hf_unlearn.{module}"
    for module, names in (line.split(": ") for line in _NAMES.strip().splitlines())
    for name in names.split()
}

__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
