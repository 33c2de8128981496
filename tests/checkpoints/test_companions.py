"""The files beside the weights: copied, named in a note, or the trainer's own."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from belay_cli import average
from belay_cli.checkpoints import companions as module
from belay_cli.checkpoints.companions import SECRET_NAMES, Companions, companions, is_companion
from belay_cli.publish.bundle import bundle
from tests.conftest import Ran, make_run

NEEDED = [
    *("config.json", "tokenizer.json", "vocab.txt", "merges.txt", "chat_template.jinja", "modeling.py"),
    *("added_tokens.json", "special_tokens_map.json", "spiece.model", "1_Pooling/config.json", "LICENSE"),
    *("model_config.yaml", "lit_config.json", "hyperparameters.yaml", "params.json", "config.yml", "exp.toml"),
    *("tokenizer.model", "source.spm", "cl100k_base.tiktoken", "vocab.bpe", "bpe.codes", "dict.txt", "dict.en-x.txt"),
    *("rwkv_vocab_v20230424.txt", "en.vocab", "tokens.txt", "sentencepiece.bpe.model", "global_cmvn", "am.mvn"),
    *("cmvn.ark", "lid.176.ftz", "words.txt", "lang_char.txt", "units.txt", "feats_stats.npz", "config.gin", "vocab"),
]
OF_THE_TRAINER = [
    *("trainer_state.json", "optimizer.pt", "training_args.bin", "model.safetensors", "rng_state_0.pth", "log.txt"),
    *("model.safetensors.index.json", "model.safetensors.index.fp16.json", "pytorch_model.bin.index.json"),
    *(".env", "README.md", "all_results.json", "belay.json", "latest", "train.log", "loss.txt", "metrics.csv"),
    *("events.out.tfevents.17.host.1", "scheduler", "random_states_0.pkl", "__0_0.distcp", "samples/grid.txt"),
    *("checkpoint-5/config.json", "2_Dense/model.safetensors", "2_Dense/config.json", "wandb/config.yaml"),
    *("training_args.yaml", "notes/ideas.txt", "tf_model.h5", "nohup.out", "__pycache__/a.py"),
]
SECRET = [
    "hf_token.json",
    "token.json",
    "client_secret.json",
    "secrets.yaml",
    "credentials.toml",
    "id_rsa",
    "auth.json",
]


def write(directory: Path, names: list[str], text: str = "x") -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def test_companions_are_what_a_loader_needs(tmp_path: Path) -> None:
    write(tmp_path, NEEDED + OF_THE_TRAINER)
    assert companions(tmp_path) == Companions(sorted(NEEDED), [], [])


def test_what_a_loader_might_miss_is_named_and_not_copied(tmp_path: Path) -> None:
    write(tmp_path, ["config.json", "lang.fst", "speakers.lst", "cuda_kernel.cu", "nlp/hf_token.json", *SECRET[:1]])
    found = companions(tmp_path)
    assert found.copied == ["config.json"]
    named = ["cuda_kernel.cu", "hf_token.json (a secret by its name)", "lang.fst"]
    assert found.missed == [*named, "nlp/hf_token.json (a secret by its name)", "speakers.lst"]
    assert found.notes == [f"{', '.join(found.missed)} are not copied: copy by hand what a loader needs"]


def test_a_note_names_five_files_and_counts_the_rest(tmp_path: Path) -> None:
    write(tmp_path, [f"{letter}.fst" for letter in "abcdefgh"])
    (note,) = companions(tmp_path).notes
    names = "a.fst, b.fst, c.fst, d.fst, e.fst and 3 more"
    assert note == f"{names} are not copied: copy by hand what a loader needs"


def test_one_file_is_not_copied(tmp_path: Path) -> None:
    write(tmp_path, ["a.fst"])
    assert companions(tmp_path).notes == ["a.fst is not copied: copy by hand what a loader needs"]


@pytest.mark.parametrize("name", SECRET)
def test_a_secret_by_its_name_is_never_copied(tmp_path: Path, name: str) -> None:
    write(tmp_path, [name])
    assert companions(tmp_path) == Companions([], [], [f"{name} (a secret by its name)"])


@given(st.sampled_from(SECRET), st.sampled_from(["", "my_", "hf-", "a.b."]), st.booleans())
def test_no_form_of_a_secret_is_a_companion(name: str, before: str, upper: bool) -> None:
    name = before + name if name != "id_rsa" and name != "auth.json" else name
    assert not is_companion(name.upper() if upper else name)


@given(st.text(alphabet="-_.abtokensvcmr", max_size=255))
def test_no_name_is_a_companion_and_a_secret(name: str) -> None:
    assert not (is_companion(name) and SECRET_NAMES.fullmatch(name))


@pytest.mark.parametrize("part", ["vocab-", "vocab_.", "token.", "dict.txt.", "log_.", "service_account"])
def test_names_of_any_length_are_decided_at_once(part: str) -> None:
    name = (part * 255)[:254] + "!"
    assert (is_companion(name), SECRET_NAMES.fullmatch(name)) == (False, None)


def test_the_weights_are_never_missed(tmp_path: Path) -> None:
    write(tmp_path, ["mp_00", "config.json"])
    assert companions(tmp_path, {"mp_00"}) == Companions(["config.json"], [], [])


def test_a_huge_file_is_data_and_is_not_copied(tmp_path: Path) -> None:
    write(tmp_path, ["config.json", "dataset.json"])
    os.truncate(tmp_path / "dataset.json", module.LARGEST + 1)
    os.truncate(tmp_path / "config.json", module.LARGEST)
    assert companions(tmp_path) == Companions(["config.json"], [], ["dataset.json (over 100 MB)"])


def test_a_name_of_any_characters_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, ["a\nb\x1b[2J.fst"])
    assert companions(tmp_path).missed == [r"'a\nb\x1b[2J.fst'"]


def test_a_link_out_of_a_directory_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("x")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.yaml").symlink_to(tmp_path / "secret.txt")
    (checkpoint / "real.json").write_text("{}")
    (checkpoint / "link.json").symlink_to("real.json")
    assert companions(checkpoint) == Companions(["link.json", "real.json"], ["config.yaml"], [])


def test_the_cache_of_the_hub_is_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--o--n/snapshots/abc"
    snapshot.mkdir(parents=True)
    blob = tmp_path / "models--o--n/blobs/123"
    blob.parent.mkdir()
    blob.write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/123")
    assert companions(snapshot) == Companions(["config.json"], [], [])


def lit_run(directory: Path) -> Path:
    """A run as LitGPT leaves it, with a secret beside."""
    for seed, step in enumerate((100, 200)):
        checkpoint = directory / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        torch.save({"model": {"w": torch.full((2, 3), float(seed))}}, checkpoint / "lit_model.pth")
        write(checkpoint, ["model_config.yaml", "hyperparameters.yaml"], f"step: {step}\n")
        write(checkpoint, ["tokenizer.model", "hf_token.json"])
    return directory


def test_configurations_of_other_libraries_go_with_the_average(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    ran = belay("average", lit_run(tmp_path / "out"), "-o", "avg", "--json")
    assert ran.code == 0
    copied = ["hyperparameters.yaml", "model_config.yaml", "tokenizer.model"]
    digests = {name: hashlib.sha256(Path("avg", name).read_bytes()).hexdigest() for name in copied}
    assert list(json.loads(Path("avg/belay.json").read_text())["copies"].items()) == list(digests.items())
    assert Path("avg/model_config.yaml").read_text() == "step: 200\n"
    assert not Path("avg/hf_token.json").exists()
    note = "hf_token.json (a secret by its name) is not copied: copy by hand what a loader needs"
    assert ran.json["notes"] == [note]
    assert belay("verify", "avg").code == 0
    uploads, notes = bundle(Path("avg"))
    assert {upload.name for upload in uploads} == {"belay.json", "lit_model.safetensors", *copied}
    assert notes == []


def test_an_overwrite_replaces_its_copies_and_no_file_of_yours(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    run = lit_run(tmp_path / "out")
    assert belay("average", run, "-o", "avg", "-q").code == 0
    Path("avg/mine.yaml").write_text("mine")
    for checkpoint in run.iterdir():
        (checkpoint / "hyperparameters.yaml").unlink()
    assert belay("average", run, "-o", "avg", "-q", "--overwrite").code == 0
    assert not Path("avg/hyperparameters.yaml").exists()
    assert Path("avg/model_config.yaml").read_text() == "step: 200\n"
    assert Path("avg/mine.yaml").read_text() == "mine"


def test_a_file_of_yours_stops_a_copy_of_that_name(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    Path("avg").mkdir()
    run = lit_run(tmp_path / "out")
    assert belay("average", run, "-o", "avg", "-q").code == 0
    (run / "step-00000200/new.yaml").write_text("theirs")
    Path("avg/new.yaml").write_text("mine")
    ran = belay("average", run, "-o", "avg", "-q", "--overwrite")
    assert (ran.code, Path("avg/new.yaml").read_text()) == (1, "mine")
    assert ran.err.startswith("belay: avg: holds new.yaml, which belay did not write\n")


def test_checkpoints_given_as_files_take_nothing_with_them(tmp_path: Path) -> None:
    files = sorted(lit_run(tmp_path / "out").glob("*/lit_model.pth"))
    report = average(files, "avg", order="given")
    assert (sorted(path.name for path in Path("avg").iterdir() if path.suffix == ".yaml"), report.notes) == ([], [])


def test_a_file_as_output_takes_nothing_with_it(tmp_path: Path) -> None:
    report = average([make_run(tmp_path / "run")], "avg.safetensors")
    assert [file.path for file in report.files] == ["avg.safetensors"]
    assert not any("not copied" in note for note in report.notes)


def test_configurations_above_a_folder_of_weights_are_named(tmp_path: Path) -> None:
    for step in (100, 200):
        inner = tmp_path / f"run/checkpoint-{step}/model"
        inner.mkdir(parents=True)
        save_file({"w": torch.ones(2, 2) * step}, inner / "model.safetensors")
        write(inner.parent, ["config.yaml", "tokenizer.json", "trainer_state.txt"])
    report = average([tmp_path / "run"], "avg")
    note = "config.yaml, tokenizer.json are not copied: copy by hand what a loader needs"
    assert report.notes == [note]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems have names in Unicode alone")
def test_a_name_that_is_no_unicode_is_not_copied_and_said(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    run = make_run(tmp_path / "run")
    name = os.fsdecode(b"\xff.json")
    for checkpoint in run.iterdir():
        (checkpoint / name).write_text("{}")
    report = average([run], "out")
    said = "'\\udcff.json' (its name is no Unicode) is not copied: copy by hand what a loader needs"
    assert said in report.notes
    assert belay("verify", "out").code == 0
