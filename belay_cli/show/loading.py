"""How an output is loaded: the library and the class that its files ask for, for the card and for the terminal."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belay_cli.formats.dcp import METADATA

# The end of an architecture's name -> its task; with `AutoModel` before it, the class of transformers that loads it.
HEADS = {
    "ForCausalLM": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection",
    "ForSemanticSegmentation": "image-segmentation",
    "ForDepthEstimation": "depth-estimation",
    "ForAudioClassification": "audio-classification",
    "ForCTC": "automatic-speech-recognition",
}
# The task of an adapter -> the end of the class of peft that loads it.
_ADAPTERS = {
    "CAUSAL_LM": "ForCausalLM",
    "SEQ_2_SEQ_LM": "ForSeq2SeqLM",
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "FEATURE_EXTRACTION": "ForFeatureExtraction",
}
CONFIGS = ("config.json", "adapter_config.json", "model_index.json")  # the first that is there says what a model is
_LARGEST = 10_000_000  # bytes of a configuration


@dataclass(frozen=True)
class Loader:
    """A class of a library, and whether the model has code of its own, which runs only if that is allowed."""

    library: str
    name: str
    own_code: bool = False

    def call(self, where: str) -> str:
        """The expression that loads what is at `where`: a directory, or an id of the Hub."""
        method = "" if self.name == "SentenceTransformer" else ".from_pretrained"
        return f"{self.name}{method}({quoted(where)}{', trust_remote_code=True' if self.own_code else ''})"


def find_loader(copies: Collection[str], config: Mapping[str, Any]) -> Loader | None:
    """What loads an output with these files beside its weights; None if only its tensors can be loaded."""
    library, name = infer_library(copies, config), architecture(config)
    if library == "transformers" and name:
        return Loader(library, _auto_class(config, name), "auto_map" in config)
    if library == "diffusers" and name:
        return Loader(library, name)
    if library == "sentence-transformers":
        return Loader("sentence_transformers", "SentenceTransformer")
    if library == "peft":
        return Loader(library, "AutoPeftModel" + _ADAPTERS.get(str(config.get("task_type")), ""))
    return None


def infer_library(copies: Collection[str], config: Mapping[str, Any]) -> str | None:
    """The library that loads an output, as its files say; None rather than a guess."""
    if "modules.json" in copies:
        return "sentence-transformers"
    if "peft_type" in config or "adapter_config.json" in copies:
        return "peft"
    if "_class_name" in config or "_diffusers_version" in config:
        return "diffusers"
    known = "architectures" in config or "model_type" in config
    return "transformers" if known and "transformers_version" in config else None


def architecture(config: Mapping[str, Any]) -> str:
    """The class that a config names; empty if it names none that could be one."""
    names = config.get("architectures")
    name = config.get("_class_name") or (names[0] if isinstance(names, list) and names else "")
    return name if isinstance(name, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,99}", name) else ""


def _auto_class(config: Mapping[str, Any], name: str) -> str:
    """The Auto class of the architecture's head; without one that is known, the architecture itself."""
    head = next((head for head in HEADS if name.endswith(head)), None)
    if head or name.endswith("LMHeadModel"):
        return "AutoModel" + (head or "ForCausalLM")
    return "AutoModel" if name.endswith("Model") or "auto_map" in config else name


def load_line_of_same(output: Path) -> str | None:
    """The same of an output in the files of its last checkpoint; None if only its trainer knows how."""
    if not output.is_dir():
        return f"torch.load({quoted(str(output))})"
    if (output / METADATA).is_file():
        return f"torch.distributed.checkpoint.load(state_dict, checkpoint_id={quoted(str(output))})"
    copies = [path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()]
    loader = find_loader(copies, _config(output))
    return f"{loader.library}.{loader.call(str(output))}" if loader else None


def load_line(output: Path) -> str:
    """One line of Python that loads an output which is there, a file or a directory."""
    if not output.is_dir():
        return _tensors(output)
    copies = [path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()]
    if loader := find_loader(copies, _config(output)):
        return f"{loader.library}.{loader.call(str(output))}"
    weights = sorted(output.rglob("*.safetensors"))
    if len(weights) == 1:
        return _tensors(weights[0])
    where = f'Path({quoted(str(output))}).rglob("*.safetensors")'
    if all(path.parent == output for path in weights):
        return f"{{name: w for file in {where} for name, w in safetensors.torch.load_file(file).items()}}"
    return f"{{str(file): safetensors.torch.load_file(file) for file in {where}}}"


def _tensors(file: Path) -> str:
    return f"safetensors.torch.load_file({quoted(str(file))})"


def _config(output: Path) -> dict[str, Any]:
    """The first configuration that is there and can be read; empty without one."""
    for path in (output / name for name in CONFIGS):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            if path.stat().st_size <= _LARGEST and isinstance(found := json.loads(path.read_bytes()), dict):
                return found
    return {}


def quoted(text: str) -> str:
    """A string of Python in double quotes."""
    return json.dumps(text, ensure_ascii=False)
