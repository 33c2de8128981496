"""Records, cards and what is read from them."""

from __future__ import annotations

import shlex
from typing import Any

from huggingface_hub import EvalResult, ModelCard
from hypothesis import strategies as st

from belay_cli.publish import card as cards
from belay_cli.publish import front_matter as matter
from belay_cli.record import parse
from belay_cli.rules import Ema

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "transformers_version": "4.50.0"}
ACCURACY = [EvalResult("other", "unknown", "Unknown", "accuracy", 0.959)]


def document(
    options: Any = None,
    ticks: Any = (100, 200, 300),
    unit: str = "step",
    names: list[str] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """belay.json of an average of these ticks."""
    rule = (options or Ema(half_life="100")).resolve(ticks, unit)
    names = names or [f"checkpoint-{tick}" for tick in ticks]
    series = [
        {"name": n, "step": t, "tick": t, "coefficient": c, "bytes": 1, "fingerprint": "0" * 64}
        for n, t, c in zip(names, ticks, rule.coefficients(ticks).tolist(), strict=True)
    ]
    return {
        "schema": 1,
        "version": "0.1.0",
        "rule": {"method": rule.method, "unit": unit, **rule.parameters()},
        "series": series,
        "policies": {"average": [], "last": [], "drop": []},
        "command": shlex.join(["belay", "average", "--method", rule.method, "--unit", unit, *rule.arguments(), *names]),
        "copies": ["config.json"],
        "dtype": "same",
        "accumulation": "float64",
        "versions": {"torch": "2.13.0", "safetensors": "0.8.0"},
        "digests": {"w": "0" * 64},
        **changes,
    }


def card(document: dict[str, Any], **more: Any) -> str:
    """The card of an output with this belay.json."""
    return cards.card(parse(document, "belay.json"), **more)


def front_matter(document: dict[str, Any], *more: Any, **options: Any) -> dict[str, Any]:
    """The metadata of the card of an output with this belay.json."""
    return matter.front_matter(parse(document, "belay.json"), *more, **options)


def from_hub(doc: dict[str, Any], repo: str = "acme/run") -> dict[str, Any]:
    for entry in doc["series"]:
        entry |= {"repo": repo, "revision": "0123456789abcdef" * 2 + "01234567"}
    return doc


def body(text: str) -> str:
    return text.split("\n---\n", 1)[1]


def data(text: str) -> dict[str, Any]:
    return dict(ModelCard(text).data.to_dict())  # type: ignore[no-untyped-call]


SMALL = """\
---
license: mit
library_name: transformers
base_model: acme/run
base_model_relation: merge
tags:
- belay
- ema
- weight-averaging
model-index:
- name: run-ema
  results:
  - task:
      type: text-generation
    dataset:
      name: Unknown
      type: unknown
    metrics:
    - type: accuracy
      value: 0.959
---

# run-ema

<!-- belay:begin -->
## Averaged weights

These weights are an average of 3 checkpoints of one training run, steps 100 to 300: an exponential moving average \
(EMA); half-life 100 steps = 1.0 checkpoints · decay 0.99309 a step. They were computed after training, from the saved \
checkpoints: every averaged tensor is the sum of the checkpoints' tensors, each times its weight below.

![The weight of every checkpoint in the average](coefficients.png)

The average lags 108 steps behind the last checkpoint; its effective number of checkpoints is 3.0, if their noise is \
independent.

### Checkpoints

| step | checkpoint | weight |
| ---: | :--- | ---: |
| 100 | `checkpoint-100` | 35.9% |
| 200 | `checkpoint-200` | 35.9% |
| 300 | `checkpoint-300` | 28.1% |

### Loading

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("acme/run-ema")
```

### Evaluation

| task | dataset | metric | value |
| :--- | :--- | :--- | ---: |
| `text-generation` | not stated | `accuracy` | 0.959 |

### How it was made

```sh
belay average --method ema --unit step --half-life 100.0 checkpoint-100 \\
    checkpoint-200 checkpoint-300
```

By belay `0.1.0` with torch `2.13.0`; sums in float64, rounded once to the dtype of the output. `belay.json` records \
all of it.

### How to check it

```sh
hf download acme/run-ema --local-dir run-ema
belay verify run-ema --checkpoints RUN
```

`RUN` is the directory of the checkpoints above. `belay verify` checks the SHA-256 of every tensor, derives the \
weights from the rule again, and recomputes the values from the checkpoints by the recursion.
<!-- belay:end -->
"""


def small(**options: Any) -> str:
    doc = document()
    for entry in doc["series"]:
        entry["repo"] = "acme/run"
    given_options = {
        "config": LLAMA,
        "source_card": "---\nlicense: mit\n---\n# Run\n",
        "repo_id": "acme/run-ema",
        "picture": "coefficients.png",
        "eval_results": ACCURACY,
    }
    return card(doc, **{**given_options, **options})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)
