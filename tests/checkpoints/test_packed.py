"""Packed numbers by name, by what lies beside them, and by configuration; and what looks like them and is plain."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from belay_cli.checkpoints.packed import Packed, packed
from belay_cli.formats.contents import Tensor
from belay_cli.formats.dtypes import DTYPES
from tests.conftest import Ran


def model(**parts: Any) -> dict[str, Tensor]:
    """Tensors named after `parts`, where __ stands for a dot; each is a dtype and a shape."""
    named = {name if "." in name else name.replace("__", "."): value for name, value in parts.items()}
    return {
        name: Tensor(name, dtype, shape, 0, math.prod(shape) * DTYPES[dtype].bits // 8)
        for name, (dtype, shape) in named.items()
    }


FLOAT, ROW, ONE = ("F32", (64, 64)), ("F32", (64,)), ("F32", ())
BYTES, WORDS, UNSIGNED = ("U8", (64, 32)), ("I32", (64, 8)), ("U32", (64, 8))

# what -> tensors, of which the first shows it
NAMED = {
    "GPTQ or AWQ": model(q__qweight=WORDS, q__qzeros=WORDS, q__scales=FLOAT, q__g_idx=("I32", (64,))),
    "bitsandbytes": model(
        **{"q.weight.quant_state.bitsandbytes__nf4": ("U8", (80,))}, q__weight__absmax=ROW, q__weight=BYTES
    ),
    "compressed-tensors": model(q__weight_packed=WORDS, q__weight_scale=FLOAT),
    "MXFP4": model(mlp__gate_up_proj_blocks=("U8", (4, 64, 2, 16)), mlp__gate_up_proj_scales=("U8", (4, 64, 2))),
    "torchao": model(q___weight_qdata=("I8", (64, 64)), q___weight_scale=ROW),
    "quanto": model(q__weight___data=("I8", (64, 64)), q__weight___scale=ROW),
    "HQQ": model(q__W_q=BYTES, q__scale=ROW, q__zero=ROW),
    "exllamav3": model(q__trellis=("I16", (4, 4, 64)), q__suh=("F16", (64,)), q__svh=("F16", (64,))),
    "exllamav2": model(q__q_weight=WORDS, q__q_scale=WORDS, q__q_scale_max=("F16", (8,))),
    "AQLM": model(q__codes=("I8", (64, 8, 1)), q__codebooks=FLOAT, q__scales=FLOAT),
    "QuIP#": model(q__Qidxs=("I16", (64, 8)), q__SU=ROW, q__SV=ROW),
    "VPTQ": model(q__indices=WORDS, q__centroids=FLOAT),
    "Marlin": model(q__B=WORDS, q__s=FLOAT),
    "fp8 with scales": model(q__weight_scale_inv=ROW, norm__weight=ROW),
}


@pytest.mark.parametrize("what", NAMED)
def test_names_show_a_format(what: str) -> None:
    tensors = NAMED[what]
    assert packed(tensors, None, ()) == Packed(what, next(iter(tensors)))
    assert packed({**model(norm__weight=ROW), **tensors}, None, ()) == Packed(what, next(iter(tensors)))
    assert packed(tensors, None, tensors) is None


@pytest.mark.parametrize("what", NAMED)
def test_the_scales_of_what_is_kept_are_not_averaged_either(what: str) -> None:
    """Integers of the last checkpoint under scales averaged over all of them are no weights."""
    tensors = NAMED[what]
    integers = [name for name, tensor in tensors.items() if not DTYPES[tensor.dtype].averageable]
    scales = [n for n, t in tensors.items() if DTYPES[t.dtype].averageable and not n.startswith("norm")]
    if scales:
        found = packed(tensors, None, integers)
        assert found is not None
        assert (found.what, found.tensor) == (what, scales[0])
    assert packed(tensors, None, [*integers, *scales]) is None


SCALED = {
    "MLX": model(l__weight=UNSIGNED, l__scales=("F16", (64, 2)), l__biases=("F16", (64, 2))),
    "ModelOpt": model(l__weight=BYTES, l__weight_scale=FLOAT, l__weight_scale_2=ONE, l__input_scale=ONE),
    "int8": model(l__weight=("I8", (64, 64)), l__weight_scale=ROW),
    "a scale alone": model(l__weight=("I8", (64, 64)), l__scale=ONE),
    "HIGGS": model(l__weight=("I16", (64, 8)), l__scales=ROW),
    "unsigned words": model(l__weight=("U16", (64, 64)), l__scale=ROW, l__zero_point=("U16", (64,))),
    "flat": model(l__weight=("U8", (2048,)), l__absmax=ROW),
    "bitsandbytes without its state": model(l__weight=BYTES, l__weight__absmax=ROW),
    "experts": model(mlp__down_weight=("I8", (4, 64, 64)), mlp__down_weight_scale=FLOAT),
    "real quantization of ModelOpt": model(l__weight=BYTES, l__weight_quantizer___scale=ROW),
    "TensorRT-LLM": model(l__weight=("I8", (64, 64)), l__weights_scaling_factor=ROW),
    "a table of levels": model(l__weight=BYTES, l__lut=("F16", (16,))),
}


@pytest.mark.parametrize("case", SCALED)
def test_integers_beside_scales(case: str) -> None:
    tensors = SCALED[case]
    names = list(tensors)
    what = f"quantization, with scales in {names[1]!r}"
    assert packed(tensors, None, ()) == Packed(what, names[0])
    assert packed(tensors, None, names[:1]) == Packed(what, names[1])
    assert packed(tensors, None, names) is None


def test_integers_beside_scales_that_are_not_called_a_weight_may_be_something_else() -> None:
    tensors = model(l__levels=("I8", (64, 64)), l__scale=ROW)
    assert packed(tensors, None, ()) == Packed("quantization, with scales in 'l.scale'", "l.levels", doubtful=True)
    assert packed(tensors, None, ["l.levels"]) is None


def test_a_weight_of_integers_without_scales_is_asked_about() -> None:
    tensors = model(l__weight=("I8", (64, 64)), l__a=ONE)
    assert packed(tensors, None, ()) == Packed("quantization, as its int8 says", "l.weight", doubtful=True)
    assert packed(tensors, None, ["l.weight"]) is None


PLAIN = {
    "buffers": model(
        e__position_ids=("I64", (1, 512)),
        e__token_type_ids=("I32", (1, 512)),
        bn__num_batches_tracked=("I64", ()),
        a__relative_position_index=("I32", (49, 49)),
        a__bias=("U8", (1, 1, 64, 64)),
        a__mask=("BOOL", (64, 64)),
        a__attention_mask=("U8", (64, 64)),
        a__scale=ONE,
        a__logit_scale=ROW,
        a__weight=FLOAT,
    ),
    "big tables": model(table=("I64", (50000, 8)), vocab_map=("I32", (50000, 2)), scale=ONE),
    "images": model(x__image_buffer=("U8", (3, 64, 64)), x__weight=FLOAT),
    "integers without scales": model(x__cells=("U8", (64, 64)), x__weight=FLOAT),
    "a scale of a layer": model(x__cells=("U8", (64, 64)), x__layer_scale=ROW),
    "queries": model(a__W_q=FLOAT, a__W_k=FLOAT, a__q_weight=FLOAT, a__scale=ONE),
    "a vector quantizer": model(vq__codebooks=FLOAT, vq__codes=("I64", (64,)), vq__indices=("I64", (64,))),
    "wide floats beside scales": model(l__weight=("F64", (8, 8)), l__scale=("F64", (8,)), l__weight_scale=ROW),
    "a table of colours": model(lut=FLOAT, lut_weight=FLOAT),
    "simulated quantization": model(
        l__weight=FLOAT,
        l__weight_fake_quant__scale=ROW,
        l__weight_fake_quant__zero_point=("I32", (64,)),
        l__weight_fake_quant__fake_quant_enabled=("U8", (1,)),
        l__weight_fake_quant__observer_enabled=("U8", (1,)),
        l__weight_fake_quant__eps=("F32", (1,)),
        l__activation_post_process__min_val=ONE,
    ),
    "learned steps": model(l__weight=FLOAT, l__weight_scale=ROW, l__weight_zero_point=("I8", (64, 1))),
    "simulated quantization of ModelOpt": model(l__weight=FLOAT, l__weight_quantizer___amax=ONE),
}


@pytest.mark.parametrize("case", PLAIN)
def test_plain_numbers(case: str) -> None:
    assert packed(PLAIN[case], None, ()) is None


CONFIGS: dict[str, dict[str, Any]] = {
    "HQQ": {"config.json": {"quantization_config": {"quant_method": "hqq"}}},
    "AutoRound": {"config.json": {"quantization_config": {"quant_method": "intel/auto-round"}}},
    "a new one": {"config.json": {"quantization_config": {"quant_method": "a new one"}}},
    "quantization": {"config.json": {"quantization_config": {"bits": 4}}},
    "MLX": {"config.json": {"quantization": {"group_size": 64, "bits": 4}}},
    "bitsandbytes": {"config.json": {"quantization_config": {"load_in_4bit": True}}},
    "AWQ": {"config.json": {"text_config": {"quantization_config": {"quant_method": "awq"}}}},
    "compressed-tensors": {"config.json": {"compression_config": {"format": "pack-quantized"}}},
    "ModelOpt": {"hf_quant_config.json": {"producer": {}, "quantization": {"quant_algo": "NVFP4"}}},
    "GPTQ": {"quantize_config.json": {"bits": 4, "group_size": 128}},
    "AWQ too": {"quant_config.json": {"w_bit": 4, "zero_point": True}},
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_configuration_shows_it_where_there_are_integers(tmp_path: Path, what: str) -> None:
    for name, content in CONFIGS[what].items():
        (tmp_path / name).write_text(json.dumps(content))
    method = what.removesuffix(" too")
    assert packed(model(q=("I8", (4, 4))), tmp_path, ()) == Packed(method, "q")
    assert packed(SCALED["MLX"], tmp_path, ()) == Packed(method, "l.weight")
    for case in ("buffers", "simulated quantization"):
        assert packed(PLAIN[case], tmp_path, ()) is None
    assert packed(model(q=FLOAT, seen=("I64", ())), tmp_path, ()) is None


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", '{"quantization_config": null}', '{"quantization": "none"}', '{"quantization_config": {}}'],
)
def test_configurations_that_say_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert packed(model(q=("I8", (4, 4))), tmp_path, ()) is None


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"})


def mlx(step: int) -> dict[str, torch.Tensor]:
    return {
        "l.weight": torch.full((8, 4), step, dtype=torch.int32).view(torch.uint32),
        "l.scales": torch.full((8, 1), float(step)),
        "l.biases": torch.zeros(8, 1),
        "norm.weight": torch.full((8,), float(step)),
    }


def test_packed_weights_are_refused_by_the_command(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    for step in (100, 200):
        write(tmp_path / f"run/checkpoint-{step}/model.safetensors", mlx(step))
    ran = belay("average", tmp_path / "run", "-o", "out")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        "belay: 'l.weight' is packed by quantization, with scales in 'l.scales': "
        "an average of packed numbers is noise\n"
        "       average the checkpoints from before quantization, then quantize the average\n"
    )
    ran = belay("average", tmp_path / "run", "-o", "out", "--last", "l.weight")
    assert "'l.scales' is packed by quantization" in ran.err
    assert belay("average", tmp_path / "run", "-o", "out", "--last", "l.*", "--half-life", "1step").code == 0
    out = load_file("out/model.safetensors")
    assert out["l.scales"].tolist() == [[200.0]] * 8
    assert 100 < out["norm.weight"][0] < 200


def test_what_only_looks_packed_can_be_kept(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    for step in (100, 200):
        levels = torch.ones(8, 8, dtype=torch.int8)
        write(tmp_path / f"step_{step}.safetensors", {"l.levels": levels, "l.scale": torch.full((8,), float(step))})
    paths = sorted(tmp_path.glob("*.safetensors"))
    ran = belay("average", *paths, "-o", "out.safetensors")
    assert ran.err.endswith("then quantize the average; if it is no weight: --last 'l.levels'\n")
    assert belay("average", *paths, "-o", "out.safetensors", "--last", "l.levels").code == 0
    assert 100 < load_file("out.safetensors")["l.scale"][0] < 200
