"""Real libraries at both ends: what transformers writes is read, and what belay writes loads again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from belay_cli import average
from tests.conftest import Ran, belay_process
from tests.fakes.hub import HubServer, hub_client

STEPS = 13


class Numbers(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Rows of random tokens."""

    def __init__(self) -> None:
        self.rows = torch.randint(0, 64, (64, 8), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> Any:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        return {"input_ids": self.rows[i], "labels": self.rows[i]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of the real Trainer: 13 checkpoint directories with optimizer, scheduler and rng files."""
    directory = tmp_path_factory.mktemp("trainer") / "run"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=True, **sizes))
    arguments = TrainingArguments(
        output_dir=str(directory),
        max_steps=STEPS,
        save_steps=1,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
    )
    Trainer(model=model, args=arguments, train_dataset=Numbers()).train()
    return directory


pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


def test_a_run_of_the_trainer_averages_and_loads(trained: Any) -> None:
    checkpoints = sorted(trained.glob("checkpoint-*"))
    assert len(checkpoints) == STEPS
    assert all((checkpoint / "optimizer.pt").exists() for checkpoint in checkpoints)
    done = belay_process("average", *checkpoints, "--json", "--half-life", "2checkpoints")
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert [entry["step"] for entry in report["checkpoints"]] == list(range(1, STEPS + 1))
    names = sorted(path.name for path in Path("belay-average").iterdir())
    assert "model.safetensors" in names
    assert "config.json" in names
    assert not {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin"} & set(names)

    model, loading = AutoModelForCausalLM.from_pretrained("belay-average", output_loading_info=True)
    assert not any(loading.values()), loading
    exact: dict[str, Any] = {}
    for checkpoint, entry in zip(
        sorted(checkpoints, key=lambda p: int(p.name[11:])), report["checkpoints"], strict=True
    ):
        for name, tensor in load_file(checkpoint / "model.safetensors").items():
            exact[name] = exact.get(name, 0) + entry["coefficient"] * tensor.double()
    state = model.state_dict()
    for name, tensor in exact.items():
        torch.testing.assert_close(state[name], tensor.float(), rtol=1e-6, atol=1e-9)
    assert torch.isfinite(model(input_ids=torch.tensor([[1, 2, 3]])).logits).all()


def test_a_sharded_output_loads(trained: Any) -> None:
    average([trained], "sharded", method="belay", max_shard_size="10kB", dtype="bfloat16")
    assert len(list(Path("sharded").glob("*.safetensors"))) > 1
    model, loading = AutoModelForCausalLM.from_pretrained("sharded", output_loading_info=True, dtype=torch.bfloat16)
    assert not any(loading.values()), loading
    assert model.lm_head.weight.dtype == torch.bfloat16
    average([trained], "whole", method="belay", dtype="bfloat16")
    assert torch.equal(
        model.state_dict()["model.norm.weight"], load_file("whole/model.safetensors")["model.norm.weight"]
    )


def test_sharded_checkpoints_of_transformers_are_read(trained: Any, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    for step in (1, 5, 9):
        model = LlamaForCausalLM.from_pretrained(trained / f"checkpoint-{step}")
        model.save_pretrained(tmp_path / f"sharded/checkpoint-{step}", max_shard_size="10kB")
        model.save_pretrained(whole / f"checkpoint-{step}")
    assert len(list((tmp_path / "sharded/checkpoint-1").glob("*.safetensors"))) > 1
    average([tmp_path / "sharded"], "a.safetensors")
    average([whole], "b.safetensors")
    a, b = load_file("a.safetensors"), load_file("b.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_what_is_published_loads_and_verifies(trained: Any, tmp_path: Path, belay: Callable[..., Ran]) -> None:
    average([trained], "out", method="belay")
    with HubServer({"hf_w": "write"}) as server, hub_client(server, tmp_path / "home", "hf_w"):
        assert belay("push", "out", "org/name").code == 0
        text = server.repo("org/name").files()["README.md"].decode()
        assert 'AutoModelForCausalLM.from_pretrained("org/name")' in text
        there = snapshot_download("org/name", cache_dir=tmp_path / "cache")
    model = AutoModelForCausalLM.from_pretrained(there)
    averaged = load_file("out/model.safetensors")
    assert torch.equal(model.get_input_embeddings().weight, averaged["model.embed_tokens.weight"])
    ran = belay("verify", there, "--checkpoints", trained)
    assert ran.code == 0, ran.out


def test_a_tied_head_that_only_some_checkpoints_have(trained: Any, tmp_path: Path, belay: Callable[..., Ran]) -> None:
    run = tmp_path / "run"
    for step in (1, 2, 3):
        shutil.copytree(trained / f"checkpoint-{step}", run / f"checkpoint-{step}")
    path = run / "checkpoint-2/model.safetensors"
    state = load_file(path)
    assert "lm_head.weight" not in state
    save_file({**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()}, path, metadata={"format": "pt"})
    ran = belay("average", run, "-o", "out")
    assert ran.code == 0, ran.err
    assert "note: lm_head.weight is only in some checkpoints; config.json says it is tied" in ran.err
    assert "lm_head.weight" not in load_file("out/model.safetensors")
    assert belay("verify", "out").code == 0
    config = run / "checkpoint-3/config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false'))
    ran = belay("average", run, "-o", "other")
    assert ran.code == 1
    assert "checkpoint-1: has no 'lm_head.weight', which checkpoint-2 has" in ran.err
    assert "--drop 'lm_head.weight'" in ran.err


PACKED = {
    "GPTQ or AWQ": {"q.qweight": torch.ones(4, 4, dtype=torch.int32)},
    "bitsandbytes": {"q.weight.quant_state.bitsandbytes__nf4": torch.ones(4, dtype=torch.uint8)},
    "compressed-tensors": {"q.weight_packed": torch.ones(4, 4, dtype=torch.int32)},
    "fp8 with scales": {"q.weight_scale_inv": torch.ones(4)},
}


@pytest.mark.parametrize("what", PACKED)
def test_packed_weights_are_refused(belay: Callable[..., Ran], what: str) -> None:
    for step in (1, 2):
        Path(f"run/checkpoint-{step}").mkdir(parents=True)
        save_file({**PACKED[what], "norm.weight": torch.ones(4)}, f"run/checkpoint-{step}/model.safetensors")
    (name,) = PACKED[what]
    ran = belay("average", "run", "-o", "out")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        f"belay: '{name}' is packed by {what}: an average of packed numbers is noise\n"
        "       average the checkpoints from before quantization, then quantize the average\n"
    )


def test_packed_weights_are_known_by_the_configuration_too(belay: Callable[..., Ran]) -> None:
    for step in (1, 2):
        Path(f"run/checkpoint-{step}").mkdir(parents=True)
        save_file({"q": torch.ones(4, 4, dtype=torch.int8)}, f"run/checkpoint-{step}/model.safetensors")
        Path(f"run/checkpoint-{step}/config.json").write_text('{"quantization_config": {"quant_method": "hqq"}}')
    assert "'q' is packed by HQQ" in belay("average", "run", "-o", "out").err
    assert belay("average", "run", "-o", "out", "--last", "q").code == 0
