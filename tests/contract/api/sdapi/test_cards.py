"""What workers tell of a model's files: hashes and embeddings, in lists, options and infotext."""

import json

import pytest

from deployments.tasks.card import EmbeddingCard, ModelCard

SMALL = {"prompt": "a fox", "steps": 3, "width": 64, "height": 64}
SHA = "6ce0161689" + "ab" * 27
ZEBRA = EmbeddingCard(
    vectors=2, width=768, sha256="c0ffee" * 10 + "c0ff", step=500, checkpoint_name="v1-5"
)


@pytest.fixture
async def told(webui):
    """webui, with a worker's card of the default model."""
    settings = webui.api.settings
    name = settings.default_model
    card = ModelCard(
        source=settings.models[name].source,
        sha256=SHA,
        embeddings={"zebra": ZEBRA},
        skipped={"large": EmbeddingCard(vectors=1, width=2048, reason="large: too wide")},
    )
    await webui.api.services.store.cards.put(name, card)
    return webui


async def test_a_checkpoint_is_listed_with_its_hash(told):
    name = told.api.settings.default_model
    (item,) = await told.get("sd-models")
    assert (item["title"], item["model_name"]) == (f"{name} [6ce0161689]", name)
    assert (item["hash"], item["sha256"]) == ("6ce0161689", SHA)
    options = await told.get("options")
    assert options["sd_model_checkpoint"] == item["title"]
    assert options["sd_checkpoint_hash"] == SHA
    assert await told.posted("options", **options) is None


@pytest.mark.parametrize("word", [SHA, SHA[:10], f"anything [{SHA[:10]}]"])
async def test_a_checkpoint_is_found_by_its_hash(told, word):
    over = {"sd_model_checkpoint": word}
    if word.startswith("anything"):
        assert await told.refusal("txt2img", override_settings=over) == (422, "override_settings")
        return
    await told.draw("txt2img", **SMALL, override_settings=over)
    assert told.order["model"] == told.api.settings.default_model


async def test_the_card_of_another_source_tells_nothing(webui):
    name = webui.api.settings.default_model
    await webui.api.services.store.cards.put(name, ModelCard(source="another", sha256=SHA))
    (item,) = await webui.get("sd-models")
    assert (item["title"], item["hash"]) == (name, None)


async def test_embeddings_are_those_of_the_caller_s_model(told):
    assert await told.get("embeddings") == {
        "loaded": {
            "zebra": {
                "step": 500,
                "sd_checkpoint": None,
                "sd_checkpoint_name": "v1-5",
                "shape": 768,
                "vectors": 2,
            }
        },
        "skipped": {
            "large": {
                "step": None,
                "sd_checkpoint": None,
                "sd_checkpoint_name": None,
                "shape": 2048,
                "vectors": 1,
                "reason": "large: too wide",
            }
        },
    }


async def test_infotext_tells_hashes_of_model_loras_and_embeddings(told):
    lora = await told.api.lora("ink")
    prompt = "a Zebra, <lora:ink:0.5>"
    answer = await told.draw("txt2img", **SMALL | {"prompt": prompt})
    (infotext,) = (await told.posted("png-info", image=answer["images"][0]),)
    parameters = infotext["parameters"]
    assert parameters["Model hash"] == "6ce0161689"
    assert parameters["TI hashes"] == "zebra: c0ffeec0ffee"
    name, digits = parameters["Lora hashes"].split(": ")
    assert name == lora["name"] == "ink"
    assert digits == told.order["loras"][0]["data_sha256"][:12]
    again = await told.draw("txt2img", **SMALL | {"prompt": "zebras, a lion"})
    assert "TI hashes" not in again["info"]
    assert "Lora hashes" not in again["info"]


async def test_dyn_of_a_lora_is_its_rank(told):
    await told.api.lora("ink")
    await told.draw("txt2img", **SMALL | {"prompt": "a fox <lora:ink:0.5:0.7:2>"})
    (worn,) = told.order["loras"]
    assert (worn["text_weight"], worn["weight"], worn["rank"]) == (0.5, 0.7, 2)
    refused = await told.refusal("txt2img", **SMALL | {"prompt": "<lora:ink:1:1:0>"})
    assert refused == (422, "prompt")


async def test_no_hypernetwork_is_here(told):
    assert await told.get("hypernetworks") == []
    answer = await told.draw("txt2img", **SMALL | {"prompt": "a fox <hypernet:a:1>"})
    assert told.order["prompt"] == "a fox "
    assert "Hypernetworks are not here: 'a'" in json.loads(answer["info"])["comments"]
