"""One tick of the spring, on lists of tensors of one device and dtype. All in place, without a copy of the model.

    x' = x̂ + β (e − x̂)        the pull on the model, see `spring`
    v' = μ v + (1 − μ) a (x' − e)
    e' = e + v'                the pull on the average

e and v are float32 or wider. Where x is narrower (bfloat16, float16) a pull of less than half a unit in its last place
would round away; `carry` holds what x cannot show, so that x + carry is the weight that is pulled and averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

Tensors = list[torch.Tensor]


def pull(x: Tensors, e: Tensors, carry: Tensors, share: float) -> None:
    """x ← x + share (e − x). x, e: lists of equal shapes; carry: the same, or empty if x is as wide as e."""
    if not carry:
        torch._foreach_lerp_(x, e, share)
        return
    for one, target, rest in zip(x, e, carry, strict=True):
        _settle(one, rest, _exact(one, rest).lerp_(target, share))


def pull_in_metric(
    x: Tensors,
    e: Tensors,
    carry: Tensors,
    moments: Tensors,
    factors: Sequence[float],
    eps: float,
    strength: float,
    largest: float | None,
) -> None:
    """The pull with s = strength/(√v̂ + ε) a coordinate, v̂ = moments · factors.

    Explicit, s is held at `largest`; implicit (None) the share is s/(1 + s) = strength/(√v̂ + ε + strength). Both are
    divided by the root of the factor here, so that it multiplies no tensor. moments, factors: one a block.
    """
    roots = [math.sqrt(factor) for factor in factors]
    exact = [_exact(one, rest) for one, rest in zip(x, carry, strict=True)] if carry else x
    scales = torch._foreach_sqrt([v.to(one.dtype) for v, one in zip(moments, e, strict=True)])
    away = torch._foreach_sub(e, exact)
    shares = [strength / root for root in roots]
    if largest is None:
        torch._foreach_add_(scales, [(eps + strength) / root for root in roots])
        torch._foreach_addcdiv_(exact, away, scales, shares)
    else:
        torch._foreach_add_(scales, [eps / root for root in roots])
        torch._foreach_reciprocal_(scales)
        torch._foreach_mul_(scales, shares)
        torch._foreach_clamp_max_(scales, largest)
        torch._foreach_addcmul_(exact, away, scales)
    if carry:
        for one, rest, weight in zip(x, carry, exact, strict=True):
            _settle(one, rest, weight)


def average(x: Tensors, e: Tensors, velocity: Tensors, carry: Tensors, a: float, inertia: float) -> None:
    """e ← e + v', v ← v'; without inertia e ← e + a (x − e). Lists of equal shapes; velocity, carry may be empty."""
    if carry:
        x = [_exact(one, rest) for one, rest in zip(x, carry, strict=True)]
    elif x[0].dtype != e[0].dtype:
        x = [one.to(target.dtype) for one, target in zip(x, e, strict=True)]
    if not velocity:
        torch._foreach_lerp_(e, x, a)
        return
    alpha = (1 - inertia) * a
    torch._foreach_mul_(velocity, inertia)
    torch._foreach_add_(velocity, x, alpha=alpha)
    torch._foreach_sub_(velocity, e, alpha=alpha)
    torch._foreach_add_(e, velocity)


def _exact(x: torch.Tensor, carry: torch.Tensor) -> torch.Tensor:
    """The weight that x stands for, in the dtype of the carry."""
    return x.to(carry.dtype).add_(carry)


def _settle(x: torch.Tensor, carry: torch.Tensor, exact: torch.Tensor) -> None:
    """Write a weight as x, and what x cannot show of it as carry."""
    x.copy_(exact)
    carry.copy_(exact).sub_(x)
