"""The rules of the Hub for the metadata of a model card. It checks a card before it takes a commit.

What belay holds to:

    language             ISO 639 codes of two or three letters, or `code`, `multilingual`
    license              an identifier of the Hub's list; anything else is `other` with license_name
    license_name         small letters, digits, dots and dashes; only with `license: other`
    license_link         a URL, or LICENSE or LICENSE.md in the repository; only with `license: other`
    library_name         free; the loader that the page offers
    pipeline_tag         a task of the Hub's list, or the page shows a warning
    base_model           the id of a model on the Hub, or several; never a path
    base_model_relation  adapter, finetune, merge or quantized; says nothing without base_model
    datasets, metrics    lists of ids
    tags                 a list of texts
    model-index          name, and results; each with task.type, dataset.type, dataset.name, and metrics with type and
                         value; config is text
"""

from __future__ import annotations

_LICENSES = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3
llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0
other pddl postgresql unknown unlicense wtfpl zlib
"""

_PIPELINE_TAGS = """
any-to-any audio-classification audio-text-to-text audio-to-audio automatic-speech-recognition depth-estimation
document-question-answering feature-extraction fill-mask graph-ml image-classification image-feature-extraction
image-segmentation image-text-to-text image-to-3d image-to-image image-to-text image-to-video keypoint-detection
mask-generation object-detection question-answering reinforcement-learning robotics sentence-similarity
summarization table-question-answering tabular-classification tabular-regression text-classification
text-generation text-ranking text-to-3d text-to-audio text-to-image text-to-speech text-to-video
text2text-generation time-series-forecasting token-classification translation unconditional-image-generation
video-classification video-text-to-text visual-document-retrieval visual-question-answering
voice-activity-detection zero-shot-classification zero-shot-image-classification zero-shot-object-detection
"""

LICENSES = frozenset(_LICENSES.split())
PIPELINE_TAGS = frozenset(_PIPELINE_TAGS.split())


def is_repo_id(text: str) -> bool:
    """Whether the Hub could have a repository of that id."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.isascii() and text.isprintable()
