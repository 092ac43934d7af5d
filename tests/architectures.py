"""What runs on which architecture: tiny models from configs, every method for one step, and every attack.

    python tests/architectures.py [--write]

prints the two tables of `docs/models.md` from what runs, and writes them there. `tests/test_architectures.py` compares the page
with the same outcomes. An outcome is that it runs, or one line of refusal; whatever else happens is an error here too.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import traceback
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from tiny import BOS, EOS, PAD, VOCAB_SIZE, tiny_tokenizer

from hf_unlearn.audit import AuditConfig, audit
from hf_unlearn.audit.attacks.table import attacks_of
from hf_unlearn.audit.report import AuditReport
from hf_unlearn.audit.verdicts.surfaces import THREATS
from hf_unlearn.methods import METHODS


PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
PACKAGE = Path(__file__).resolve().parents[1] / "hf_unlearn"

TEXT = {"vocab_size": VOCAB_SIZE, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
WIDE = TEXT | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.2}
ROTARY = WIDE | {"num_key_value_heads": 1, "intermediate_size": 32, "max_position_embeddings": 256}
IMAGES = {"image_size": 16, "num_labels": 3}
WIDE_IMAGES = IMAGES | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
STAGES = IMAGES | {"hidden_sizes": [8, 16], "depths": [1, 2]}
TOWER = {key: value for key, value in WIDE_IMAGES.items() if key != "num_labels"} | {"intermediate_size": 32}

#: Name in the tables -> name of the class, without `Config` or what follows, its head, and the sizes in its config.
ARCHITECTURES: dict[str, tuple[str, str, dict]] = {
    "Llama": ("Llama", "ForCausalLM", ROTARY),
    "GPT-2": ("GPT2", "LMHeadModel", TEXT | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}),
    "GPT-NeoX": ("GPTNeoX", "ForCausalLM", WIDE | {"intermediate_size": 32, "max_position_embeddings": 256}),
    "Gemma 2": ("Gemma2", "ForCausalLM", ROTARY | {"head_dim": 8, "sliding_window": 16}),
    "Mixtral": ("Mixtral", "ForCausalLM", ROTARY | {"num_local_experts": 2, "num_experts_per_tok": 1}),
    "Qwen MoE": (
        "Qwen2Moe",
        "ForCausalLM",
        ROTARY
        | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
        | {"num_experts": 2, "num_experts_per_tok": 1},
    ),
    "Mamba": ("Mamba", "ForCausalLM", {k: WIDE[k] for k in WIDE if k != "num_attention_heads"} | {"state_size": 4}),
    "BLOOM": ("Bloom", "ForCausalLM", TEXT | {"hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "ViT": ("ViT", "ForImageClassification", WIDE_IMAGES | {"intermediate_size": 32}),
    "DeiT": ("DeiT", "ForImageClassification", WIDE_IMAGES | {"intermediate_size": 32}),
    "BEiT": ("Beit", "ForImageClassification", WIDE_IMAGES | {"intermediate_size": 32}),
    "DINOv2": ("Dinov2", "ForImageClassification", WIDE_IMAGES | {"mlp_ratio": 2}),
    "CLIP": (
        "CLIP",
        "ForImageClassification",
        {
            "vision_config": TOWER,
            "text_config": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 20},
            "num_labels": 3,
        },
    ),
    "Swin": (
        "Swin",
        "ForImageClassification",
        IMAGES | {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 2, "patch_size": 2},
    ),
    "ConvNeXt": ("ConvNext", "ForImageClassification", STAGES | {"num_stages": 2}),
    "ResNet": (
        "ResNet",
        "ForImageClassification",
        {k: STAGES[k] for k in STAGES if k != "image_size"} | {"embedding_size": 8, "layer_type": "basic"},
    ),
}

# What tiny models and few rows need to have any effect.
OPTIONS = {
    "pdu": {"force_epsilon": True},
    "rmu": {"retain_weight": 1.0},
    "lora_edit": {"rank": 2},
    "ssd": {"alpha": 1.0},
    "scrub": {"max_steps": 2},
}
AUDIT = AuditConfig(
    max_rows=10,
    max_new_tokens=3,
    relearning_steps=(0, 1),
    relearning_rates=(1e-3,),
    guidance_weights=(1.0,),
    n_samples=1,
)
N_ROWS = 12


def model_of(name: str, seed: int = 0):
    """A tiny model with random weights."""
    family, head, sizes = ARCHITECTURES[name]
    config = getattr(transformers, f"{family}Config")(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return getattr(transformers, family + head)(config).eval()


def kind_of(name: str) -> str:
    return "image" if ARCHITECTURES[name][1] == "ForImageClassification" else "text"


def rows_of(kind: str, n: int, offset: int = 0) -> list[dict]:
    """Rows with all columns that an attack looks for."""
    if kind == "image":
        pixels = [
            np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8) for i in range(offset, offset + n)
        ]
        return [{"image": Image.fromarray(values), "label": i % 3} for i, values in enumerate(pixels)]
    return [
        {
            "prompt": f"Question: Where does {i} live?\nAnswer:",
            "completion": f" In {town}.",
            "paraphrases": [f"Question: What is the town of {i}?\nAnswer:"],
            "alternatives": [f" At {town}."],
            "spans": [town],
        }
        for i, town in zip(range(offset, offset + n), ["Paris", "Ulm", "Oslo"] * n, strict=False)
    ]


@cache
def processing_class_of(kind: str):
    if kind == "text":
        return tiny_tokenizer()
    return transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})


def trainer_of(name: str, method: str, folder: str):
    kind, trainer = kind_of(name), METHODS[method]
    arguments = {
        "output_dir": folder,
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    args = trainer.config_class(**arguments | OPTIONS.get(method, {}))
    sets = rows_of(kind, 4), rows_of(kind, 4, offset=100)
    return trainer(model_of(name), args, *sets, processing_class=processing_class_of(kind))


def refusal_of(error: ValueError) -> str:
    """The message of an error that this package raised itself; any other error goes on."""
    if PACKAGE not in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parents:
        raise error
    return str(error)


def outcomes_of_methods(name: str) -> dict[str, str | None]:
    """By method the refusal of its constructor; `None` where one step ran."""
    found: dict[str, str | None] = {}
    for method in sorted(METHODS):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                trainer = trainer_of(name, method, folder)
            except ValueError as error:
                found[method] = refusal_of(error)
                continue
            trainer.train()
            found[method] = None
    return found


@cache
def audited(name: str) -> AuditReport:
    """The audit of a model under all threat models, beside an original and a retrained model."""
    kind = kind_of(name)
    sets = {
        part: rows_of(kind, N_ROWS, 100 * i) for i, part in enumerate(("forget", "retain", "holdout", "unrelated"))
    }
    models = [model_of(name, seed) for seed in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return audit(*models, sets, THREATS, processing_class=processing_class_of(kind), config=AUDIT)


def outcomes_of_attacks(name: str) -> dict[str, str | None]:
    """By attack on this kind of model the reason why it did not run; `None` where it ran."""
    reasons = {missing["attack"]: missing["reason"] for missing in audited(name).not_run}
    return {attack.name: reasons.get(attack.name) for attack in attacks_of(THREATS) if kind_of(name) in attack.kinds}


OUTCOMES = {"methods": outcomes_of_methods, "attacks": outcomes_of_attacks}


def noted(name: str, reason: str | None) -> str | None:
    """A refusal as it stands in a note, for all models that it holds for."""
    if reason is None:
        return None
    model = type(model_of(name)).__name__
    reason = reason.replace(f"this {model}", "the model").replace(model, "the model")
    return reason[0].upper() + reason[1:] if reason.startswith("the model") else reason


def table(outcomes: dict[str, dict[str, str | None]]) -> str:
    """A Markdown table from the outcomes by name, and notes with the refusals. What is alike everywhere shares a line."""
    notes: dict[str, int] = {}

    def cell(name: str, row: str) -> str:
        reason = noted(name, outcomes[name].get(row))
        if reason is None:
            return "yes" if row in outcomes[name] else "–"
        return str(notes.setdefault(reason, len(notes) + 1))

    lines: dict[tuple[str, ...], list[str]] = {}
    for row in dict.fromkeys(row for found in outcomes.values() for row in found):
        lines.setdefault(tuple(cell(name, row) for name in outcomes), []).append(f"`{row}`")
    cells = [
        ["", *outcomes],
        ["---"] * (1 + len(outcomes)),
        *([", ".join(rows), *line] for line, rows in lines.items()),
    ]
    notes_below = [f"{number}. {reason}" for reason, number in notes.items()]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in cells), "", *notes_below])


def _place(text: str, part: str) -> slice:
    begin = f"<!-- {part}: begin -->"
    return slice(text.index(begin) + len(begin), text.index(f"<!-- {part}: end -->"))


def in_the_page(part: str) -> dict[str, dict[str, str | None]]:
    """The outcomes that the page states, by architecture."""
    text = PAGE.read_text("utf-8")
    lines = text[_place(text, part)].strip().splitlines()
    notes = dict(line.split(". ", 1) for line in lines if line and not line.startswith("|"))
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|"))
    found: dict[str, dict[str, str | None]] = {name: {} for name in head[1:]}
    for names, *cells in rows:
        for row in names.replace("`", "").split(", "):
            for name, cell in zip(head[1:], cells, strict=True):
                if cell != "–":
                    found[name][row] = None if cell == "yes" else notes[cell]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()  # or the Trainer looks through all of torch after each run
    text = PAGE.read_text("utf-8")
    for part, outcomes_of in OUTCOMES.items():
        text_of_part = table({name: outcomes_of(name) for name in ARCHITECTURES})
        print(text_of_part)
        place = _place(text, part)
        text = f"{text[: place.start]}\n\n{text_of_part}\n\n{text[place.stop :]}"
    if "--write" in sys.argv[1:]:
        PAGE.write_text(text, "utf-8")
