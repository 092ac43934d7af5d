"""MUSE (Shi et al., arXiv 2407.06460) as a suite of `evaluate`."""

import evaluate
import numpy as np
from evaluate.evaluation_suite import SubTask

from hf_unlearn.audit import Estimate, min_k, privleak
from hf_unlearn.audit.attacks.answers import knowledge_memorization, verbatim_memorization
from hf_unlearn.audit.measures.statistic import MEMBER, MEMORY, UTILITY, Statistic
from hf_unlearn.evaluate_modules.base import loaded
from hf_unlearn.evaluate_modules.suites import read_rows, result, results, score_once


#: Task -> configuration and split, as on the Hub.
PARTS = {
    "verbmem_forget": ("verbmem", "forget"),
    "knowmem_forget": ("knowmem", "forget_qa"),
    "knowmem_forget_examples": ("knowmem", "forget_qa_icl"),
    "knowmem_retain": ("knowmem", "retain_qa"),
    "knowmem_retain_examples": ("knowmem", "retain_qa_icl"),
    "privleak_forget": ("privleak", "forget"),
    "privleak_holdout": ("privleak", "holdout"),
}


class Suite(evaluate.EvaluationSuite):
    """VerbMem and KnowMem of the forget set, KnowMem of the retain set, and PrivLeak.

    Run it with `load_suite("muse").run(model, processing_class=tokenizer, retrained=retrained)`.
    """

    def __init__(self, name):
        super().__init__(name)
        self.suite = [SubTask("text-generation", "muse-bench/MUSE-News", *part) for part in PARTS.values()]

    def run(
        self,
        model,
        processing_class=None,
        retrained=None,
        data="muse-bench/MUSE-News",
        limit=None,
        batch_size=8,
        truncate=False,
        stemmer=False,
        seed=0,
    ):
        """Measure a model.

        Args:
            model (`PreTrainedModel` or `str`): a causal language model, or the folder or Hub id to load it from.
            processing_class (`PreTrainedTokenizerBase`, *optional*): its tokenizer; needed with a model object.
            retrained (`PreTrainedModel` or `str`, *optional*): a model that never saw the forget set.
            data (`str`, *optional*): Hub id (`"muse-bench/MUSE-Books"` is the other one), or a folder with the files.
            limit (`int`, *optional*): the first so many rows of each set.
            batch_size (`int`, *optional*, defaults to `8`): texts a forward pass.
            truncate (`bool`, *optional*, defaults to `False`): cut the texts of PrivLeak where they are longer than the
                context of the model.
            stemmer (`bool`, *optional*, defaults to `False`): of ROUGE. MUSE has it off, open-unlearning on.
            seed (`int`, *optional*, defaults to `0`): of the bootstrap intervals.

        Returns:
            `list[dict]`, one a task and measure: `task_name`, `measure`, `value`, `low`, `high` (95 % interval), `n`,
            `n_missing`, `orientation`, `method`, `reason`; with `retrained`, its value, and `difference` (paired, with an
            interval), and `privleak` in percent. Without a retrained model there is no PrivLeak: the AUC it is made of is
            reported, and which value it would have without the forget set is unknown.
        """
        sets = {name: read_rows(data, *part, limit=limit) for name, part in PARTS.items()}

        def measure(model):
            model, tokenizer = loaded(model, processing_class)
            return _measure(model, tokenizer, sets, batch_size, truncate, stemmer)

        found = measure(model)
        reference = None if retrained is None else measure(retrained)
        rows = results(found, reference, seed)
        if reference is not None:
            rows.append(_privleak(rows[-1]))
        return rows


def _measure(model, tokenizer, sets, batch_size, truncate, stemmer):
    texts = [{"prompt": row["prompt"], "completion": row["gt"]} for row in sets["verbmem_forget"]]
    questions = {
        name: [{"prompt": f"Question: {row['question']}\nAnswer:", "completion": f" {row['answer']}"} for row in rows]
        for name, rows in sets.items()
        if name.startswith("knowmem")
    }
    verbatim = verbatim_memorization(model, tokenizer, texts, stemmer=stemmer, batch_size=batch_size)
    knowledge = {
        part: knowledge_memorization(
            model,
            tokenizer,
            questions[f"knowmem_{part}"],
            questions[f"knowmem_{part}_examples"],
            stemmer=stemmer,
            batch_size=batch_size,
        )
        for part in ("forget", "retain")
    }
    plain = {part: sets[f"privleak_{part}"] for part in ("forget", "holdout")}
    tables = score_once(model, tokenizer, plain, batch_size, truncate=truncate)
    forget, holdout = (min_k(tables[part], k=0.4) for part in plain)
    return {
        Statistic("rougeL_f1", "muse/verbmem_forget", MEMORY): verbatim,
        Statistic("rougeL_f1", "muse/knowmem_forget", MEMORY): knowledge["forget"],
        Statistic("rougeL_f1", "muse/knowmem_retain", UTILITY): knowledge["retain"],
        Statistic("min_k_40_auc", "muse/privleak", MEMBER, kind="auc"): (forget, holdout),
    }


def _privleak(auc):
    """PrivLeak from the result of the AUC. Its interval is that of the paired difference of the AUC, over `1 - A_r`."""
    value = privleak(auc["value"], auc["retrained"])
    high, low = (
        -100 * auc[end] / (1 - auc["retrained"]) if value == value else np.nan
        for end in ("difference_low", "difference_high")
    )
    estimate = Estimate(value, low, high, tuple(auc["n"]), "paired bootstrap", n_missing=auc["n_missing"])
    return result(
        "muse/privleak", "privleak", "percent, 0 = as retrained, below = memorized, above = over-forgotten", estimate
    )
