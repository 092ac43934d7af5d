"""What both benchmarks measure with: CPU seconds in turn, peak memory in a process of its own, one small model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny_llama(vocab_size: int, hidden_size: int = 192, layers: int = 4) -> LlamaForCausalLM:
    """A random Llama of 1.8 M parameters, and the embedding (tied to the head) on top of that."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def cpu_seconds(function: Callable) -> tuple[object, float]:
    """What the function returns, and the CPU seconds of this process that it took: other processes do not count."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def compare(ours: Sequence[float], textbook: Sequence[float]) -> list[str]:
    """Cells of a table: median seconds of each, ratio of the medians, and the range of the ratios in single turns."""
    ratios = [a / b for a, b in zip(ours, textbook, strict=True)]
    a, b = statistics.median(ours), statistics.median(textbook)
    return [f"{a:.3f}", f"{b:.3f}", f"**{a / b:.2f}**", f"{min(ratios):.2f} to {max(ratios):.2f}"]


def peak_growth(run: Callable[[], object]) -> float:
    """MiB by which `run` raises the peak of resident memory over what is resident before it (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the model
    before = _memory("VmRSS")
    run()
    return (_memory("VmHWM") - before) / 1024


def _memory(name: str) -> int:
    # Not ru_maxrss: it begins at the peak of the process that started this one.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])  # KiB
    raise OSError(f"/proc/self/status has no {name}. Peak memory is measured under Linux only.")


def in_own_process(function: Callable, *arguments):
    """What the function returns, from a process that ends after it. Call this before any work of its own is done."""
    with get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)
