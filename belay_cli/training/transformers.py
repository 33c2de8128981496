"""BELAY in the Trainer of Hugging Face: a callback.

    >>> from belay_cli.training.transformers import BelayCallback
    >>> callback = BelayCallback(half_life=500, stiffness=5.0)  # the options of Belay
    >>> trainer = Trainer(model, arguments, train_dataset=…, callbacks=[callback])  # doctest: +SKIP

The Trainer switches an optimizer that has `eval()` and `train()` to what it should evaluate, and back; these two it
gets from Belay. It saves after `on_evaluate`, which is why the weights are back by then.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint as dcp

from belay_cli.errors import UsageError
from belay_cli.training.belay import Belay
from belay_cli.training.parameters import innermost_optimizer, is_distributed, local

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError("the callback for the Trainer needs transformers: pip install transformers accelerate") from error

STATE = "belay.pt"  # in each checkpoint
SHARDED_STATE = "belay_training_state"  # there, instead, a directory, where processes hold parts of the model
AVERAGE = "belay-average.safetensors"  # in the output directory


class BelayCallback(TrainerCallback):  # type: ignore[misc]
    """Makes a Belay when training begins, evaluates the average, and keeps its state in the checkpoints.

    A resumed training goes on bit for bit. With `load_best_model_at_end` the average is that of the best checkpoint.

    Args:
        evaluate_average: whether evaluations and predictions are of the average; otherwise they are of the weights.
        save_average: whether the average is written to the output directory when training ends.
        options: those of `Belay`.

    Raises:
        TypeError, UsageError: for options that Belay does not have, or that cannot be right together.
    """

    def __init__(self, *, evaluate_average: bool = True, save_average: bool = True, **options: Any) -> None:
        Belay(torch.optim.SGD([torch.zeros(0)]), model=None, **options)  # wrong ones are told now
        self._options = options
        self._evaluate_average = evaluate_average
        self._save_average = save_average
        self._belay: Belay | None = None
        self._parameters: list[torch.nn.Parameter] = []

    @property
    def belay(self) -> Belay:
        """The Belay of the last training that began. Raises UsageError before the first."""
        if self._belay is None:
            raise UsageError("there is no average before training begins")
        return self._belay

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **_: Any) -> None:
        """Follow the optimizer, from the state of the checkpoint that training goes on from."""
        if self._belay is not None:  # the Trainer keeps its optimizer from one training to the next
            self._belay.remove()
        self._belay = Belay(optimizer, model=model, **self._options)
        inner = innermost_optimizer(optimizer)
        self._parameters = [parameter for group in inner.param_groups for parameter in group["params"]]
        if self._evaluate_average:
            _attach(self._belay, inner)
        if not state.global_step:
            return
        # A path that was given to train() is not told to callbacks.
        given = args.resume_from_checkpoint
        folders = [Path(given)] if isinstance(given, str) else []
        folders.append(_checkpoint(args, state))
        if not any(self._load(folder) for folder in folders):
            warnings.warn(
                f"{' and '.join(map(str, folders))}: no state of Belay that belongs to these weights, so that the "
                f"average begins anew at step {state.global_step}. If training goes on from another directory, say so: "
                "TrainingArguments(resume_from_checkpoint=…)",
                stacklevel=2,
            )

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Back to the weights: the Trainer saves after this."""
        if self._belay is not None:
            self._belay.train()

    on_predict = on_evaluate

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write Belay's state into the checkpoint."""
        folder = _checkpoint(args, state)
        if self._is_sharded():
            dcp.save({"belay": self.belay}, checkpoint_id=folder / SHARDED_STATE)
        elif not args.should_save:
            return
        elif not folder.is_dir():  # of a search for hyperparameters, which are not resumed
            warnings.warn(f"{folder} is not there, so that the state of Belay is not saved", stacklevel=2)
        else:
            torch.save({**self.belay.state_dict(), "weights": self._sample()}, folder / STATE)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the average of the best checkpoint if the model is that, and write the average."""
        step, best = state.global_step, state.best_model_checkpoint
        if args.load_best_model_at_end and best is not None:
            step = state.best_global_step
            if not self._load(Path(best)):
                warnings.warn(f"{best}: no state of Belay there, so that the average stays the last one", stacklevel=2)
                step = state.global_step
        if self._save_average and self.belay.updates:
            self.belay.save(Path(args.output_dir, AVERAGE), step=step)

    def _load(self, folder: Path) -> bool:
        """Load the state that belongs to the weights, if it is there."""
        if self._is_sharded():
            found = (folder / SHARDED_STATE).is_dir()
            if found:
                dcp.load({"belay": self.belay}, checkpoint_id=folder / SHARDED_STATE)
            return found
        if not (folder / STATE).is_file():
            return False
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        if found := torch.equal(state["weights"], self._sample()):
            self.belay.load_state_dict(state)
        return found

    def _is_sharded(self) -> bool:
        return any(is_distributed(parameter) for parameter in self._parameters)

    def _sample(self) -> torch.Tensor:
        """The first element of each parameter: it tells the weights of one step or run from those of another."""
        return torch.cat([local(parameter).reshape(-1)[:1].to("cpu", torch.float64) for parameter in self._parameters])


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir, f"checkpoint-{state.global_step}")


def _attach(belay: Belay, optimizer: Any) -> None:
    """Let the Trainer switch by the optimizer, as it does with those that average by themselves."""
    there = getattr(optimizer, "eval", None)
    if there is not None and not isinstance(getattr(there, "__self__", None), Belay):
        raise UsageError(
            f"{type(optimizer).__name__} has an eval() of its own: it averages by itself",
            hint="take another optimizer, or evaluate_average=False",
        )
    optimizer.eval, optimizer.train = belay.eval, belay.train
