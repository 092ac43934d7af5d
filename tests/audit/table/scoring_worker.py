"""Scores examples in this process's share of a world of two, and saves what each process has: started by torchrun."""

import sys

import numpy as np
import torch
from accelerate import PartialState
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hf_unlearn.audit import score
from hf_unlearn.audit.table.cache import ScoreCache, digest_of_model
from hf_unlearn.audit.table.scores import TARGET_COLUMNS


TEXTS = [
    *[
        {"prompt": f"Question: What is the name of book {i}?\nAnswer:", "completion": f" It is {'A' * k}."}
        for i in range(11)
        for k in range(1 + i % 4)
    ],
    "Ada lives in Paris.",
    "",
    *[f"Row {i} has {'many ' * (i % 5)}words." for i in range(11)],
]


def images() -> list[dict]:
    pixels = torch.randn(11, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return [{"pixel_values": image, "labels": i % 5} for i, image in enumerate(pixels)]


def columns(scores) -> dict[str, np.ndarray]:
    names = ["offsets", *TARGET_COLUMNS, "zlib_size"]
    names += ["class_log_probs"] if scores.class_log_probs is not None else []
    return {name: getattr(scores, name) for name in names} | scores.sampled


def tables(count=lambda model: None) -> dict[str, dict[str, np.ndarray]]:
    """What is compared with one process; `count` sees each model before it is scored."""
    found = {}
    for name, model, processing_class, examples in (
        ("llama", tiny_llama(), tiny_tokenizer(), TEXTS),
        ("gpt2", tiny_gpt2().double(), tiny_tokenizer(), TEXTS),
        ("vit", tiny_vit(), None, images()),
        ("fewer batches than processes", tiny_llama(), tiny_tokenizer(), TEXTS[:1]),
        ("nothing", tiny_llama(), tiny_tokenizer(), [""]),
    ):
        count(model)
        found[name] = columns(score(model, processing_class, examples, batch_size=4))
    return found


def message_of(call) -> str:
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def main(folder: str):
    state = PartialState(cpu=True)
    assert state.num_processes == 2 == torch.distributed.get_world_size(), "the launch gave one process, not two"
    rank, tokenizer = state.process_index, tiny_tokenizer()
    passes = []
    results = {"tables": tables(lambda model: model.register_forward_pre_hook(lambda *_: passes.append(1)))}
    results["passes"] = len(passes)
    results["wrapped"] = columns(score(DistributedDataParallel(tiny_llama()), tokenizer, TEXTS, batch_size=4))

    sharded = tiny_llama()
    whole_digest = digest_of_model(sharded)
    for part in (*sharded.model.layers, sharded):
        fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
    results["sharded"] = columns(score(sharded, tokenizer, TEXTS, batch_size=4))
    results["sharded digest is that of the whole"] = digest_of_model(sharded) == whole_digest

    cache = ScoreCache(f"{folder}/cache")
    results["cached"] = [columns(score(tiny_llama(), tokenizer, TEXTS, batch_size=4, cache=cache)) for _ in range(2)]

    broken = tiny_llama()
    if rank == 1:
        broken.model.layers[0].register_forward_pre_hook(lambda *_: 1 / 0)
    results["errors"] = [
        message_of(lambda: score(tiny_llama(), tokenizer, TEXTS[rank:])),
        message_of(lambda: score(broken, tokenizer, TEXTS)) if rank == 0 else "",
    ]
    if rank == 1:
        try:
            score(broken, tokenizer, TEXTS)
        except ZeroDivisionError:
            results["errors"][1] = "its own error"
    results["after the errors"] = columns(score(tiny_llama(), tokenizer, TEXTS, batch_size=4))
    torch.save(results, f"{folder}/results-{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
