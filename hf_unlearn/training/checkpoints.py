"""The files that a resumed run needs, and the end of a run whose loss is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_unlearn.models.dropout import Dropout


logger = logging.get_logger(__name__)

_FILE = "unlearning_state.safetensors"


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; the weights are those of the last completed step."""


def load_state(folder: str | Path) -> dict[str, Tensor]:
    """The state of the method and the update rule in a checkpoint folder; empty where they have none."""
    path = Path(folder) / _FILE
    return load_file(path) if path.exists() else {}


class Checkpoints:
    """The part of [`UnlearningTrainer`] that saves and loads."""

    def require_finite(self, value: Tensor, what: str = "loss"):
        """Raise if the loss or the gradient is not finite: before the step, while the weights are still good."""
        if torch.isfinite(value.detach()):
            return
        last, saved = self.state.global_step, "Nothing was saved."
        alone = self.accelerator.num_processes == 1  # reading shards would need the others, which may not be here
        finite = alone and all(torch.isfinite(p).all() for p in self.model.parameters() if p.is_floating_point())
        if finite and last > 0:
            self._save_checkpoint(self.model, trial=None)
            saved = f"The weights after step {last} are in {self.args.output_dir}/checkpoint-{last}."
        elif self.state.best_model_checkpoint:
            saved = f"The best checkpoint so far is {self.state.best_model_checkpoint}."
        raise NonFiniteLossError(
            f"The {what} is {value.item()} at step {last + 1}. {saved} Either lower learning_rate, or set max_grad_norm, "
            "or choose an objective that is bounded below (npo, simnpo, wga), and continue with resume_from_checkpoint."
        )

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Have the dropout of the model off, if `disable_dropout` says so; afterwards it is as before."""
        self._dropout = Dropout(self.model) if self.args.disable_dropout else None
        if not self._dropout:
            yield
            return
        logger.warning_once(
            "The dropout of the model is off in this training. It stays on with disable_dropout=False."
        )
        self._dropout.off()
        try:
            yield
        finally:
            self._dropout.on()

    def _save(self, *args, **kwargs):
        # A config that is saved has the dropout of the model, not that of this training.
        was_off = self._dropout is not None and self._dropout.is_off
        if was_off:
            self._dropout.on()
        try:
            super()._save(*args, **kwargs)
        finally:
            if was_off:
                self._dropout.off()

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        state = self.method_state()
        if self._rule is not None:
            state = state | self._rule.state()
        if state and self.args.should_save:
            folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
            save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, folder / _FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if not self._load_plain(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self):
        if not self._load_plain(self.state.best_model_checkpoint):
            super()._load_best_model()

    def _load_plain(self, folder: str) -> bool:
        # A file may have other names than the model (those of an older layout, for a ViT), which from_pretrained knows.
        # The Trainer would load the file itself, and leave out unknown names with no more than a warning.
        if not isinstance(self.model, PreTrainedModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return False
        saved = type(self.model).from_pretrained(folder, dtype="auto")
        self.model.load_state_dict(saved.state_dict())
        return True
