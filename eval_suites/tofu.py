"""TOFU (Maini et al., arXiv 2401.06121) as a suite of `evaluate`."""

import evaluate
import numpy as np
from evaluate.evaluation_suite import SubTask

from hf_unlearn.audit import (
    Estimate,
    answer_probability,
    forget_quality,
    model_utility,
    option_probability,
    truth_ratio,
)
from hf_unlearn.audit.attacks.answers import answer_rouge
from hf_unlearn.audit.measures.quality import folded_truth_ratio
from hf_unlearn.audit.measures.statistic import MEMORY, UTILITY, Statistic
from hf_unlearn.evaluate_modules.base import loaded
from hf_unlearn.evaluate_modules.suites import FOLDED, TRUE_BETTER, of_test, read_rows, result, results, score_once
from hf_unlearn.statistics.resampling import N_RESAMPLES


# The sets that are to be kept; those with a paraphrase beside the answer first.
KEPT = {"retain": "retain_perturbed", "real_authors": "real_authors_perturbed", "world_facts": "world_facts_perturbed"}


class Suite(evaluate.EvaluationSuite):
    """Answer probability, ROUGE-L recall and truth ratio of four sets, model utility, and forget quality.

    Run it with `load_suite("tofu").run(model, processing_class=tokenizer, retrained=retrained)`.
    """

    def __init__(self, name):
        super().__init__(name)
        configs = ["forget10_perturbed", *KEPT.values()]
        self.suite = [SubTask("text-generation", "locuslab/TOFU", config, "train") for config in configs]

    def run(
        self,
        model,
        processing_class=None,
        retrained=None,
        data="locuslab/TOFU",
        forget="forget10",
        chat=False,
        limit=None,
        batch_size=16,
        max_new_tokens=200,
        seed=0,
    ):
        """Measure a model.

        Args:
            model (`PreTrainedModel` or `str`): a causal language model, or the folder or Hub id to load it from.
            processing_class (`PreTrainedTokenizerBase`, *optional*): its tokenizer; needed with a model object.
            retrained (`PreTrainedModel` or `str`, *optional*): a model that never saw the forget set.
            data (`str`, *optional*): Hub id, or a folder with the files of TOFU.
            forget (`str`, *optional*, defaults to `"forget10"`): or `"forget05"`, `"forget01"`.
            chat (`bool`, *optional*, defaults to `False`): ask with the chat template of the tokenizer, where the default is
                "Question: ...\\nAnswer: ...".
            limit (`int`, *optional*): the first so many rows of each set. TOFU itself takes 300 rows of the retain set.
            batch_size (`int`, *optional*, defaults to `16`): answers a forward pass.
            max_new_tokens (`int`, *optional*, defaults to `200`): length of the answers for ROUGE.
            seed (`int`, *optional*, defaults to `0`): of the bootstrap intervals.

        Returns:
            `list[dict]`, one a set and measure: `task_name`, `measure`, `value`, `low`, `high` (95 % interval), `n`,
            `n_missing`, `orientation`, `method`, `reason`; with `retrained`, its value, and `difference` (paired, with an
            interval). Then `model_utility` with its nine `parts`, and with `retrained` also `forget_quality`, with the
            distance `d` of the test. The rows of an author are not independent, so that the true intervals are wider.
        """
        sets = {"forget": read_rows(data, f"{forget}_perturbed", limit=limit)}
        sets |= {name: read_rows(data, config, limit=limit) for name, config in KEPT.items()}
        tasks = {"forget": f"tofu/{forget}"} | {name: f"tofu/{name}" for name in KEPT}

        def measure(model):
            model, tokenizer = loaded(model, processing_class)
            return _measure(model, tokenizer, sets, tasks, chat, batch_size, max_new_tokens)

        found, ratios = measure(model)
        reference, reference_ratios = (None, None) if retrained is None else measure(retrained)
        rows = [*results(found, reference, seed), _utility(found, tasks["forget"], seed)]
        if reference is not None:
            rows[-1]["retrained"] = _utility(reference, tasks["forget"], seed)["value"]
            rows.append(of_test(tasks["forget"], "forget_quality", forget_quality(ratios, reference_ratios)))
        return rows


def _measure(model, tokenizer, sets, tasks, chat, batch_size, max_new_tokens):
    """Everything from one pass over all answers, and one generation for each question; the truth ratios beside it."""
    asked = {name: [_asked(row, row["answer"], chat) for row in rows] for name, rows in sets.items()}
    answers = dict(asked)
    for name, rows in sets.items():
        if rows and "paraphrased_answer" in rows[0]:
            answers[f"{name} paraphrased"] = [_asked(row, row["paraphrased_answer"], chat) for row in rows]
        answers[f"{name} wrong"] = [_asked(row, text, chat) for row in rows for text in row["perturbed_answer"]]
    tables = score_once(model, tokenizer, answers, batch_size)
    generated = [row for rows in asked.values() for row in rows]
    recall = answer_rouge(model, tokenizer, generated, max_new_tokens, batch_size=batch_size)
    recalls = np.split(recall, np.cumsum([len(rows) for rows in asked.values()])[:-1])
    found, ratios = {}, {}
    for (name, task), recall in zip(tasks.items(), recalls, strict=True):
        answer, wrong = tables[name], tables[f"{name} wrong"]
        direction = UTILITY if name in KEPT else MEMORY
        has_paraphrase = f"{name} paraphrased" in tables
        probability = answer_probability(answer) if has_paraphrase else option_probability(answer, wrong)
        ratios[name] = truth_ratio(tables.get(f"{name} paraphrased", answer), wrong)
        found[Statistic("probability", task, direction)] = probability
        found[Statistic("rougeL_recall", task, direction)] = recall
        if name in KEPT:
            found[Statistic("truth_ratio", task, TRUE_BETTER)] = np.maximum(0, 1 - ratios[name])
        else:
            found[Statistic("truth_ratio", task, FOLDED)] = folded_truth_ratio(ratios[name])
    return found, ratios["forget"]


def _asked(row, answer, chat):
    if chat:
        question = {"role": "user", "content": row["question"]}
        return {"messages": [question, {"role": "assistant", "content": answer}]}
    return {"prompt": f"Question: {row['question']}\nAnswer:", "completion": f" {answer}"}


def _utility(found, forget, seed):
    """Model utility, with an interval from resampling the records of each set, the same ones for its three parts."""
    kept = {statistic: values for statistic, values in found.items() if statistic.set != forget}
    aggregate = model_utility({f"{s.set} {s.name}": s.estimate(values, seed).value for s, values in kept.items()})
    rng, draws, n = np.random.default_rng(seed), [], 0
    for task in dict.fromkeys(statistic.set for statistic in kept):
        values = np.stack([values for statistic, values in kept.items() if statistic.set == task], axis=1)
        size, present = len(values), ~np.isnan(values)
        counts = rng.multinomial(size, np.full(size, 1 / size), size=N_RESAMPLES)
        with np.errstate(invalid="ignore", divide="ignore"):
            draws.append((counts @ present) / (counts @ np.where(present, values, 0)))
        n += size
    value, low, high = np.nan if aggregate.value is None else aggregate.value, np.nan, np.nan
    if value > 0:  # of a part that is 0 resampling says nothing
        low, high = np.quantile(len(kept) / np.concatenate(draws, axis=1).sum(axis=1), [0.025, 0.975])
    estimate = Estimate(value, float(low), float(high), (n,), "bootstrap", reason=aggregate.reason)
    return result("tofu", "model_utility", UTILITY, estimate) | {"parts": aggregate.parts}
