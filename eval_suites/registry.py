"""The registry of fictional people, which needs no download, as a suite of `evaluate`."""

import evaluate
import numpy as np
from evaluate.evaluation_suite import SubTask

from hf_unlearn.audit import (
    ATTACKS,
    answer_probability,
    exact_memorization,
    extraction_strength,
    forget_quality,
    truth_ratio,
    verbatim_extracted,
)
from hf_unlearn.audit.measures.quality import folded_truth_ratio
from hf_unlearn.audit.measures.statistic import MEMBER, MEMORY, UTILITY, Statistic
from hf_unlearn.evaluate_modules.base import loaded
from hf_unlearn.evaluate_modules.suites import FOLDED, of_test, results, score_once
from hf_unlearn.examples.registry import make_registry, make_requests
from hf_unlearn.request import ErasureRequest, split


DIRECTIONS = {"forget": MEMORY, "retain": UTILITY, "holdout": "what is guessed, higher = guesses better"}


class Suite(evaluate.EvaluationSuite):
    """Extraction, probability, truth ratio and membership of the people to forget, beside those who stay and unseen ones.

    Run it with `load_suite("registry").run(model, processing_class=tokenizer, retrained=retrained)`.
    """

    def __init__(self, name):
        super().__init__(name)
        splits = ("train", "holdout")
        self.suite = [SubTask("text-generation", "hf_unlearn.examples.registry", split=split) for split in splits]

    def run(
        self,
        model,
        processing_class=None,
        retrained=None,
        data_seed=0,
        request="person",
        limit=None,
        batch_size=32,
        seed=0,
    ):
        """Measure a model that learned the registry.

        Args:
            model (`PreTrainedModel` or `str`): a causal language model, or the folder or Hub id to load it from.
            processing_class (`PreTrainedTokenizerBase`, *optional*): its tokenizer; needed with a model object.
            retrained (`PreTrainedModel` or `str`, *optional*): a model that never saw the forget set.
            data_seed (`int`, *optional*, defaults to `0`): of the registry, as given to
                `python -m hf_unlearn.examples.registry`.
            request (`str`, *optional*, defaults to `"person"`): or `"profession"`, `"condition"`, or the JSON file of
                another erasure request.
            limit (`int`, *optional*): the first so many rows of each set.
            batch_size (`int`, *optional*, defaults to `32`): answers a forward pass.
            seed (`int`, *optional*, defaults to `0`): of the bootstrap intervals.

        Returns:
            `list[dict]`, one a set and measure: `task_name`, `measure`, `value`, `low`, `high` (95 % interval), `n`,
            `n_missing`, `orientation`, `method`, `reason`; with `retrained`, its value, `difference` (paired, with an
            interval) and `forget_quality`. Facts that a stranger can guess (profession, health condition: 1/8) are in tasks
            of their own beside those that nobody can (phone number). The rows of a person are not independent, so that
            the true intervals are wider.
        """
        registry = make_registry(data_seed)
        requests = make_requests(registry, data_seed)
        asked = ErasureRequest.from_dict(requests[request]) if request in requests else ErasureRequest.load(request)
        parts = split(registry, asked)
        sets = {"forget": parts.forget, "retain": parts.retain, "holdout": parts.holdout}
        sets = {name: list(rows)[:limit] for name, rows in sets.items() if rows is not None}

        def measure(model):
            return _measure(*loaded(model, processing_class), sets, batch_size)

        found, ratios = measure(model)
        if retrained is None:
            return results(found, seed=seed)
        reference, reference_ratios = measure(retrained)
        test = forget_quality(ratios, reference_ratios)
        return [*results(found, reference, seed), of_test("registry/forget", "forget_quality", test)]


def _measure(model, tokenizer, sets, batch_size):
    asked = {name: [_row(row, row["completion"]) for row in rows] for name, rows in sets.items()}
    forget = sets["forget"]
    asked["paraphrased"] = [_row(row, row["paraphrased_completion"]) for row in forget]
    asked["wrong"] = [_row(row, text) for row in forget for text in row["perturbed_completions"]]
    tables = score_once(model, tokenizer, asked, batch_size)
    found = {}
    for name in sets:
        task, table, direction = f"registry/{name}", tables[name], DIRECTIONS[name]
        verbatim = np.where(table.valid, verbatim_extracted(table), np.nan)
        found |= {
            Statistic("verbatim_extraction", task, direction, kind="rate"): verbatim,
            Statistic("extraction_strength", task, direction): extraction_strength(table),
            Statistic("exact_memorization", task, direction): exact_memorization(table),
            Statistic("probability", task, direction): answer_probability(table),
        }
        fields = np.array([row["field"] for row in sets[name]])
        for field in dict.fromkeys(fields) if name != "retain" else ():
            of_field = Statistic("verbatim_extraction", f"{task}/{field}", direction, kind="rate")
            found[of_field] = verbatim[fields == field]
    ratios = truth_ratio(tables["paraphrased"], tables["wrong"])
    found[Statistic("truth_ratio", "registry/forget", FOLDED)] = folded_truth_ratio(ratios)
    if "holdout" in sets:
        for name, attack in ATTACKS.items():
            sides = attack(tables["forget"]), attack(tables["holdout"])
            found[Statistic(f"{name}_auc", "registry/membership", MEMBER, kind="auc")] = sides
    return found, ratios


def _row(row, answer):
    return {"prompt": row["prompt"], "completion": answer}
