"""False alarms: what the verdicts say of models that truly never saw the forget set, and of one that did.

    python benchmarks/false_alarms.py            # 50 seeds, about 15 CPU minutes

For each seed: a fresh registry of fictional people, one question of each person, split into forget, retain and holdout; a
one-layer Llama trained on forget and retain rows (the original), and four trained on the retain rows alone with other
seeds. One of these is called unlearned and judged against another: whatever is found is a false alarm. Then the
original itself is called unlearned: whatever is not found is a miss. A second original plays a retrained model that saw the
forget set.

Three ways to judge the statistics that are no AUC are compared: against one retrained model; against three of them, whose
spread widens what is called a difference; and against one, less the same difference on the holdout. Each is done with the
default margins, and with margins of nearly zero, where the tests alone must hold the level.

Last the audit itself, as `audit()` judges it: all that it reads from the tables (every membership attack, extraction and
knowledge), against one and against three retrained models.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from hf_unlearn.audit import (
    ATTACKS,
    Scores,
    answer_probability,
    auc,
    compare,
    exact_memorization,
    extraction_strength,
    rate,
    score_sets,
    verbatim_extracted,
)
from hf_unlearn.audit.checks import DEFAULT_THREATS
from hf_unlearn.audit.verdicts.decision import Verdict
from hf_unlearn.audit.verdicts.margins import Margins
from hf_unlearn.audit.verdicts.verdict import adjust, judge, reference_warning
from hf_unlearn.data.pairing import UnlearningCollator
from hf_unlearn.data.text import encode
from hf_unlearn.evidence.tables import markdown_table
from hf_unlearn.examples.registry import make_registry, tokenizer_texts
from hf_unlearn.examples.registry_model import make_tokenizer


# So many seeds have a second original, in the place of the retrained model.
CONTAMINATED = 10
RETRAINED = ("retrained", "another", "third", "fourth")
FIELDS = ("birthplace", "employer", "email", "phone", "health_condition", "profession")
SHARES: dict[str, tuple[str, Callable[[Scores], np.ndarray]]] = {
    "exact_memorization": ("share", exact_memorization),
    "extraction_strength": ("share", extraction_strength),
    "answer_probability": ("share", answer_probability),
    "verbatim_extraction": ("rate", verbatim_extracted),
}
MARGINS = {"default": Margins(), "near 0": Margins(auc=1e-6, share=1e-6, share_records=0.0)}
# Name: how many further retrained models there are, and whether the holdout is subtracted.
PROCEDURES = {
    "one retrained": (0, False),
    "three retrained": (2, False),
    "one retrained, less holdout": (0, True),
}


# Further retrained models beside the first, in the audit itself.
AUDITED = (0, 2)


def rows_of(seed: int, n: int) -> dict[str, list[dict]]:
    """Rows, one question a person: `n` to forget, `n` to retain, `n` held out."""
    rng = np.random.default_rng(seed)
    registry = make_registry(seed, n_train=2 * n, n_validation=1, n_holdout=n)
    sets = {}
    for split in ("train", "holdout"):
        people: dict[str, dict[str, dict]] = {}
        for row in registry[split]:
            people.setdefault(row["person"], {})[row["field"]] = row
        chosen = [answers[FIELDS[rng.integers(len(FIELDS))]] for answers in people.values()]
        sets[split] = [{"prompt": row["prompt"], "completion": row["completion"]} for row in chosen]
    return {"forget": sets["train"][:n], "retain": sets["train"][n:], "holdout": sets["holdout"]}


def train(rows: Sequence[dict], tokenizer, seed: int, epochs: int, width: int = 32, learning_rate: float = 2e-2):
    """A one-layer Llama trained on the rows from its own initialization, in its own order."""
    order = torch.Generator().manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = LlamaForCausalLM(config)
    batch = UnlearningCollator(tokenizer.pad_token_id)([encode(row, tokenizer) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    batches = [b for _ in range(epochs) for b in torch.randperm(len(rows), generator=order).split(32)]
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=len(batches))
    for chosen in batches:
        inputs = {key: value[chosen] for key, value in batch.items()}
        hidden = model.model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state[:, :-1]
        targets = inputs["labels"][:, 1:]
        scored = targets != -100
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[scored]), targets[scored])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def tables(seed: int, n: int, epochs: int, tokenizer, models: Sequence[str]) -> dict[str, dict[str, Scores]]:
    """Scores of every set under each of the models, of which the originals alone saw the forget set."""
    rows = rows_of(seed, n)
    scored = {}
    for k, name in enumerate(models):
        learned = rows["retain"] + (rows["forget"] if name.endswith("original") else [])
        scored[name] = score_sets(train(learned, tokenizer, 1000 * seed + k, epochs), tokenizer, rows, 80)
    return scored


def pairs(scored: Mapping[str, Mapping[str, Scores]]) -> dict[str, tuple[Scores, Scores]]:
    """Forget set and holdout under each of the models."""
    return {name: (of["forget"], of["holdout"]) for name, of in scored.items()}


def audited(
    scored: Mapping[str, Mapping[str, Scores]], seed: int, n: int, unlearned: str, further: int
) -> dict[str, str]:
    """What the audit says of every surface that it judges from the tables."""
    models = {"original": "original", "unlearned": unlearned, "retrained": "retrained"}
    models |= {f"retrained_{i}": name for i, name in enumerate(RETRAINED[2 : 2 + further], 2)}
    of_roles = {role: scored[name] for role, name in models.items()}
    report = compare(of_roles, seed, threats=DEFAULT_THREATS, sets=rows_of(seed, n))
    return {name: of["verdict"] for name, of in report.surfaces.items() if of["verdict"] != "not_tested"}


def verdicts(
    models: Mapping[str, tuple[Scores, Scores]], unlearned: str, further: int, less_holdout: bool, margins: Margins
) -> list[Verdict]:
    """The family of all statistics, corrected for their number."""
    roles = ("original", unlearned, "retrained")
    others = RETRAINED[2 : 2 + further]
    family = []
    for name, attack in ATTACKS.items():
        values = {role: tuple(attack(side) for side in models[role]) for role in (*roles, *others)}
        family.append(
            judge(name, "auc", *(values[r] for r in roles), [values[o] for o in others], "membership", margins=margins)
        )
    for name, (kind, of) in SHARES.items():
        values = {role: tuple(of(side).astype(np.float64) for side in models[role]) for role in (*roles, *others)}
        if not less_holdout:
            values = {role: sides[0] for role, sides in values.items()}
        family.append(judge(name, kind, *(values[r] for r in roles), [values[o] for o in others], margins=margins))
    return adjust(family)


def share(hits: Sequence[bool]) -> str:
    found = rate(int(sum(hits)), len(hits))
    return f"{found.value:.0%} ({sum(hits)}), {found.low:.1%} to {found.high:.1%}"


def alarms(results: Sequence[Mapping], margin: str, procedure: str) -> list[str]:
    """Families with a false `residual`, with a false `over_forgotten`, and, at the default, originals that were missed."""

    def families(kind: str, verdict: str) -> list[bool]:
        return [any(v.verdict == verdict for v in result[kind, procedure, margin]) for result in results]

    cells = [share(families("null", verdict)) for verdict in ("residual", "over_forgotten")]
    missed = share([not hit for hit in families("original", "residual")]) if margin == "default" else ""
    return [margin, procedure, *cells, missed]


def counts(results: Sequence[Mapping], k: int, kind: str, procedure: str) -> str:
    found = [result[kind, procedure, "default"][k].verdict for result in results]
    return ", ".join(f"{name} {found.count(name)}" for name in sorted(set(found)))


def _told(results: Sequence[Mapping], kind: str, further: int, surface: str) -> str:
    found = [result["audit", kind, further].get(surface, "not_tested") for result in results]
    return ", ".join(f"{name} {found.count(name)}" for name in sorted(set(found)))


def _alarmed(results: Sequence[Mapping], further: int) -> str:
    """In how many seeds any surface of a retrained model has a finding."""
    found = [set(result["audit", "null", further].values()) for result in results]
    parts = (f"{verdict} {share([verdict in of for of in found])}" for verdict in ("residual", "over_forgotten"))
    return "; ".join(parts)


def report(results: Sequence[Mapping]) -> str:
    """Markdown: families with an alarm, for each procedure and margin; then each statistic by itself."""
    names = [*ATTACKS, *SHARES]
    by_surface = [
        [surface, said, str(further + 1), _told(results, kind, further, surface)]
        for kind, said in (("null", "retrained"), ("original", "original"))
        for further in AUDITED
        for surface in results[0]["audit", kind, further]
    ]
    by_surface += [["any", "retrained", str(further + 1), _alarmed(results, further)] for further in AUDITED]
    by_family = [alarms(results, margin, procedure) for margin in MARGINS for procedure in PROCEDURES]
    by_statistic = [
        [
            name,
            *(f"{np.median([r['values'][role][name] for r in results]):.3f}" for role in ("original", "retrained")),
            f"{np.median([np.std([r['values'][m][name] for m in RETRAINED], ddof=1) for r in results]):.3f}",
            *(counts(results, k, "null", procedure) for procedure in PROCEDURES),
            counts(results, k, "original", "one retrained"),
        ]
        for k, name in enumerate(names)
    ]
    families = ["margins", "procedure", "false residual", "false over_forgotten", "original missed"]
    surfaces = ["surface", "called unlearned", "retrained models", "verdicts of the audit"]
    columns = ["statistic", "original", "retrained", "std of seeds"]
    columns += [f"retrained: {procedure}" for procedure in PROCEDURES] + ["original: one retrained"]
    warned = [
        f"Warned of a reference that {what}: {share([r[key] is not None for r in results if key in r])}"
        for key, what in (("warning", "is as it should be"), ("contaminated", "saw the forget set"))
    ]
    return "\n\n".join(
        [
            markdown_table([families, *by_family]),
            markdown_table([columns, *by_statistic]),
            markdown_table([surfaces, *by_surface]),
            "\n".join(warned),
        ]
    )


def values_of(models: Mapping[str, tuple[Scores, Scores]]) -> dict[str, dict[str, float]]:
    found = {}
    for role, sides in models.items():
        found[role] = {name: auc(*(attack(side) for side in sides)).value for name, attack in ATTACKS.items()}
        found[role] |= {name: float(of(sides[0]).mean()) for name, (_, of) in SHARES.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--people", type=int, default=80, help="to forget; as many to retain, and held out")
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    tokenizer = make_tokenizer(tokenizer_texts())
    results, start = [], time.process_time()
    for seed in range(args.seeds):
        names = ("original", *RETRAINED) + ("second original",) * (seed < CONTAMINATED)
        scored = tables(seed, args.people, args.epochs, tokenizer, names)
        models = pairs(scored)
        found: dict = {"values": values_of(models)}
        for procedure, options in PROCEDURES.items():
            for margin, margins in MARGINS.items():
                found["null", procedure, margin] = verdicts(models, "another", *options, margins)
            found["original", procedure, "default"] = verdicts(models, "original", *options, MARGINS["default"])
        found["warning"] = reference_warning(found["null", "one retrained", "default"])
        if "second original" in models:
            contaminated = {**models, "retrained": models["second original"]}
            found["contaminated"] = reference_warning(verdicts(contaminated, "another", 0, False, MARGINS["default"]))
        for further in AUDITED:
            for kind, unlearned in (("null", "another"), ("original", "original")):
                found["audit", kind, further] = audited(scored, seed, args.people, unlearned, further)
        results.append(found)
        print(f"seed {seed}: {time.process_time() - start:.0f} CPU seconds", flush=True)
    print(report(results))


if __name__ == "__main__":
    main()
