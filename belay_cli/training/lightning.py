"""BELAY in the Trainer of Lightning: a callback.

    >>> from belay_cli.training.lightning import BelayCallback
    >>> callback = BelayCallback(half_life=500, stiffness=5.0)  # the options of Belay
    >>> Trainer(callbacks=[callback]).fit(model)  # doctest: +SKIP

Lightning calls the callbacks that save last, also when a validation ends or fails: the weights are back by then.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from belay_cli.errors import UsageError
from belay_cli.training.belay import Belay
from belay_cli.training.parameters import plain_name

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError("the callback for Lightning needs lightning: pip install lightning") from error


class BelayCallback(Callback):  # type: ignore[misc]
    """Makes a Belay when training begins, evaluates the average, and keeps its state in the checkpoints.

    Validation, test and prediction are of the average, with a checkpoint to load that of the checkpoint. A resumed
    training goes on bit for bit.

    Args:
        evaluate_average: whether it is the average that is evaluated; otherwise it is the weights.
        options: those of `Belay`.

    Raises:
        TypeError, UsageError: for options that Belay does not have, or that cannot be right together; and UsageError
            when training begins with several optimizers or a sharded model.
    """

    def __init__(self, *, evaluate_average: bool = True, **options: Any) -> None:
        Belay(torch.optim.SGD([torch.zeros(0)]), model=None, **options)  # wrong ones are told now
        self._options = options
        self._evaluate_average = evaluate_average
        self._belay: Belay | None = None
        self._module: Any = None
        self._loaded: dict[str, Any] | None = None

    @property
    def belay(self) -> Belay:
        """Of the last training that began, or of the last checkpoint evaluated. Raises UsageError before either."""
        if self._belay is None:
            raise UsageError("there is no average before training begins")
        return self._belay

    def state_dict(self) -> dict[str, Any]:
        """What Lightning stores in a checkpoint."""
        if self._loaded is not None:
            return self._loaded
        return {} if self._belay is None else self._belay.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint: it is loaded before there are optimizers."""
        self._loaded = state_dict

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget a state that an earlier stage has loaded and not used: this one may load another."""
        self._loaded = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Follow the optimizer, from the state of the checkpoint that training goes on from."""
        if len(trainer.optimizers) != 1:
            raise UsageError(
                f"a model with {len(trainer.optimizers)} optimizers: this callback follows one",
                hint="one Belay(optimizer, model=…) for each, in on_train_start of the model",
            )
        if trainer.strategy.restore_checkpoint_after_setup:  # those that shard
            raise UsageError(
                f"{type(trainer.strategy).__name__} shards the model, and Lightning stores a callback's state of one "
                "process only",
                hint="Belay(optimizer, model=…), and its state by torch.distributed.checkpoint",
            )
        if trainer.global_step and trainer.ckpt_path is not None and self._loaded is None:
            text = f"{trainer.ckpt_path}: no state of Belay came with it, so that the average begins anew"
            warnings.warn(text, stacklevel=2)
        self._follow(trainer.optimizers[0], pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Put the average into the model's place."""
        if not self._evaluate_average or trainer.sanity_checking:
            return
        with torch.inference_mode(False):  # what is made in it could not be changed afterwards
            if trainer.state.fn != "fit" and trainer.ckpt_path is not None:
                if self._loaded is None:
                    text = f"{trainer.ckpt_path}: no state of Belay came with it, so that its weights are evaluated"
                    warnings.warn(text, stacklevel=2)
                    return
                averaged = self._loaded["average"]
                named = [p for name, p in pl_module.named_parameters() if plain_name(name) in averaged]
                self._follow(torch.optim.SGD(named), pl_module)  # which makes no step
            if self._belay is not None and self._module is pl_module:
                self._belay.eval()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Put the weights back."""
        if self._belay is not None:
            with torch.inference_mode(False):
                self._belay.train()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Put the weights back if it came from an evaluation."""
        self.on_validation_end(trainer, pl_module)

    def _follow(self, optimizer: Any, module: Any) -> None:
        if self._belay is not None:
            self._belay.remove()
        self._belay, self._module = Belay(optimizer, model=module, **self._options), module
        if self._loaded is not None:
            self._belay.load_state_dict(self._loaded)
            self._loaded = None
