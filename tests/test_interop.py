"""Real libraries at both ends: what transformers writes is read, and what belay writes loads again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from belay_cli import average
from tests.conftest import belay_process

STEPS = 13


class Numbers(torch.utils.data.Dataset):
    """Rows of random tokens."""

    def __init__(self):
        self.rows = torch.randint(0, 64, (64, 8), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {"input_ids": self.rows[i], "labels": self.rows[i]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
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


def test_a_run_of_the_trainer_averages_and_loads(trained):
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
    exact = {}
    for checkpoint, entry in zip(
        sorted(checkpoints, key=lambda p: int(p.name[11:])), report["checkpoints"], strict=True
    ):
        for name, tensor in load_file(checkpoint / "model.safetensors").items():
            exact[name] = exact.get(name, 0) + entry["coefficient"] * tensor.double()
    state = model.state_dict()
    for name, tensor in exact.items():
        torch.testing.assert_close(state[name], tensor.float(), rtol=1e-6, atol=1e-9)
    assert torch.isfinite(model(input_ids=torch.tensor([[1, 2, 3]])).logits).all()


def test_a_sharded_output_loads(trained):
    average([trained], "sharded", method="belay", max_shard_size="10kB", dtype="bfloat16")
    assert len(list(Path("sharded").glob("*.safetensors"))) > 1
    model, loading = AutoModelForCausalLM.from_pretrained("sharded", output_loading_info=True, dtype=torch.bfloat16)
    assert not any(loading.values()), loading
    assert model.lm_head.weight.dtype == torch.bfloat16
    average([trained], "whole", method="belay", dtype="bfloat16")
    assert torch.equal(
        model.state_dict()["model.norm.weight"], load_file("whole/model.safetensors")["model.norm.weight"]
    )


def test_sharded_checkpoints_of_transformers_are_read(trained, tmp_path):
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
