"""What is averaged, by name: frozen, shared, late, wrapped, and what cannot be told apart."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim import SGD, AdamW

from belay_cli.errors import UsageError
from belay_cli.training import Belay
from tests.training.models import averages, backward, data, network, same, train, weights

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def names(belay: Belay) -> list[str]:
    return list(belay.state_dict()["average"])


def given(*parameters: Iterable[Any], **options: Any) -> Belay:
    """Belay on SGD of these groups."""
    return Belay(SGD([{"params": group} for group in parameters], lr=0.05), half_life=5, **options)


def test_names_are_those_of_the_model() -> None:
    model = network()
    assert names(given(model.parameters(), model=model)) == NAMES
    assert names(given(model[2].parameters(), model[0].parameters(), model=model)) == [*NAMES[2:], *NAMES[:2]]


def test_without_a_model_names_are_those_that_the_optimizer_was_given() -> None:
    model = network()
    assert names(given(model.named_parameters())) == NAMES
    assert names(given(list(model.named_parameters())[:1], list(model.named_parameters())[1:])) == NAMES
    model[0] = checkpoint_wrapper(model[0])
    assert names(given(model.named_parameters())) == NAMES


def test_without_any_names_they_are_places_in_the_optimizer() -> None:
    model = network()
    belay = given(model[0].parameters(), model[2].parameters())
    assert names(belay) == ["param_groups.0.0", "param_groups.0.1", "param_groups.1.0", "param_groups.1.1"]


def test_a_frozen_parameter_shifts_no_name() -> None:
    """Averages by position would go to the wrong parameters (trl#7043)."""
    model = network()
    model.get_parameter("0.bias").requires_grad_(False)
    assert names(given(model.parameters(), model=model)) == ["0.weight", "2.weight", "2.bias"]
    assert names(given(model.named_parameters())) == ["0.weight", "2.weight", "2.bias"]
    assert names(given(model.parameters())) == ["param_groups.0.0", "param_groups.0.2", "param_groups.0.3"]


class Wrapper(nn.Module):
    """As torch.compile has it, without compiling."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model


# What torch.compile imports of torch is deprecated by torch.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_wraps_a_model_is_no_part_of_its_names() -> None:
    model = network()
    model[0] = checkpoint_wrapper(model[0])
    assert next(iter(model.state_dict())) == "0.weight"
    assert next(name for name, _ in model.named_parameters()).startswith("0._checkpoint_wrapped_module.")
    for whole in (model, Wrapper(model), nn.DataParallel(model), nn.DataParallel(Wrapper(model)), torch.compile(model)):
        belay = given(model.parameters(), model=whole)
        assert names(belay) == NAMES
        belay.remove()


def test_a_shared_parameter_has_one_average_and_its_first_name() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    optimizer = SGD(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, half_life=5, warmup=None)
    start = weights(model)[0]
    model(torch.arange(7)).square().mean().backward()
    optimizer.step()
    assert names(belay) == ["0.weight"]
    a = 1 - 0.5 ** (1 / 5)
    assert torch.allclose(averages(belay)[0], start + a * (weights(model)[0] - start))
    result = belay.averaged_state_dict()
    assert list(result) == ["0.weight", "1.weight"]
    assert result["0.weight"] is result["1.weight"]


def test_a_parameter_that_is_frozen_on_the_way_is_averaged_and_pulled_no_more() -> None:
    model = network()
    optimizer = AdamW(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, half_life=2, warmup=None, stiffness=0.5, metric="optimizer")
    train(model, optimizer, range(3))
    frozen = model.get_parameter("0.weight").requires_grad_(False)
    kept, before = frozen.detach().clone(), averages(belay)[0]
    train(model, optimizer, range(3, 7))
    assert names(belay) == NAMES
    assert torch.equal(frozen.detach(), kept)
    assert torch.allclose(averages(belay)[0], kept + 0.25 * (before - kept))

    frozen.requires_grad_(True)
    train(model, optimizer, range(7, 9))
    assert not torch.equal(frozen.detach(), kept)
    assert belay.state_dict()["since"] == dict.fromkeys(NAMES, 0)


def test_one_frozen_while_another_is_unfrozen_is_noticed() -> None:
    model = network()
    model.get_parameter("0.weight").requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, half_life=5)
    train(model, optimizer, range(2))
    model.get_parameter("0.weight").requires_grad_(True)
    model.get_parameter("2.weight").requires_grad_(False)
    train(model, optimizer, range(2, 4))
    assert sorted(names(belay)) == sorted(NAMES)
    assert belay.state_dict()["since"] == {"0.bias": 0, "2.weight": 0, "2.bias": 0, "0.weight": 2}


@pytest.mark.parametrize("warmup", [None, 0.5])
@pytest.mark.parametrize("late", ["unfrozen", "added"])
def test_a_late_parameter_begins_for_itself(late: str, warmup: float | None) -> None:
    """With the weights that it has then, and a warm-up of its own."""
    model = network()
    first = list(model[0].parameters())
    if late == "unfrozen":
        model[2].requires_grad_(False)
        optimizer = SGD(model.parameters(), lr=0.05)
    else:
        optimizer = SGD(first, lr=0.05)
    belay = Belay(optimizer, model=model, half_life=3.0 if warmup is None else None, warmup=warmup)
    train(model, optimizer, range(4))
    assert names(belay) == NAMES[:2]
    if late == "unfrozen":
        model[2].requires_grad_(True)
    else:
        optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.01})
    seen = [[w.clone() for w in weights(model)[2:]]]
    train(model, optimizer, range(4, 8), lambda: seen.append(weights(model)[2:]))
    assert names(belay) == NAMES
    assert belay.state_dict()["since"] == {**dict.fromkeys(NAMES[:2], 0), **dict.fromkeys(NAMES[2:], 4)}
    for i, e in enumerate(averages(belay)[2:]):
        begun, *after = (each[i] for each in seen)
        if warmup is None:
            for x in after:
                begun = begun + (1 - 0.5 ** (1 / 3)) * (x - begun)
        else:
            begun = torch.stack(after).mean(0)
        assert torch.allclose(e, begun, rtol=1e-12)


def test_late_parameters_go_on_bit_for_bit_from_a_state() -> None:
    """Its own beginning is part of the state."""

    def begin() -> tuple[nn.Sequential, SGD, Belay]:
        model = network()
        optimizer = SGD(model[0].parameters(), lr=0.05)
        return model, optimizer, Belay(optimizer, model=model, stiffness=0.5)

    def grow(model: nn.Sequential, optimizer: SGD) -> None:
        optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.01})

    straight, hooked, belay = begin()
    train(straight, hooked, range(3))
    grow(straight, hooked)
    train(straight, hooked, range(3, 6))
    state, x = copy.deepcopy(belay.state_dict()), weights(straight)
    train(straight, hooked, range(6, 9))

    model, optimizer, resumed = begin()
    grow(model, optimizer)
    with torch.no_grad():
        for p, w in zip(model.parameters(), x, strict=True):
            p.copy_(w)
    resumed.load_state_dict(state)
    train(model, optimizer, range(6, 9))
    assert same(weights(model), weights(straight))
    assert same(averages(resumed), averages(belay))


def test_a_parameter_that_is_not_of_the_model_is_refused() -> None:
    message = "parameter {} of group {} of the optimizer is not one of the model's"
    model, other = network(), network()
    with pytest.raises(UsageError) as refused:
        given(model.parameters(), model=other)
    assert str(refused.value) == message.format(0, 0)
    assert refused.value.hint == "give the model that the optimizer was made for"
    with pytest.raises(UsageError) as refused:
        given(model.parameters(), [*other.parameters()][:1], model=model)
    assert str(refused.value) == message.format(0, 1)

    belay = given(model.parameters(), model=model)
    optimizer = belay._optimizer
    optimizer.add_param_group({"params": list(other.parameters())})
    backward(model, 0)
    for _ in range(2):  # each time, not the first time only
        with pytest.raises(UsageError) as refused:
            optimizer.step()
        assert str(refused.value) == message.format(0, 1)


def test_two_parameters_of_one_name_are_refused() -> None:
    """Two modules whose named_parameters() go into one optimizer."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    with pytest.raises(UsageError) as refused:
        given(first.named_parameters(), second.named_parameters())
    assert str(refused.value) == "is the name of two parameters of the optimizer"
    assert refused.value.tensor == "weight"
    assert refused.value.hint == "give the model, and make Belay when nothing replaces its parameters any more"
    both = nn.ModuleList([first, second])
    assert len(names(given(first.named_parameters(), second.named_parameters(), model=both))) == 4


def test_a_parameter_that_was_replaced_is_refused() -> None:
    """As by what shards a model, and gives the optimizer the new parameters."""
    model = network()
    optimizer = SGD(model.parameters(), lr=0.05)
    Belay(optimizer, model=model, half_life=5)
    model[0].weight = nn.Parameter(weights(model)[0])
    optimizer.param_groups[0]["params"][0] = model[0].weight
    backward(model, 0)
    with pytest.raises(UsageError) as refused:
        optimizer.step()
    assert str(refused.value) == "is the name of two parameters of the optimizer"
    assert refused.value.tensor == "0.weight"


def test_a_parameter_without_weights_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(UsageError) as refused:
        given(model.parameters(), model=model)
    assert str(refused.value) == "has no weights yet (it is on the meta device)"
    assert refused.value.tensor == "weight"
    assert refused.value.hint == "load the model first"


def test_an_optimizer_of_nothing_is_followed() -> None:
    """Each of its parameters is frozen, say, until later."""
    model = network()
    model.requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, half_life=5)
    optimizer.step()
    assert names(belay) == []
    model.requires_grad_(True)
    train(model, optimizer, range(3))
    assert names(belay) == NAMES
    with belay.averaged():
        model(data(0)[0])
