"""BELAY while a model trains: a hook on any torch optimizer that keeps the average, and pulls the model to it.

    belay          Belay, what a training script holds: the hooks, the state, evaluation and saving
    schedule       how much of the model goes into the average at each update
    spring         the pull on the model: none, a share, a force, a force in Adam's metric
    tick           one tick on tensors: the arithmetic
    state          what is kept of each parameter, and what a resumed training needs of it
    batches        parameters as lists of blocks that fit the cache
    parameters     what is averaged, by name
    swap           the average in the model's place, and back
    save           the average as a safetensors file
    transformers   the callback for the Hugging Face Trainer
    lightning      the callback for Lightning

It needs torch and nothing of the command line.

    >>> from belay_cli.training import Belay
    >>> belay = Belay(optimizer, model=model, half_life=500, stiffness=5.0)  # doctest: +SKIP
    >>> with belay.averaged():  # doctest: +SKIP
    ...     evaluate(model)
"""

from belay_cli.training.belay import Belay

__all__ = ["Belay"]
