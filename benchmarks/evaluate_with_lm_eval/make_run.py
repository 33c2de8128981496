"""Make a run for lm_eval to judge: a tiny Llama that Trainer trained, and two tasks over text it has not seen.

    python benchmarks/evaluate_with_lm_eval/make_run.py OUT

Writes OUT/run/checkpoint-2600 … checkpoint-4800 and OUT/task, for lm_eval's --include_path. The text is the source of
this Python's standard library, and a token is a byte: nothing is downloaded. The learning rate is constant and high for
batches of four, so the gradient noise keeps the weights moving about, and that is the case that averaging is for.
"""

from __future__ import annotations

import argparse
import json
import random
import sysconfig
from pathlib import Path
from string import Template

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

START = "<|start|>"  # before each piece; lm_eval puts it there too
PIECE = 63  # bytes of text: with the start, the window of the model
STEPS = 4800
EVERY = 200  # steps between checkpoints
KEPT = 12  # the last: while the loss still falls fast, an average is of weights long past
BATCH = 4
LEARNING_RATE = 5e-3
PIECES = 256  # of the task in bits a byte
QUESTIONS = 256  # of the multiple choice
CHOICES = 4
PROMPT, ENDING = 48, 8  # bytes

COMMON = """\
task: $name
dataset_path: json
dataset_kwargs: {data_files: {test: $data}}
test_split: test
metadata: {version: 1}
"""

TEXT = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
"""

ENDINGS = """\
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


def main() -> None:
    """Write the tasks and the run."""
    parser = argparse.ArgumentParser(description="Make a run, and the tasks by which lm_eval judges it.")
    parser.add_argument("out", type=Path, metavar="OUT", help="a directory to make")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the batches; default 0")
    options = parser.parse_args()
    out: Path = options.out.resolve()  # a task names its data by path, and lm_eval may run anywhere
    if out.exists():
        parser.error(f"{out} exists")

    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    held_out = modules[::10]
    write_tasks(out / "task", source(held_out))
    train(out / "run", source([module for module in modules if module not in held_out]), options.seed)


def source(modules: list[Path]) -> str:
    """Their text, in ASCII: a character is a byte and a token."""
    return "\n".join(module.read_text("ascii", "ignore") for module in modules)


def write_tasks(directory: Path, unseen: str) -> None:
    """A YAML file a task, and its data beside it."""
    directory.mkdir(parents=True)
    chance = random.Random(0)  # whatever --seed is, so that runs are judged alike

    def cut(length: int) -> str:
        start = chance.randrange(len(unseen) - length)
        return unseen[start : start + length]

    pieces = [{"text": cut(PIECE)} for _ in range(PIECES)]
    questions = []
    for _ in range(QUESTIONS):
        whole, answer = cut(PROMPT + ENDING), chance.randrange(CHOICES)
        choices = [cut(ENDING) for _ in range(CHOICES)]
        choices[answer] = whole[PROMPT:]
        questions.append({"prompt": whole[:PROMPT], "choices": choices, "answer": answer})

    for name, kind, rows in (("stdlib_text", TEXT, pieces), ("stdlib_endings", ENDINGS, questions)):
        data = directory / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        common = Template(COMMON).substitute(name=name, data=json.dumps(str(data)))
        (directory / f"{name}.yaml").write_text(common + kind)


def train(run: Path, seen: str, seed: int) -> None:
    """The run as Trainer writes it, without the states of the optimizer."""
    torch.set_num_threads(1)  # every sum has one order; and for a model this small more threads are slower
    torch.manual_seed(seed)
    tokenizer = bytes_as_tokens()
    starts = range(0, len(seen) - PIECE + 1, PIECE)
    rows: list[list[int]] = tokenizer([START + seen[start : start + PIECE] for start in starts])["input_ids"]
    ids = {f"{name}_token_id": tokenizer.bos_token_id for name in ("bos", "eos", "pad")}
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=PIECE + 1, tie_word_embeddings=True, **ids,
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(run), max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant", save_steps=EVERY, save_total_limit=KEPT, save_only_model=True,
        logging_steps=EVERY, seed=seed, full_determinism=True, use_cpu=True, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in rows]
    Trainer(LlamaForCausalLM(config), arguments, train_dataset=data, processing_class=tokenizer).train()


def bytes_as_tokens() -> PreTrainedTokenizerFast:
    """A tokenizer of 256 bytes and the start, which nobody had to train."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: token for token, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=START, pad_token=START)


if __name__ == "__main__":
    main()
