"""The front matter of a card: what is inherited, and what the Hub takes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard
from hypothesis import given
from hypothesis import strategies as st

from belay_cli.publish.hub_rules import LICENSES, PIPELINE_TAGS
from tests.publish.cards import card, data, document, from_hub, front_matter, json_values


def test_the_base_model_is_the_run_then_what_its_card_says_then_what_its_config_says() -> None:
    doc, source, config = document(), {"base_model": "acme/base"}, {"_name_or_path": "acme/start"}
    assert front_matter(from_hub(document()), source, config)["base_model"] == "acme/run"
    assert front_matter(doc, source, config)["base_model"] == "acme/base"
    assert front_matter(doc, {}, config) | {"tags": 0} == {
        "base_model": "acme/start",
        "base_model_relation": "merge",
        "tags": 0,
    }


@pytest.mark.parametrize(
    "path", ["/data/run", "./run", "run", "out/checkpoint-500", "runs/llama", "a/b/c", "~/x", "C:\\x", 3, None, ""]
)
def test_a_path_is_no_base_model_and_nothing_is_invented(path: str | int | None) -> None:
    assert front_matter(document(), {}, {"_name_or_path": path}) == {"tags": ["belay", "ema", "weight-averaging"]}


def test_several_runs_and_the_repository_itself() -> None:
    doc = from_hub(document())
    doc["series"][0]["repo"] = "acme/other"
    assert front_matter(doc, {}, {})["base_model"] == ["acme/other", "acme/run"]
    assert front_matter(doc, {}, {}, repo_id="acme/run")["base_model"] == "acme/other"
    assert "base_model_relation" not in front_matter(from_hub(document()), {}, {}, repo_id="acme/run")


def test_an_average_of_adapters_is_an_adapter() -> None:
    config = {"peft_type": "LORA"}
    assert front_matter(document(), {"base_model": "acme/base"}, config)["base_model_relation"] == "adapter"
    assert front_matter(from_hub(document()), {}, config)["base_model_relation"] == "merge"


@pytest.mark.parametrize(
    "source, expected",
    [
        ({"license": "mit"}, {"license": "mit"}),
        ({"license": "Apache 2.0"}, {"license": "apache-2.0"}),
        ({"license": ["mit", "apache-2.0"]}, {"license": ["mit", "apache-2.0"]}),
        ({"license": "My Own!"}, {"license": "other", "license_name": "my-own"}),
        (
            {"license": "other", "license_name": "Coqui", "license_link": "https://coqui.ai/cpml"},
            {"license": "other", "license_name": "coqui", "license_link": "https://coqui.ai/cpml"},
        ),
        ({"license": "other", "license_link": "javascript:alert(1)"}, {"license": "other"}),
        ({"license": "mit", "license_link": "LICENSE"}, {"license": "mit"}),
        ({"license": 3}, {}),
        ({"language": "en"}, {"language": "en"}),
        ({"language": ["en", False, "English"]}, {"language": ["en", "no"]}),
        ({"language": "English"}, {}),
        ({"pipeline_tag": "text-generation"}, {"pipeline_tag": "text-generation"}),
        ({"pipeline_tag": "telepathy"}, {}),
        ({"datasets": "imdb"}, {"datasets": ["imdb"]}),
        ({"datasets": ["acme/text", None, "a b", "x/y/z"]}, {"datasets": ["acme/text"]}),
        ({"metrics": ["accuracy", 3]}, {"metrics": ["accuracy"]}),
        ({"library_name": "timm"}, {"library_name": "timm"}),
        ({"widget": [{"text": "x"}], "thumbnail": "x", "extra_gated_prompt": "x"}, {}),
    ],
)
def test_what_is_inherited_obeys_the_rules_of_the_hub(source: dict[str, Any], expected: dict[str, Any]) -> None:
    found = front_matter(document(), source, {})
    assert found.pop("tags") == ["belay", "ema", "weight-averaging"]
    assert found == expected


def test_tags_are_merged() -> None:
    assert front_matter(document(), {"tags": ["ema", "trl", "trl", 3, "a\nb"]}, {})["tags"] == [
        "ema",
        "trl",
        "belay",
        "weight-averaging",
    ]


def test_the_lists_of_the_hub_hold_what_a_model_card_has_most() -> None:
    assert {"mit", "apache-2.0", "llama3.1", "gemma", "other"} <= LICENSES
    assert {"text-generation", "image-classification", "feature-extraction"} <= PIPELINE_TAGS
    assert all(re.fullmatch(r"[a-z0-9.+-]+", word) for word in LICENSES | PIPELINE_TAGS)


keys = st.sampled_from(
    ["license", "license_name", "license_link", "language", "tags", "datasets", "metrics", "base_model", "library_name"]
)


@given(st.dictionaries(keys, json_values | st.lists(st.text(max_size=30), max_size=4)), st.text(max_size=20))
def test_any_source_card_gives_front_matter_that_survives(source: dict[str, Any], metric: str) -> None:
    results = [EvalResult("other", "unknown", "Unknown", metric, 1.5)]
    found = front_matter(document(), source, {}, results)
    text = card(document(), source_card=f"---\n{yaml.safe_dump(source)}---\n", eval_results=results)
    assert data(text) == found
    assert str(ModelCard(text)) == text
    assert ("base_model" in found) == ("base_model_relation" in found)
