"""The blocks of a network: find them, read their states, leave some out, change their output.

The state `l` is that after block `l`, counted from 1; state 0 is the input of the first block. A backbone with stages (Swin,
ConvNeXt, ResNet) has several lists of blocks, of different widths, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_unlearn.data.rows import IGNORE_INDEX
from hf_unlearn.models.likelihood import is_image_classifier, target_logits


def block_lists(model: nn.Module) -> dict[str, Sequence[nn.Module]]:
    """The lists of modules that hold the blocks, by name and in order of depth: one list, or one for each stage.

    Empty where none is found: no list of modules is as long as the model is deep, or has as many stages.
    """
    config = backbone_config(model)
    sizes = next((s for name in ("depths", "depth") if isinstance(s := getattr(config, name, None), Sequence)), None)
    lists = {name: module for name, module in model.named_modules() if _is_list_of_blocks(module)}
    if sizes is not None:
        staged = ({**_lists_of_stages(name, module)} for name, module in lists.items())
        return next((found for found in staged if len(found) == len(sizes)), {})
    depth = getattr(config, "num_hidden_layers", None)
    as_deep = next(({name: module} for name, module in lists.items() if len(module) == depth), {})
    if as_deep or not is_image_classifier(model):
        return as_deep
    # Some do not say how deep they are (MobileNet, MobileViT), or say something else (EfficientNet).
    return next((_lists_of_stages(name, module) or {name: module} for name, module in lists.items()), {})


def backbone_config(model: nn.Module):
    """The config of the part of the model that reads the rows: that of the images of a classifier on CLIP."""
    config = model.config
    return getattr(config, "vision_config", config) if is_image_classifier(model) else config.get_text_config()


def _is_list_of_blocks(module: nn.Module) -> bool:
    """Whether it is a list of modules that have parts of their own, unlike a norm and a convolution in a row."""
    return (
        isinstance(module, (nn.ModuleList, nn.Sequential))
        and len(module) > 0
        and all(next(child.children(), None) is not None for child in module)
    )


def _lists_of_stages(name: str, stages: Sequence[nn.Module]) -> dict[str, Sequence[nn.Module]]:
    """The outermost list of blocks inside each of these modules, by name; what has none, as a downsampling, is left out."""
    found = {}
    for i, stage in enumerate(stages):
        inside = [key for key, module in stage.named_modules() if _is_list_of_blocks(module)]
        if inside:
            key = min(inside, key=lambda key: key.count(".") + bool(key))
            found[f"{name}.{i}.{key}".rstrip(".")] = stage.get_submodule(key)
    return found


def layers_of(model: nn.Module) -> dict[str, int]:
    """Index of the layer that each parameter of a block belongs to, by its name; layers count through all stages.

    What is between the blocks belongs to no layer: embeddings, norms, the head, and the downsampling between two stages
    unless it is a part of a block, as in a ResNet.
    """
    blocks = [f"{name}.{i}" for name, blocks in block_lists(model).items() for i in range(len(blocks))]
    return {
        f"{block}.{name}": layer
        for layer, block in enumerate(blocks)
        for name, _ in model.get_submodule(block).named_parameters()
    }


def all_blocks(model: nn.Module, otherwise: str = "its layers cannot be looked into. Leave this audit out"):
    """The blocks of a model in order of depth, through all stages: a list.

    Args:
        otherwise (`str`, *optional*): for the error: what cannot be done without the blocks, and what to do instead.

    Raises:
        ValueError: no blocks are found.
    """
    blocks = [block for blocks in block_lists(model).values() for block in blocks]
    if not blocks:
        config = backbone_config(model)
        depth = getattr(config, "depths", None) or getattr(config, "num_hidden_layers", None)
        raise ValueError(f"No list of {depth} blocks was found in {_class_name(model)}, so {otherwise}.")
    return blocks


def find_blocks(
    model: nn.Module, otherwise: str = "its layers cannot be looked into. Leave this audit out"
) -> tuple[nn.Module, str]:
    """Where the blocks of a transformer are: the module that holds them and the name of the list.

    Args:
        otherwise (`str`, *optional*): as for [`all_blocks`].

    Raises:
        ValueError: no blocks are found, or they are not all of one width (backbones with stages).
    """
    depth = len(all_blocks(model, otherwise))
    (path, *more), config = block_lists(model), backbone_config(model)
    if more or not hasattr(config, "depths") and depth != getattr(config, "num_hidden_layers", None):
        raise ValueError(f"The {depth} blocks of {_class_name(model)} differ in width, so {otherwise}.")
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name


def _class_name(model: nn.Module) -> str:
    return type(model.get_base_model() if hasattr(model, "peft_config") else model).__name__


@contextmanager
def shortened(parent: nn.Module, name: str, n: int) -> Iterator[None]:
    """Leave only the first `n` blocks in the model for a while."""
    # Not by an exception out of the forward, which would leave DDP waiting for the gradients of this pass.
    whole = getattr(parent, name)
    setattr(parent, name, whole[:n])
    try:
        yield
    finally:
        setattr(parent, name, whole)


@contextmanager
def output_replaced(block: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a block return `change(state)` in place of its state for a while."""

    def after(module, args, output):
        if isinstance(output, tuple):
            return (change(output[0]).to(output[0]), *output[1:])
        return change(output).to(output)

    with block.register_forward_hook(after):
        yield


def as_tokens(state: Tensor, n_rows: int) -> Tensor:
    """A state as `(rows, tokens, width)`: of convolutions it is `(rows, width, height, width of the image)`, and some blocks get
    the parts of an image as rows of their own (MobileViT)."""
    return state.flatten(2).mT if state.dim() == 4 else state.reshape(n_rows, -1, state.shape[-1])


def states_of(
    model: nn.Module, blocks: Sequence[nn.Module], inputs: dict[str, Tensor], keep: Callable = lambda state: state
) -> list[Tensor]:
    """`keep(state)` of the state before the first block and after each: one pass, no logits. A state is `(rows, length,
    width)`, but see [`as_tokens`] for images."""
    kept = []

    def before(module, args, kwargs):
        kept.append(keep(args[0] if args else kwargs["hidden_states"]))

    def after(module, args, output):
        kept.append(keep(_state(output)))

    with ExitStack() as hooks:
        hooks.enter_context(blocks[0].register_forward_pre_hook(before, with_kwargs=True))
        for block in blocks:
            hooks.enter_context(block.register_forward_hook(after))
        _run_unscored(model, inputs)
    return kept


@dataclass
class BlockCalls:
    """The arguments that consecutive blocks were called with, and the `output (rows, length, width)` of the last one."""

    blocks: list[nn.Module]
    calls: list[tuple[tuple, dict[str, Any]]] = field(default_factory=list)
    output: Tensor | None = None

    def replay(self) -> Tensor:
        """Run the blocks again, from the input of the first one: `(rows, length, width)`.

        On all rows, as what a block is called with need not have one line for each (BLOOM's has one for each head too).
        """
        hidden = self.calls[0][0][0]
        for block, (args, kwargs) in zip(self.blocks, self.calls, strict=True):
            hidden = _state(block(hidden, *args[1:], **kwargs))
        return hidden


def run_to_block(model: nn.Module, base: nn.Module, inputs: Mapping[str, Tensor], first: int, last: int) -> BlockCalls:
    """Run a model up to the block `last` and keep the calls from the block `first` on: no later block, no logits.

    The pass goes through `model`, which may be wrapped (DDP), so that its hooks see it.

    Args:
        base (`nn.Module`): the transformers model inside `model`.
        inputs (`Mapping`): what the model's forward takes, and `labels`, which do not matter.
        first, last (`int`): indices of blocks.
    """
    parent, name = find_blocks(base)
    blocks = getattr(parent, name)
    seen = BlockCalls(list(blocks[first : last + 1]))

    def keep_call(module, args, kwargs):
        seen.calls.append((args, kwargs))

    def keep_output(module, args, output):
        seen.output = _state(output)

    with ExitStack() as hooks:
        for block in seen.blocks:
            hooks.enter_context(block.register_forward_pre_hook(keep_call, with_kwargs=True))
        hooks.enter_context(blocks[last].register_forward_hook(keep_output))
        hooks.enter_context(shortened(parent, name, last + 1))
        _run_unscored(model, inputs)
    return seen


def _run_unscored(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Run a pass without a target, so that the head has nothing to do."""
    target_logits(model, {**inputs, "labels": torch.full_like(inputs["labels"], IGNORE_INDEX)})


def _state(output) -> Tensor:
    """A block returns its state, or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output
