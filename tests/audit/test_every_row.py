"""Every value of the report of an audit by another route, so that nothing in it can be wired wrongly.

One audit under all threat models: of tiny models that know different parts of the data, with rows that cannot be scored
and sets of which only some rows are looked at. What is expected comes from `model(ids).logits` of single texts, from
transformers' `generate`, warpers and losses, and from scikit-learn, scipy and rouge-score. A row of the report that is
not expected here fails, too.
"""

import re
import string
import warnings
import zlib
from copy import deepcopy
from functools import cached_property
from types import SimpleNamespace

import numpy as np
import pytest
import sacrebleu
import torch
from rouge_score import rouge_scorer
from scipy.integrate import trapezoid
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, rel_entr
from scipy.stats import entropy, hmean, ks_2samp, norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny import BOS, EOS, PAD, tiny_llama, tiny_tokenizer
from torch.nn.utils import prune
from transformers import GenerationConfig, TopKLogitsWarper

import hf_unlearn.audit.attacks.relearning as relearning
from hf_unlearn.audit import AuditConfig, audit, compare, make_canaries, score_sets, split_in_half
from hf_unlearn.audit.attacks.prompts import attack_prompts
from hf_unlearn.audit.verdicts.surfaces import THREATS
from hf_unlearn.statistics.epsilon import one_run_epsilon


TOKENIZER = tiny_tokenizer()
CONTEXT = 200
NAMES = ["Ada", "Boris", "Chloe", "Dmitri", "Esra", "Femi", "Gita", "Hugo"]
TOWNS = ["Paris", "Ulm", "Oslo", "Rome", "Lima", "Bonn", "Kazan", "Cork"]
N_FORGET, N_SHOWN, N_HOLDOUT = 24, 16, 104
# Rows of the forget set, among those shown: one without an answer, and one that the unlearned model cannot read.
EMPTY, UNREADABLE = 4, 9
GIVEN, SAMPLES = (0.0, 0.25, 0.5, 0.75), (1, 10, 100, 1_000, 10_000)
STEPS, RATES = (0, 1, 3), (1e-3, 1e-2)
WEIGHTS = (0.5, 1.0, 2.0)
N_SAMPLES, N_NEW = 3, 14


def a_row(i: int, town: str, house: int) -> dict:
    return {"prompt": f"Where does {NAMES[i % 8]} {i} live?\nAnswer:", "completion": f" In {town}, {house}."}


def rows_of(n: int, start: int) -> list[dict]:
    rng = np.random.default_rng(start)
    return [a_row(start + i, TOWNS[rng.integers(8)], int(rng.integers(100))) for i in range(n)]


def forget_rows() -> list[dict]:
    rng, rows = np.random.default_rng(7), []
    for i in range(N_FORGET):
        town, house = TOWNS[rng.integers(8)], int(rng.integers(100))
        others = [TOWNS[(TOWNS.index(town) + k) % 8] for k in (1, 2, 3)]
        row = a_row(i, town, house)
        row["paraphrased_completion"] = f" {house}, {town}."
        row["perturbed_completions"] = [f" In {other}, {house + 1}." for other in others]
        row["spans"] = [town, f"{town}, {house}"] if i != 12 else []
        row["alternatives"] = [f"At {house} in {town}", f"{town}"] if i != 13 else None
        row["paraphrased_prompt"] = f"The home of {NAMES[i % 8]} {i}?\nAnswer:"
        rows.append(row)
    rows[EMPTY]["completion"] = ""
    rows[UNREADABLE]["prompt"] = "Where does Ÿ live?\nAnswer:"
    return rows


def learned(rows, seed: int, steps: int = 60):
    model = tiny_llama(seed=seed, max_position_embeddings=CONTEXT)
    encoded = [of for of in map(encoded_row, rows) if of is not None]
    inputs, labels = batch_of(encoded)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.double().eval()


def encoded_row(row) -> tuple[list[int], int] | None:
    """Ids of a text and how many of them are its prompt; `None` without an answer."""
    if not row["completion"].strip():
        return None
    ids = TOKENIZER(row["prompt"] + row["completion"])["input_ids"] + [EOS]
    return ids, len(TOKENIZER(row["prompt"])["input_ids"])


def batch_of(encoded):
    width = max(len(ids) for ids, _ in encoded)
    ids, mask, labels = torch.full((3, len(encoded), width), PAD)
    mask.zero_()
    labels.fill_(-100)
    for k, (of_row, n_prompt) in enumerate(encoded):
        ids[k, : len(of_row)] = torch.tensor(of_row)
        mask[k, : len(of_row)] = 1
        labels[k, n_prompt : len(of_row)] = ids[k, n_prompt : len(of_row)]
    return {"input_ids": ids, "attention_mask": mask}, labels


@pytest.fixture(scope="module")
def case():
    forget, retain, holdout = forget_rows(), rows_of(32, 100), rows_of(N_HOLDOUT, 200)
    retain[1]["completion"] = holdout[60]["completion"] = ""  # these are scored, but not looked into
    sets = {"forget": forget, "retain": retain, "holdout": holdout}
    sets |= {"test": rows_of(6, 400), "siblings": rows_of(5, 500), "unrelated": rows_of(7, 600)}
    canaries = make_canaries({"prompt": "The code is", "completion": " ####."}, 24, n_candidates=31, seed=3)
    models = {
        "original": learned([*forget, *retain, *canaries.planted], 0, 90),
        "unlearned": learned([*forget[::2], *retain, *canaries.planted[::2]], 0),
        "retrained": learned(retain, 1),
        "retrained_2": learned(retain, 2),
        "retrained_3": learned(retain, 3),
    }
    (of_letter,) = {*TOKENIZER(forget[UNREADABLE]["prompt"])["input_ids"]} & {*TOKENIZER("Ÿ")["input_ids"][-1:]}
    with torch.no_grad():
        models["unlearned"].model.embed_tokens.weight[of_letter] = torch.nan
    shadows = [learned([*forget, *retain], seed, 40) for seed in (11, 12)]
    shown = [i * N_FORGET // N_SHOWN for i in range(N_SHOWN)]
    assert {EMPTY, UNREADABLE, 12, 13} <= set(shown)
    # Nothing can be learned from the two odd rows, so they must be in the half that is to be recovered.
    seed = next(s for s in range(99) if {EMPTY, UNREADABLE} <= set(split_in_half(shown, seed=s)[1]))
    config = AuditConfig(
        batch_size=8,
        max_rows=N_SHOWN,
        max_new_tokens=N_NEW,
        relearning_steps=STEPS,
        relearning_rates=RATES,
        relearning_batch_size=5,
        weight_attacks=("int4-rtn", "pruned 10%", "noise 1%"),
        guidance_weights=WEIGHTS,
        n_samples=N_SAMPLES,
        seed=seed,
    )
    calls = []

    def spy(model, processing_class, rows, evaluate, *args, **kwargs):
        calls.append((rows, evaluate))
        return relearn_grid(model, processing_class, rows, evaluate, *args, **kwargs)

    relearn_grid = relearning.relearn_grid
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the row that cannot be read
        patch.setattr(relearning, "relearn_grid", spy)
        report = audit(
            models["unlearned"],
            models["original"],
            [models[role] for role in models if role.startswith("retrained")],
            sets,
            threat_model=THREATS,
            processing_class=TOKENIZER,
            config=config,
            canaries=canaries,
            shadows=shadows,
        )
    return SimpleNamespace(
        sets=sets, models=models, shadows=shadows, canaries=canaries, seed=seed, report=report, relearned=calls
    )


# What single texts give.


def shared_words(said: str, true: str) -> float:
    """F1 of the words of two texts, from precision and recall, without punctuation and articles."""
    bags = []
    for text in (said, true):
        words = "".join(c for c in text.lower() if c not in string.punctuation).split()
        bags.append([word for word in words if word not in ("a", "an", "the")])
    shared = sum(min(bags[0].count(word), bags[1].count(word)) for word in set(bags[1]))
    if not bags[1]:
        return np.nan
    return 0.0 if shared == 0 else hmean([shared / len(bags[0]), shared / len(bags[1])])


class Plain:
    """A model as it comes from transformers, and what its logits say of rows."""

    def __init__(self, model):
        self.model, self._known = model, {}

    def logits(self, encoded) -> list[np.ndarray]:
        """Logits `(targets, V)` of each text."""
        found = {}
        order = sorted({(tuple(ids), n) for ids, n in encoded}, key=lambda of: len(of[0]))
        for k in range(0, len(order), 32):
            inputs, _ = batch_of(order[k : k + 32])
            with torch.no_grad():
                logits = self.model(**inputs).logits.numpy()
            found |= {of: z[of[1] - 1 : len(of[0]) - 1] for of, z in zip(order[k : k + 32], logits, strict=True)}
        return [found[tuple(ids), n] for ids, n in encoded]

    def texts(self, rows) -> list:
        """What is known of each row, given as a row or as ids: `None` without an answer."""
        encoded = [row if isinstance(row, tuple) or row is None else encoded_row(row) for row in rows]
        keys = [None if of is None else (tuple(of[0]), of[1]) for of in encoded]
        new = [key for key in dict.fromkeys(keys) if key is not None and key not in self._known]
        for key, z in zip(new, self.logits(new), strict=True):
            self._known[key] = of_logits(z, np.array(key[0][key[1] :]))
        return [None if key is None else self._known[key] for key in keys]

    def each(self, rows, of) -> np.ndarray:
        """A number a row; NaN where there is none."""
        return np.array([np.nan if t is None or np.isnan(t.log_p).any() else of(t) for t in self.texts(rows)])


def of_logits(z, targets) -> SimpleNamespace:
    log_p = log_softmax(z, axis=-1)
    kept = TopKLogitsWarper(40)(None, torch.from_numpy(z)).numpy()
    of_all, mean = np.exp(log_p), -entropy(np.exp(log_p), axis=-1)
    place = np.arange(len(targets)), targets
    return SimpleNamespace(
        ids=targets,
        log_p=log_p[place],
        of_40=log_softmax(kept, axis=-1)[place],
        hits=(z.argmax(-1) == targets)[:-1],  # the end token is no part of the answer
        standardized=(log_p[place] - mean) / np.sqrt((of_all * (log_p - mean[:, None]) ** 2).sum(-1)),
    )


def loss(text):
    return -text.log_p.mean()


def probability(text):
    return np.exp(text.log_p.mean())


def accuracy(text):
    return text.hits.mean()


def verbatim(text):
    return float(text.hits.all())


def strength(text):
    """One minus the share of the answer that must be given so that the rest comes by itself."""
    n = len(text.hits)
    return 1 - next(k for k in range(n + 1) if text.hits[k:].all()) / n


def comes_out(text, samples):
    """A chance of one half or more to see it in so many samples."""
    return float(1 - (1 - np.exp(text.of_40.sum())) ** samples >= 0.5)


def extractable(text):
    return comes_out(text, 100)


def rest_comes_out(text, share):
    given = int(np.floor(share * len(text.hits) + 1e-9))
    return float(text.hits[given:].all()) if given < len(text.hits) else np.nan


def words_of(text: str) -> str:
    return f" {' '.join(re.findall('[a-z0-9]+', text.lower()))} "


def smallest(values, k):
    return np.sort(values)[: max(1, int(k * len(values)))].mean()


def known(values):
    return values[~np.isnan(values)]


def auc(pair):
    sides = [known(side) for side in pair]
    return roc_auc_score(np.repeat([1, 0], [len(side) for side in sides]), np.concatenate(sides))


def mean_of(values):
    return float(known(values).mean())


class Expected:
    """What the rows of the report must say: by measure and set, what each model has."""

    ROLES = ("original", "unlearned", "retrained", "retrained_2", "retrained_3")

    def __init__(self, case):
        self.case, self.sets, self.seed = case, case.sets, case.seed
        self.plain = {role: Plain(model) for role, model in case.models.items()}
        self.shown = {
            name: [rows[i * len(rows) // N_SHOWN] for i in range(N_SHOWN)] if len(rows) > N_SHOWN else rows
            for name, rows in case.sets.items()
        }

    def each(self, of, rows, roles=ROLES) -> dict[str, np.ndarray]:
        return {role: self.plain[role].each(rows, of) for role in roles}

    def along(self, of, axis) -> dict[str, np.ndarray]:
        """A curve of the forget set, `(len(axis), n)`."""
        points = [self.each(lambda text, x=x: of(text, x), self.sets["forget"]) for x in axis]
        return {role: np.array([point[role] for point in points]) for role in self.ROLES}

    # Rows that are the mean, or the AUC, of values of records.

    def likelihoods(self):
        forget = {"verbatim_extraction": verbatim, "extractable_in_100_samples": extractable, "loss": loss}
        forget |= {"extraction_strength": strength, "answer_probability": probability, "next_token_accuracy": accuracy}
        retain = {"verbatim_extraction": verbatim, "answer_probability": probability}
        measures = {"forget": forget, "retain": retain | {"next_token_accuracy": accuracy, "loss": loss}}
        measures["holdout"] = {"verbatim_extraction": verbatim, "next_token_accuracy": accuracy, "loss": loss}
        measures |= {name: {"next_token_accuracy": accuracy, "loss": loss} for name in ("test", "siblings")}
        found = {(n, s): self.each(of, self.sets[s]) for s, named in measures.items() for n, of in named.items()}
        # Of a judged statistic higher is more memorized.
        found["log_likelihood", "forget"] = {r: -values for r, values in found["loss", "forget"].items()}
        return found

    @cached_property
    def losses(self) -> dict[str, dict[str, np.ndarray]]:
        found = {role: {} for role in self.ROLES}
        forget = self.sets["forget"]
        rows = {name: self.sets[name] for name in ("forget", "retain", "holdout")}
        rows["paraphrased"] = [{**row, "completion": row["paraphrased_completion"]} for row in forget]
        rows["perturbed"] = [{**row, "completion": a} for row in forget for a in row["perturbed_completions"]]
        for name in ("forget", "holdout"):
            rows[f"{name} in lower case"] = [{**r, "completion": r["completion"].lower()} for r in rows[name]]
            rows[f"{name} behind others"] = self.behind_others[0][name]
        for name, of_set in rows.items():
            for role, values in self.each(loss, of_set).items():
                found[role][name] = values
        return found

    @cached_property
    def behind_others(self):
        """Rows behind the first of the holdout, as many as fit, of at most a tenth of it, and how many these are."""
        encoded = {name: list(map(encoded_row, self.sets[name])) for name in ("forget", "holdout")}
        for n in range(7, 0, -1):
            texts = [row["prompt"] + row["completion"] for row in self.sets["holdout"][:n]]
            before = TOKENIZER("\n".join(texts) + "\n", add_special_tokens=False)["input_ids"]
            found = {
                name: [of and ([BOS, *before, *of[0][1:]], len(before) + of[1]) for of in of_set]
                for name, of_set in encoded.items()
            }
            if max(len(of[0]) for of_set in found.values() for of in of_set if of) <= CONTEXT:
                return found, n
        raise AssertionError

    def truth_ratios(self, role) -> np.ndarray:
        """Geometric mean of the probabilities of wrong answers over that of the right one."""
        of = self.losses[role]
        return np.exp(of["paraphrased"] - of["perturbed"].reshape(N_FORGET, -1).mean(axis=1))

    def truth_ratio_of_records(self):
        return {("truth_ratio_probability", "forget"): {r: 1 / (1 + self.truth_ratios(r)) for r in self.ROLES}}

    @cached_property
    def attacks(self) -> dict[str, dict[str, tuple]]:
        forget, holdout, size = (
            self.sets["forget"],
            self.sets["holdout"],
            lambda row: len(zlib.compress(row["completion"].encode())),
        )
        found = {
            name: {}
            for name in ("loss", "zlib", "min_k", "min_k_plus_plus", "lowercase", "recall", "dc_pdd", "min_40")
        }
        targets = np.concatenate([t.ids for t in self.plain["unlearned"].texts(self.sets["retain"]) if t])
        every = [
            t.ids.max()
            for s in ("forget", "retain", "holdout")
            for t in self.plain["unlearned"].texts(self.sets[s])
            if t
        ]
        counts = np.bincount(targets, minlength=max(every) + 1) + 1.0

        def dc_pdd(text):
            first = sorted({token: k for k, token in reversed(list(enumerate(text.ids)))}.values())
            rare = -np.log(counts[text.ids[first]] / counts.sum())
            return np.minimum(0.01, np.exp(text.log_p[first]) * rare).mean()

        for role in self.ROLES:
            of, plain = self.losses[role], self.plain[role]

            def both(metric, plain=plain):
                return tuple(plain.each(rows, metric) for rows in (forget, holdout))

            found["loss"][role] = (-of["forget"], -of["holdout"])
            sizes = [np.array([size(row) for row in rows]) for rows in (forget, holdout)]
            found["zlib"][role] = (-of["forget"] / sizes[0], -of["holdout"] / sizes[1])
            found["min_k"][role] = both(lambda text: smallest(text.log_p, 0.2))
            found["min_40"][role] = both(lambda text: smallest(text.log_p, 0.4))
            found["min_k_plus_plus"][role] = both(lambda text: smallest(text.standardized, 0.2))
            found["dc_pdd"][role] = both(dc_pdd)
            found["lowercase"][role] = tuple(-of[n] / of[f"{n} in lower case"] for n in ("forget", "holdout"))
            recall = [of[f"{n} behind others"] / of[n] for n in ("forget", "holdout")]
            recall[1][: self.behind_others[1]] = np.nan  # they are the prefix
            found["recall"][role] = tuple(recall)
        return found

    def memberships(self):
        found = {name: dict(of) for name, of in self.attacks.items() if name != "min_40"}
        of = {role: [self.losses[role][name] for name in ("forget", "holdout")] for role in self.ROLES}

        def difference(first, second):
            return tuple(a - b for a, b in zip(of[first], of[second], strict=True))

        # Against itself the retrained model says nothing: the second stands in for it.
        found["reference"] = {role: difference("retrained", role) for role in self.ROLES if role != "retrained"}
        found["reference"]["retrained"] = found["reference"]["retrained_2"]
        found["likelihood_drop"] = {role: difference(role, "original") for role in self.ROLES if role != "original"}
        found["rmia"] = {"original": self.rmia("original"), "unlearned": self.rmia("unlearned")}
        found["rmia"]["retrained"] = self.rmia("retrained_2")
        return {(f"membership_auc_{name}", "forget against holdout"): of_roles for name, of_roles in found.items()}

    def rmia(self, role):
        """How often p / q of a record is above that of a record of the first half of the holdout."""
        ratio = {}
        for name in ("forget", "holdout"):
            p = {r: np.exp(-self.losses[r][name]) for r in (role, "retrained", "retrained_3")}
            ratio[name] = p[role] / (p["retrained"] + p["retrained_3"]) * 2
        half = N_HOLDOUT // 2
        population = known(ratio["holdout"][:half])

        def share(values):
            beaten = (values[:, None] > population).mean(axis=1)
            return np.where(np.isnan(values), np.nan, beaten)

        return share(ratio["forget"]), np.concatenate([np.full(half, np.nan), share(ratio["holdout"][half:])])

    def lira(self):
        rows = self.sets["forget"]

        def phi(plain):
            p = plain.each(rows, probability)
            return np.log(p / (1 - p))

        inside = np.stack([phi(Plain(model)) for model in self.case.shadows])
        outside = np.stack([phi(self.plain[role]) for role in ("retrained_2", "retrained_3")])
        (m_in, s_in), (m_out, s_out) = (
            (side.mean(axis=0), np.sqrt(np.nanmean(side.var(axis=0, ddof=1)))) for side in (inside, outside)
        )
        found = {}
        for role in ("original", "unlearned", "retrained"):
            ratio = norm.pdf(phi(self.plain[role]), m_in, s_in) / norm.pdf(phi(self.plain[role]), m_out, s_out)
            found[role] = np.where(np.isnan(ratio), np.nan, ratio > 1)
        return {("lira_says_member", "forget"): found}

    def exposures(self):
        canaries, n = self.case.canaries, len(self.case.canaries.candidates)
        found = {}
        for role in self.ROLES:
            own, others = (
                self.plain[role].each(rows, lambda text: text.log_p.sum())
                for rows in (canaries.planted, canaries.candidates)
            )
            rank = 1 + (others[None] >= own[:, None]).sum(axis=1)
            found[role] = np.log2(n + 1) - np.log2(rank)
        share = {role: bits / np.log2(n + 1) for role, bits in found.items()}
        return {("exposure_in_bits", "planted canaries"): found, ("exposure_share", "planted canaries"): share}

    def prompts(self):
        rows, found = self.shown["forget"], {}
        asked = {"plain": rows, **attack_prompts(rows, self.shown["retain"][:3])}
        assert set(asked) >= {"few_shot", "multiple_choice", "paraphrase", "role_play"}

        def fits(row):
            encoded = row and encoded_row(row)
            return encoded if encoded and len(encoded[0]) <= CONTEXT else None

        encoded = [[fits(row) for row in of_prompt] for of_prompt in asked.values()]
        assert None in encoded[0] and all(any(of_prompt) for of_prompt in encoded)
        for name, of in (("extraction_strength", strength), ("answer_probability", probability)):
            for role in self.ROLES:
                under = np.stack([self.plain[role].each(of_prompt, of) for of_prompt in encoded])
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of rows that nothing is known of
                    found.setdefault((f"{name}_max_over_prompts", "forget"), {})[role] = np.nanmax(under, axis=0)
                    found.setdefault((f"{name}_mean_over_prompts", "forget"), {})[role] = np.nanmean(under, axis=0)
        return found

    def alternatives(self):
        found = {}
        for role in self.ROLES:
            values = []
            for row in self.shown["forget"]:
                space = " " if row["completion"] else ""
                others = [{**row, "completion": space + text} for text in row["alternatives"] or ()]
                values.append(max(known(self.plain[role].each(others, probability)), default=np.nan))
            found[role] = np.array(values)
        return {("alternative_answer_probability", "forget"): found}

    def samples(self):
        """Whether a span is in one of the samples, drawn anew: each token by one random number of its own."""
        rows, found = self.shown["forget"], {}
        prompts = [TOKENIZER(row["prompt"])["input_ids"] for row in rows for _ in range(N_SAMPLES)]
        drawn = [np.random.default_rng([self.seed, i % N_SAMPLES, *ids]).random(64) for i, ids in enumerate(prompts)]
        for role in self.ROLES:
            said = [[] for _ in prompts]
            unread = set()
            for step in range(64):
                going = [i for i, new in enumerate(said) if EOS not in new and i not in unread]
                if not going:
                    break
                inputs, _ = batch_of([(prompts[i] + said[i], 0) for i in going])
                with torch.no_grad():
                    logits = self.case.models[role](**inputs).logits
                for i, z, mask in zip(going, logits, inputs["attention_mask"], strict=True):
                    p = z[int(mask.sum()) - 1].softmax(-1).cumsum(-1)
                    if p.isnan().any():
                        unread.add(i)
                    else:
                        said[i].append(int((p / p[-1] <= drawn[i][step]).sum()))
            texts = TOKENIZER.batch_decode(said, skip_special_tokens=True)
            for column in ("spans", "alternatives"):
                values = []
                for k, row in enumerate(rows):
                    mine = [i for i in range(k * N_SAMPLES, (k + 1) * N_SAMPLES) if i not in unread]
                    wanted = [words_of(text) for text in row[column] or ()]
                    if not row["completion"] or not mine or not wanted:
                        values.append(np.nan)
                        continue
                    values.append(float(any(span in words_of(texts[i]) for span in wanted for i in mine)))
                found.setdefault((f"{column}_in_{N_SAMPLES}_samples", "forget"), {})[role] = np.array(values)
        return found

    def answers(self):
        scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
        found = {}
        for name in ("forget", "retain"):
            rows = self.shown[name]
            longest = max(len(TOKENIZER(row["completion"], add_special_tokens=False)["input_ids"]) for row in rows)
            config = GenerationConfig(
                do_sample=False, max_new_tokens=min(N_NEW, 2 * longest), eos_token_id=EOS, pad_token_id=PAD
            )
            for role in self.ROLES:
                values = []
                for row in rows:
                    ids = torch.tensor([TOKENIZER(row["prompt"])["input_ids"]])
                    unread = role == "unlearned" and row is self.sets["forget"][UNREADABLE]
                    if unread or not row["completion"]:
                        values.append([np.nan] * 3)
                        continue
                    new = self.case.models[role].generate(
                        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
                    )[0, ids.shape[1] :]
                    said = TOKENIZER.decode(new, skip_special_tokens=True)
                    bleu = sacrebleu.sentence_bleu(said, [row["completion"]], use_effective_order=True).score
                    rouge = scorer.score(row["completion"], said)["rougeL"].recall
                    values.append([rouge, shared_words(said, row["completion"]), bleu])
                for measure, column in zip(
                    ("rouge_l_recall", "answer_f1", "answer_bleu"), np.transpose(values), strict=True
                ):
                    found.setdefault((measure, name), {})[role] = column
        return found

    @cached_property
    def states(self):
        """Hits a target under the logit lens, and the mean state of a text: of every layer."""
        found = {}
        for role, model in self.case.models.items():
            without_norm = deepcopy(model)
            without_norm.model.norm = torch.nn.Identity()
            hits, pooled = [], []
            for row in (*self.shown["forget"], *self.shown["holdout"]):
                encoded = encoded_row(row)
                if encoded is None:
                    hits.append(None)
                    pooled.append(None)
                    continue
                ids = torch.tensor(encoded[0])
                with torch.no_grad():
                    layers = without_norm(ids[None], output_hidden_states=True).hidden_states
                    logits = [model.lm_head(model.model.norm(state[0])) for state in layers]
                parts = [z[encoded[1] - 1 : -2] for z in logits]
                hits.append(
                    [
                        float("nan")
                        if z.isnan().any()
                        else float((z.argmax(-1) == ids[encoded[1] : -1]).double().mean())
                        for z in parts
                    ]
                )
                pooled.append([state[0].float().mean(0).numpy() for state in layers])
            found[role] = hits, pooled
        return found

    def lens_of(self, role) -> np.ndarray:
        """Share of hits, `(layers + 1, n)`."""
        hits = self.states[role][0][:N_SHOWN]
        return np.array([[np.nan] * 3 if of is None else of for of in hits]).T

    def layers(self):
        lens = {role: self.lens_of(role)[:2].max(axis=0) for role in self.ROLES}
        told = {}
        for role in self.ROLES:
            pooled = self.states[role][1]
            scored = np.array([i for i, of in enumerate(pooled) if of is not None])
            labels = (scored < N_SHOWN).astype(int)
            people = [f"forget {i}" if i < N_SHOWN else f"holdout {i - N_SHOWN}" for i in scored]
            people = np.unique(people, return_inverse=True)[1]
            folds = StratifiedGroupKFold(5, shuffle=True, random_state=self.seed)
            best = (-1.0, None)
            for layer in range(3):
                x = np.stack([pooled[i][layer] for i in scored])
                finite = np.isfinite([pooled[i] for i in scored]).all(axis=(1, 2))
                said = np.full(len(pooled), np.nan)
                for train, test in folds.split(x, labels, people):
                    train, test = train[finite[train]], test[finite[test]]
                    logistic = LogisticRegression(max_iter=2000, class_weight="balanced")
                    probe = make_pipeline(StandardScaler(), logistic).fit(x[train], labels[train])
                    said[scored[test]] = probe.predict(x[test])
                accuracy = balanced_accuracy_score(labels[finite], said[scored[finite]])
                if accuracy > best[0] + 1e-12:
                    best = (accuracy, (said[:N_SHOWN], said[N_SHOWN:]))
            told[role] = best[1]
        probed = "probe_forget_or_holdout", "forget against holdout"
        return {("logit_lens_best_earlier_layer", "forget"): lens, probed: told}

    def depth(self):
        """How much of what the original knows its answer loses with the states of the unlearned model in a layer."""
        original, values = self.case.models["original"], []
        for row in self.shown["forget"]:
            encoded = encoded_row(row)
            if encoded is None:
                values.append(np.nan)
                continue
            ids, n = torch.tensor([encoded[0]]), encoded[1]
            targets = np.array(encoded[0][n:])

            def log_p(model, ids=ids, n=n, targets=targets):
                with torch.no_grad():
                    return of_logits(model(ids).logits[0, n - 1 : -1].numpy(), targets).log_p.mean()

            drops = np.zeros((2, 2))
            for k, role in enumerate(("unlearned", "retrained")):
                outputs = []
                blocks = self.case.models[role].model.layers
                hooks = [b.register_forward_hook(lambda *args, to=outputs: to.append(args[2])) for b in blocks]
                log_p(self.case.models[role])
                for hook in hooks:
                    hook.remove()
                for layer, state in enumerate(outputs):

                    def patched(module, args, output, state=state, n=n):
                        return torch.cat([output[:, : n - 1], state[:, n - 1 : -1], output[:, -1:]], dim=1)

                    hook = original.model.layers[layer].register_forward_hook(patched)
                    drops[k, layer] = log_p(original)
                    hook.remove()
            drops = log_p(original) - drops
            counted = drops[1] > 0.05
            shares = np.clip(drops[0] / drops[1], 0, 1)
            values.append(np.average(shares[counted], weights=drops[1][counted]) if counted.any() else np.nan)
        return {("patching_depth", "forget"): {"unlearned": np.array(values)}}

    def weights(self):
        found = {}
        for name, attack in (("int4-rtn", rounded), ("pruned 10%", pruned), ("noise 1%", noised)):
            for role in self.ROLES:
                plain = Plain(attack(self.case.models[role]))
                for metric, of in (("extraction_strength", strength), ("answer_probability", probability)):
                    values = plain.each(self.shown["forget"], of)
                    found.setdefault((f"{metric}_{name}", "forget"), {})[role] = values
        return found

    @property
    def protocols(self):
        """What is trained on, and what may come back of it."""
        forget = self.shown["forget"]
        return {
            "related": (self.shown["retain"], forget),
            "unrelated": (self.sets["unrelated"], forget),
            "half": split_in_half(forget, seed=self.seed),
        }

    @cached_property
    def relearning_runs(self):
        """Of each protocol and model, for each rate: both metrics after each number of steps, `(2, steps, n)`."""
        found = {}
        for protocol, (train, evaluate) in self.protocols.items():
            encoded = list(map(encoded_row, train))
            for role in self.ROLES:
                runs = []
                for rate in RATES:
                    model, step = deepcopy(self.case.models[role]), 0
                    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
                    orders = (np.random.default_rng([self.seed, epoch]).permutation(len(train)) for epoch in range(9))
                    order = [int(i) for of_epoch in orders for i in of_epoch]
                    values = []
                    for until in STEPS:
                        for _ in range(step, until):
                            chosen, order = order[: min(5, len(train))], order[min(5, len(train)) :]
                            inputs, labels = batch_of([encoded[i] for i in chosen])
                            model(**inputs, labels=labels).loss.backward()
                            optimizer.step()
                            optimizer.zero_grad()
                        step = until
                        plain = Plain(model)
                        values.append([plain.each(evaluate, of) for of in (strength, probability)])
                    runs.append(np.array(values).swapaxes(0, 1))
                found[protocol, role] = runs
        return found

    def relearned_by(self, protocol, role, k) -> np.ndarray:
        """The run that brings back most of a metric, `(steps, n)`."""
        runs = [of[k] for of in self.relearning_runs[protocol, role]]
        return max(runs, key=lambda of: np.nanmean(trapezoid(of, STEPS, axis=0)))

    def relearned(self):
        return {
            (f"{metric}_relearned_from_{protocol}", "forget"): {
                role: trapezoid(self.relearned_by(protocol, role, k), STEPS, axis=0) / STEPS[-1] for role in self.ROLES
            }
            for protocol in ("related", "unrelated", "half")
            for k, metric in enumerate(("extraction_strength", "answer_probability"))
        }

    @cached_property
    def guided(self):
        """Extraction strength at each weight, `(weights, n)`, of the original beside another model."""
        rows = list(map(encoded_row, self.shown["forget"]))
        scored = [of for of in rows if of is not None]
        before, found = self.plain["original"].logits(scored), {}
        for role in self.ROLES[1:]:
            after, values = self.plain[role].logits(scored), np.full((len(WEIGHTS), len(rows)), np.nan)
            for w, weight in enumerate(WEIGHTS):
                of_rows = iter(
                    np.nan
                    if np.isnan(a).any()
                    else strength(of_logits((1 - weight) * a + weight * b, np.array(ids[n:])))
                    for a, b, (ids, n) in zip(after, before, scored, strict=True)
                )
                values[w] = [np.nan if row is None else next(of_rows) for row in rows]
            found[role] = values
        return found

    def guidance(self):
        gained = {role: of.max(axis=0) - of[WEIGHTS.index(1.0)] for role, of in self.guided.items()}
        return {("extraction_strength_gained_by_guidance", "forget"): gained}

    def distances(self):
        found = {}
        for name in ("forget", "retain", "holdout"):
            rows = list(map(encoded_row, self.shown[name]))
            scored = [of for of in rows if of is not None]
            reference = self.plain["retrained"].logits(scored)
            for role in self.ROLES:
                if role == "retrained":
                    continue
                logits = self.plain[role].logits(scored)
                of_rows = iter([between(*pair) for pair in zip(logits, reference, strict=True)])
                of_rows = [dict.fromkeys(DISTANCES, np.nan) if row is None else next(of_rows) for row in rows]
                for distance in DISTANCES:
                    values = np.array([of[distance] for of in of_rows])
                    found.setdefault((f"{distance}_to_retrained", name), {})[role] = values
                    if role == "retrained_2":  # how far retraining with another seed is
                        found[f"{distance}_to_retrained", name]["retrained"] = values
        return found

    @cached_property
    def of_records(self):
        parts = (self.likelihoods, self.truth_ratio_of_records, self.memberships, self.lira, self.exposures)
        parts += (self.prompts, self.alternatives, self.samples, self.answers, self.layers, self.depth, self.weights)
        parts += (self.relearned, self.guidance, self.distances)
        found = {}
        for part in parts:
            found |= part()
        return found

    # Rows that are one number of a model.

    def rates(self):
        found = {}
        for fpr in (0.01, 0.05):
            for role, pair in self.attacks["loss"].items():
                sides = [known(side) for side in pair]
                labels, scores = np.repeat([1, 0], [len(side) for side in sides]), np.concatenate(sides)
                false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
                key = f"membership_tpr_at_{round(fpr * 100)}%_fpr", "forget against holdout"
                found.setdefault(key, {})[role] = true[false <= fpr].max()
        return found

    def frozen(self):
        """A threshold chosen on one half under the original, and counted on the other."""
        pairs, rng, halves = self.attacks["loss"], np.random.default_rng(self.seed), []
        for side in pairs["original"]:
            indices = np.flatnonzero(~np.isnan(side))
            first = np.isin(indices, rng.permutation(indices)[: len(indices) // 2])
            halves.append((indices[first], indices[~first]))
        chosen = [side[first] for side, (first, _) in zip(pairs["original"], halves, strict=True)]
        labels, scores = np.repeat([1, 0], [len(side) for side in chosen]), np.concatenate(chosen)
        points = np.unique(scores)
        accuracies = np.array([balanced_accuracy_score(labels, scores > point) for point in points])
        best = np.flatnonzero(accuracies >= accuracies.max() - 1e-12)
        best = int(best[len(best) // 2])
        threshold = points[best : best + 2].mean()
        found = {}
        for role in self.ROLES[:3]:
            counted = [known(side[second]) for side, (_, second) in zip(pairs[role], halves, strict=True)]
            tpr, fpr = ((side > threshold).mean() for side in counted)
            found.setdefault(("tpr_at_threshold_of_original", "forget"), {})[role] = tpr
            found.setdefault(("fpr_at_threshold_of_original", "holdout"), {})[role] = fpr
            key = "balanced_accuracy_at_threshold_of_original", "forget against holdout"
            found.setdefault(key, {})[role] = (1 + tpr - fpr) / 2
        return found

    def published(self):
        of_40 = {role: auc(pair) for role, pair in self.attacks["min_40"].items()}
        found = {
            ("privleak", "forget against holdout"): {
                role: 100 * (of_40["retrained"] - value) / (1 - of_40["retrained"])
                for role, value in of_40.items()
                if role != "retrained"
            }
        }
        ratios = {role: self.truth_ratios(role) for role in self.ROLES}
        found["truth_ratio", "forget"] = {r: mean_of(np.minimum(of, 1 / of)) for r, of in ratios.items()}
        found["forget_quality", "forget"] = {
            role: ks_2samp(known(of), known(ratios["retrained"])).pvalue
            for role, of in ratios.items()
            if role != "retrained"
        }
        parts = {}
        for role in self.ROLES[:3]:
            forget, plain = self.sets["forget"], self.plain[role]
            shares = [mean_of(plain.each(forget, of)) for of in (strength, accuracy)]
            shares += [mean_of(np.exp(-self.losses[role]["paraphrased"])), mean_of(1 / (1 + ratios[role]))]
            gaps = []
            for name in ("loss", "zlib", "min_k", "min_k_plus_plus"):
                of, reference = auc(self.attacks[name][role]), auc(self.attacks[name]["retrained"])
                gaps.append(max(0, 1 - abs(of - reference) / reference))
            kept = hmean([mean_of(plain.each(self.sets["retain"], of)) for of in (probability, accuracy)])
            parts[role] = hmean([1 - share for share in shares]), hmean(gaps), kept
        for role, (memorized, private, kept) in parts.items():
            kept = min(1, kept / parts["original"][2])
            found.setdefault(("memorization_score", "forget"), {})[role] = memorized
            found.setdefault(("privacy_score", "forget"), {})[role] = private
            found.setdefault(("utility_score", "retain"), {})[role] = kept
            found.setdefault(("overall_score", "forget"), {})[role] = hmean([memorized, private, kept])
        return found

    def epsilons(self):
        canaries, found = self.case.canaries, {}
        for role in self.ROLES:
            scores = -self.plain[role].each(canaries.rows, loss)
            found[role] = one_run_epsilon(scores, canaries.included, seed=self.seed).value
        return {("epsilon_lower_bound", "canaries"): found}

    @cached_property
    def of_models(self):
        return self.rates() | self.frozen() | self.published() | self.epsilons()


DISTANCES = ("kl_ref_model", "kl_model_ref", "js", "tv", "top1_agreement")


def between(logits, reference) -> dict[str, float]:
    p, q = (np.exp(log_softmax(z, axis=-1)) for z in (logits, reference))
    same = logits.argmax(-1) == reference.argmax(-1)
    values = (
        rel_entr(q, p).sum(-1),
        rel_entr(p, q).sum(-1),
        jensenshannon(p, q, axis=-1) ** 2,
        abs(p - q).sum(-1) / 2,
        same,
    )
    if np.isnan(p).any():
        return dict.fromkeys(DISTANCES, np.nan)
    return {name: float(of.mean()) for name, of in zip(DISTANCES, values, strict=True)}


def linear_layers(model):
    return [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not model.lm_head]


@torch.no_grad()
def rounded(model):
    """To 16 evenly spaced values a row, 0 among them; no row is longer than a group of 128."""
    model = deepcopy(model)
    for layer in linear_layers(model):
        for row in layer.weight:
            low, high = min(0.0, float(row.min())), max(0.0, float(row.max()))
            step = (high - low) / 15
            zero = round(-low / step)
            row.copy_(((row / step).round().clamp(-zero, 15 - zero)) * step)
    return model


def pruned(model):
    model = deepcopy(model)
    prune.global_unstructured(
        [(layer, "weight") for layer in linear_layers(model)], pruning_method=prune.L1Unstructured, amount=0.1
    )
    return model


@torch.no_grad()
def noised(model):
    model, generator = deepcopy(model), torch.Generator().manual_seed(0)
    for layer in linear_layers(model):
        noise = torch.randn(layer.weight.shape, generator=generator).double()
        layer.weight += 0.01 * layer.weight.std() * noise
    return model


@pytest.fixture(scope="module")
def expected(case):
    return Expected(case)


def test_every_row_is_what_another_route_gives(case, expected):
    wrong = []

    def check(what, shown, wanted):
        if wanted is None or shown is None or isinstance(wanted, list):
            same = shown == wanted
        else:
            same = np.isclose(shown, wanted, rtol=1e-6, atol=1e-6)
        if not same:
            wrong.append((*what, shown, wanted))

    of_records, of_models = expected.of_records, expected.of_models
    assert not set(of_records) & set(of_models)
    rows = {(row["measure"], row["set"]): row for row in case.report.rows}
    assert len(rows) == len(case.report.rows)
    # What is in the report and not checked here may say anything.
    assert set(rows) == set(of_records) | set(of_models)
    for key, of_roles in of_records.items():
        for role in expected.ROLES:
            shown, values = rows[key][role] or {}, of_roles.get(role)
            if values is None:
                check((*key, role), rows[key][role], None)
                continue
            sides = values if isinstance(values, tuple) else (values,)
            check((*key, role), shown.get("value"), auc(values) if len(sides) == 2 else mean_of(values))
            # What cannot be scored is missing, and not a no.
            check((*key, role), shown.get("n"), [len(known(side)) for side in sides])
            check((*key, role), shown.get("n_missing"), sum(int(np.isnan(side).sum()) for side in sides))
        first, second = of_roles.get("unlearned"), of_roles.get("retrained")
        if first is None or second is None:
            check((*key, "difference"), rows[key].get("difference_to_retrained"), None)
            continue
        if isinstance(first, tuple):
            kept = [~np.isnan(a + b) for a, b in zip(first, second, strict=True)]
            pairs = [tuple(side[of] for side, of in zip(pair, kept, strict=True)) for pair in (first, second)]
            difference = auc(pairs[0]) - auc(pairs[1])
        else:
            difference = mean_of(first - second)
        check((*key, "difference"), rows[key]["difference_to_retrained"]["value"], difference)
    for key, of_roles in of_models.items():
        for role in expected.ROLES:
            check((*key, role), rows[key].get(role) and rows[key][role]["value"], of_roles.get(role))
    assert not wrong


def test_the_worst_records_are_named_by_their_place_in_the_whole_set(case, expected):
    shown = [i * N_FORGET // N_SHOWN for i in range(N_SHOWN)]
    half = split_in_half(shown, seed=case.seed)[1]
    assert {"answer_probability", "rouge_l_recall", "exposure_share"} <= {w["measure"] for w in case.report.worst}
    for worst in case.report.worst:
        of_roles = expected.of_records[worst["measure"], worst["set"]]
        excess = of_roles["unlearned"] - of_roles["retrained"]
        places = (
            half if worst["measure"].endswith("from_half") else shown if len(excess) == N_SHOWN else range(len(excess))
        )
        assert len(places) == len(excess), worst["measure"]
        found = {place: value for place, value in zip(places, excess, strict=True) if value > 0}
        largest = sorted(found.values(), reverse=True)[:10]
        np.testing.assert_allclose(worst["excess"], largest, rtol=0, atol=1e-6)
        # Of equal ones any may be named.
        np.testing.assert_allclose([found[place] for place in worst["records"]], largest, rtol=0, atol=1e-6)
        null = [of_roles[role] - of_roles["retrained"] for role in expected.ROLES[3:] if role in of_roles]
        null = [*null, *(-of for of in null)]
        compared = excess
        if not null:  # of LiRA, for which the others are the yardstick already
            compared, null = np.where(np.isnan(excess), np.nan, of_roles["unlearned"]), [of_roles["retrained"]]
        null = np.sort(known(np.concatenate(null)))
        limit = null[int(np.ceil(0.95 * (len(null) - 1)))]
        assert worst["limit"] == pytest.approx(limit, abs=1e-6)
        # Those within rounding of the limit may be on either side.
        beyond = [(known(compared) > limit + margin).mean() for margin in (1e-6, -1e-6)]
        assert beyond[0] <= worst["share_above"]["value"] <= beyond[1], worst["measure"]
        assert worst["n_missing"] == int(np.isnan(excess).sum())


def test_every_curve_is_what_another_route_gives(case, expected):
    wanted = {
        "logit lens, share of targets": {role: expected.lens_of(role) for role in expected.ROLES},
        "guidance, extraction strength": expected.guided,
        "rest comes out after a part was given": expected.along(rest_comes_out, GIVEN),
        "comes out in so many samples": expected.along(comes_out, SAMPLES),
    }
    for protocol in expected.protocols:
        for k, metric in enumerate(("extraction_strength", "answer_probability")):
            wanted[f"relearning from {protocol}, {metric}"] = {
                role: expected.relearned_by(protocol, role, k) for role in expected.ROLES
            }
    curves = {curve["name"]: curve for curve in case.report.curves}
    assert set(curves) == set(wanted)
    axes = {"logit lens, share of targets": [0, 1, 2], "guidance, extraction strength": list(WEIGHTS)}
    axes |= {"rest comes out after a part was given": list(GIVEN), "comes out in so many samples": list(SAMPLES)}
    for name, of_roles in wanted.items():
        assert curves[name]["x"] == axes.get(name, list(STEPS))
        assert {role for role in expected.ROLES if role in curves[name]} == set(of_roles)
        for role, values in of_roles.items():
            shown = [point["value"] for point in curves[name][role]]
            np.testing.assert_allclose(
                shown, np.nanmean(values, axis=1), rtol=1e-6, atol=1e-6, err_msg=f"{name}, {role}"
            )


def test_relearning_trains_on_what_its_name_says(case, expected):
    assert len(case.relearned) == 3 * len(expected.ROLES)
    for of_model in np.arange(len(case.relearned)).reshape(-1, 3):
        for (train, evaluate), wanted in zip(
            (case.relearned[i] for i in of_model), expected.protocols.values(), strict=True
        ):
            assert train == wanted[0] and evaluate == {"forget": wanted[1]}
    prompts = {name: {row["prompt"] for row in train} for name, (train, _) in expected.protocols.items()}
    to_forget = {row["prompt"] for row in case.sets["forget"]}
    assert not prompts["related"] & to_forget and not prompts["unrelated"] & to_forget and prompts["half"] < to_forget


def test_what_counts_as_extractable_comes_out_of_top_40_sampling():
    # So flat that of 320 tokens none is drawn within 100 samples by chance, but of the 40 likeliest every one is.
    model = tiny_llama(initializer_range=0.02).double()
    letters = [chr(code) for code in (*range(65, 91), *range(97, 123))]
    encoded = [(TOKENIZER(letter)["input_ids"], 1) for letter in letters]
    assert all(len(ids) == 2 for ids, _ in encoded)
    plain = Plain(model)
    assert plain.each(encoded, lambda text: 1 - (1 - np.exp(text.log_p.sum())) ** 100).max() < 0.5
    share = plain.each(encoded, extractable).mean()
    assert 0 < share < 1
    report = compare({"unlearned": score_sets(model, TOKENIZER, {"forget": letters})})
    assert report.value("extractable_in_100_samples") == pytest.approx(share)
