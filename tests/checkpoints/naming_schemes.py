"""What trainers name their checkpoints, and what belay must make of it.

A name that ends in a slash is a directory with weights in it. `beside` lies in the same run directory and is no
checkpoint of it; given together with the others it is refused.
"""

from __future__ import annotations

from typing import NamedTuple


class Scheme(NamedTuple):
    """`names`: oldest first. `steps`: the ticks; None where checkpoints are counted. `refused`: a part of the message.

    `run`: whether the directory of all names is a run directory.
    """

    trainer: str
    source: str
    names: tuple[str, ...]
    steps: tuple[int, ...] | None = None
    refused: str = ""
    beside: tuple[str, ...] = ()
    run: bool = True


def _of(template: str, *numbers: object) -> tuple[str, ...]:
    return tuple(template.format(*n) if isinstance(n, tuple) else template.format(n) for n in numbers)


COMMON = "no one trainer"

SCHEMES = (
    Scheme("HF Trainer", "transformers/trainer_utils.py", _of("checkpoint-{}/", 200, 1000), (200, 1000)),
    Scheme("HF Trainer, final save", "transformers/trainer.py", _of("checkpoint-{}/", 5, 10), (5, 10), "",
           ("model.safetensors",)),
    Scheme("TRL, LLaMA-Factory, axolotl", "trl/trainer/sft_trainer.py", _of("checkpoint-{}/", 90, 100), (90, 100), "",
           ("adapter_model.safetensors",)),
    Scheme("accelerate", "accelerate/accelerator.py", _of("checkpoint_{}/", 2, 10)),
    Scheme("Lightning", "lightning/pytorch/callbacks/model_checkpoint.py", _of("epoch={}-step={}.ckpt", (0, 900),
           (1, 1800)), (900, 1800)),
    Scheme("Lightning, with a metric", "lightning/pytorch/callbacks/model_checkpoint.py",
           _of("epoch={}-val_loss={}.ckpt", (2, "0.31"), (9, "0.30"), (10, "0.34"))),
    Scheme("torchtitan", "torchtitan/components/checkpoint.py", _of("step-{}/", 500, 1000), (500, 1000)),
    Scheme("OLMo", "olmo/checkpoint.py", _of("step{}-unsharded/", 900, 1000), (900, 1000)),
    Scheme("OLMo-core", "src/olmo_core/train/callbacks/checkpointer.py", _of("step{}/", 0, 1000), (0, 1000)),
    Scheme("OLMo, revisions", "allenai/OLMo-2-1124-7B", _of("stage1-step{}-tokens{}B/", (150, 1), (10600, 45)),
           (150, 10600)),
    Scheme("pythia, revisions", "EleutherAI/pythia-70m", _of("step{}/", 0, 512, 143000), (0, 512, 143000)),
    Scheme("TinyLlama", "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
           _of("step-{}k-{}/", (50, "105b"), (240, "503b")), (50_000, 240_000)),
    Scheme("nanoGPT forks", "karpathy/nanoGPT/train.py", _of("ckpt_{}.pt", 100, 250, 2000), None, "", ("ckpt.pt",)),
    Scheme("LitGPT", "litgpt/pretrain.py", _of("step-{:08}/lit_model.pth", 900, 1000), (900, 1000)),
    Scheme("Megatron-LM", "megatron/training/checkpointing.py", _of("iter_{:07}/", 900, 1000), (900, 1000)),
    Scheme("DeepSpeed", "deepspeed/runtime/engine.py", _of("global_step{}/", 9, 10), (9, 10), "",
           ("global_step10-hf/",)),
    Scheme("NeMo", "nemo/utils/exp_manager.py",
           _of("gpt--val_loss={}-step={}-consumed_samples={}.0.ckpt", ("2.31", 900, 7200), ("2.4", 1000, 8000)),
           (900, 1000)),
    Scheme("fairseq, epochs", "fairseq/checkpoint_utils.py", _of("checkpoint{}.pt", 2, 9, 10), None, "",
           ("checkpoint_best.pt", "checkpoint_last.pt")),
    Scheme("fairseq, updates", "fairseq/checkpoint_utils.py", _of("checkpoint_{}_{}.pt", (1, 900), (2, 1000))),
    Scheme("ESPnet", "espnet2/train/trainer.py", _of("{}epoch.pth", 2, 9, 10), None, "",
           ("valid.acc.ave_10best.pth", "valid.acc.ave.pth", "latest.pth")),
    Scheme("icefall", "icefall/checkpoint.py", _of("epoch-{}.pt", 9, 10, 30), None, "",
           ("epoch-30-avg-9.pt", "best-valid-loss.pt")),
    Scheme("icefall, batches", "icefall/checkpoint.py", _of("checkpoint-{}.pt", 4000, 12000), (4000, 12000)),
    Scheme("WeNet", "wenet/utils/executor.py", _of("epoch_{}.pt", 2, 10), None, "", ("avg_30.pt", "final.pt")),
    Scheme("WeNet, bare", "wenet/utils/executor.py", _of("{}.pt", 2, 9, 10), None, "", ("avg_30.pt",)),
    Scheme("WeNet, within epochs", "wenet/utils/executor.py",
           ("epoch_0_step_900.pt", "epoch_1_step_100.pt", "epoch_1_step_900.pt", "epoch_2_step_50.pt")),
    Scheme("timm", "timm/utils/checkpoint_saver.py", _of("checkpoint-{}.pth.tar", 9, 10, 100), None, "",
           ("model_best.pth.tar", "averaged.pth")),
    Scheme("mmengine, epochs", "mmengine/hooks/checkpoint_hook.py", _of("epoch_{}.pth", 2, 10), None, "",
           ("best_coco_bbox_mAP_epoch_12.pth",)),
    Scheme("mmengine, iterations", "mmengine/hooks/checkpoint_hook.py", _of("iter_{}.pth", 900, 1000), (900, 1000)),
    Scheme("detectron2", "fvcore/common/checkpoint.py", _of("model_{:07}.pth", 4999, 9999, 10_000), None, "",
           ("model_final.pth",)),
    Scheme("nerfstudio", "nerfstudio/engine/trainer.py", _of("step-{:09}.ckpt", 1999, 29999), (1999, 29999)),
    Scheme("sd-scripts, epochs", "sd-scripts/library/train_util.py", _of("mylora-{:06}.safetensors", 1, 2, 10), None,
           "", ("mylora.safetensors",)),
    Scheme("sd-scripts, steps", "sd-scripts/library/train_util.py", _of("at-step{:08}.safetensors", 200, 1000),
           (200, 1000), "", ("last.safetensors",)),
    Scheme("OneTrainer", "modules/util/TrainProgress.py",
           ("2024-05-02_08-11-45-save-530-5-30.safetensors", "2024-05-02_08-31-45-save-1010-10-10.safetensors"),
           (530, 1010), "", (), False),
    Scheme("diffusers", "examples/text_to_image/train_text_to_image.py", _of("checkpoint-{}/unet/", 500, 1000),
           (500, 1000)),
    Scheme("diffusers, second encoder", "examples/dreambooth/train_dreambooth_lora_sdxl.py",
           _of("checkpoint-{}/text_encoder_2/", 500, 1000), (500, 1000)),
    Scheme("ai-toolkit", "jobs/process/BaseSDTrainProcess.py", _of("flux_{:09}.safetensors", 250, 500, 2000), None, "",
           ("flux.safetensors",)),
    Scheme("SimpleTuner", "simpletuner/helpers/training/trainer.py", _of("checkpoint-{}/", 50, 100), (50, 100)),
    Scheme("LeRobot", "src/lerobot/utils/train_utils.py", _of("{:06}/pretrained_model/", 9000, 10000, 20000)),
    Scheme("Composer", "composer/callbacks/checkpoint_saver.py", _of("ep0-ba{}-rank0.pt", 200, 1000, 10000, 200000),
           None, "", ("latest-rank0.pt",)),
    Scheme("Composer, ranks", "composer/callbacks/checkpoint_saver.py", _of("ep0-ba200-rank{}.pt", 0, 1), None,
           "one rank had", (), False),
    Scheme("torchtune", "torchtune/training/checkpointing/_checkpointer.py", _of("epoch_{}/", 0, 2, 10)),
    Scheme("EDM2", "training/training_loop.py", _of("network-snapshot-{:07}-0.050.pt", 67, 1000), None),
    Scheme("guided-diffusion", "guided_diffusion/train_util.py", _of("model{:06}.pt", 10000, 200000, 1000000), None, "",
           ("ema_0.9999_010000.pt", "opt010000.pt")),
    Scheme("DiT, SiT", "facebookresearch/DiT/train.py", _of("{:07}.pt", 50000, 100000)),
    Scheme("VISSL", "vissl/hooks/state_update_hooks.py", _of("model_phase{}.pth", 2, 10)),
    Scheme("ultralytics", "ultralytics/engine/trainer.py", _of("epoch{}.pt", 5, 10), None, "", ("best.pt", "last.pt")),
    Scheme("YOLOX", "yolox/core/trainer.py", _of("epoch_{}_ckpt.pth", 9, 10), None, "",
           ("latest_ckpt.pth", "best_ckpt.pth")),
    Scheme("coqui TTS", "trainer/io.py", _of("checkpoint_{}.pth", 9000, 10000), None, "",
           ("best_model.pth", "best_model_9500.pth")),
    Scheme("VITS, so-vits-svc", "so-vits-svc/train.py", ("G_800.pth", "D_800.pth", "G_1600.pth"), None,
           "is not named as", (), False),
    Scheme("RVC", "infer/lib/train/process_ckpt.py", _of("voice_e{}_s{}.pth", (20, 900), (100, 4500))),
    Scheme("GPT-SoVITS", "GPT_SoVITS/process_ckpt.py", _of("voice-e{}.ckpt", 5, 10, 15)),
    Scheme("F5-TTS", "src/f5_tts/model/trainer.py", _of("model_{}.pt", 900, 1200000), None, "", ("model_last.pt",)),
    Scheme("k-diffusion", "k-diffusion/train.py", _of("model_{:08}.pth", 10000, 200000)),
    Scheme("verl", "verl/utils/checkpoint/checkpoint_manager.py", _of("global_step_{}/actor/huggingface/", 9, 10),
           (9, 10), "", (), False),
    Scheme("EasyR1", "verl/utils/checkpoint/checkpoint_manager.py", _of("global_step_{}/", 5, 10), (5, 10)),
    Scheme("k and M", COMMON, _of("step_{}.pt", "500k", "900k", "1M"),
           (500_000, 900_000, 1_000_000)),
    Scheme("exponents", COMMON, _of("step_{}.pt", "2e4", "5e4", "1e5"), (20_000, 50_000, 100_000)),
    Scheme("thousands", COMMON, _of("step_{}.pt", "9_500", "10_000"), (9500, 10_000)),
    Scheme("sizes in the name", COMMON, _of("llama-7b-{}.pt", 900, 1000)),
    Scheme("a version in the name", COMMON, _of("net-v2_{}.pt", 900, 1000)),
    Scheme("fractions of an epoch", COMMON, _of("epoch_{}.pt", "0.25", "0.50", "1.00"), None,
           "in a decimal number only", (), False),
    Scheme("losses", COMMON, _of("best_{}.pth", "0.53", "0.49"), None, "in a decimal number only",
           (), False),
    Scheme("times", COMMON, _of("model_{}.pt", "2024-05-01_22-58-41", "2024-05-02_00-21-05"), None,
           "in a date only", (), False),
    Scheme("tensorboard's times", "torch/utils/tensorboard/writer.py", _of("{}/", "Mar14_22-58-41", "Apr02_01-01-30"),
           None, "in a date only", (), False),
    Scheme("the Hub's cache", "huggingface_hub/file_download.py", _of("{}/", "7d1c0bb0a3f64c9eab12f0f34c5a8d9e01b7c6fa",
           "0e9f3a2b1c4d5e6f708192a3b4c5d6e7f8091abc"), None, "in a hash only", (), False),
    Scheme("epochs and steps", COMMON, ("checkpoint-step-500.pth", "checkpoint-epoch-1.pth",
           "checkpoint-step-1500.pth", "checkpoint-epoch-2.pth"), None, "is not named as", (), False),
    Scheme("batches of epochs", COMMON, _of("epoch_{}_batch_{}.pt", (1, 900), (2, 50)), None,
           "by one number, and before it by another", (), False),
    Scheme("seeds", COMMON, _of("model_seed{}.pt", 0, 1), None,
           "its place in the series is unknown", (), False),
    Scheme("Meta's ranks", "meta-llama/llama3", _of("consolidated.{:02}.pth", 0, 1), None,
           "one rank had", (), False),
    Scheme("tensor parallel", COMMON, _of("tp_{}.pt", 0, 1), None,
           "one rank had", (), False),
)  # fmt: skip
