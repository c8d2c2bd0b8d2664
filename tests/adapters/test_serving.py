"""What vLLM's rules make of adapters for each family: the table in docs/lora.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_models
import tiny
import vllm_facts
from family_configs import CONFIGS

from jaxft.adapters import algebra, peft_format, serving
from jaxft.config import LoraConfig
from jaxft.lora import targets
from jaxft.models.families import FAMILIES, family_of

PAGE = Path(__file__).parents[2] / "docs" / "lora.md"
# As the 350m OPT, which alone has linear modules outside the layers.
OPT_350M = {**small_models.OPT, "word_embed_proj_dim": 12, "do_layer_norm_before": False}
EVERY = (*CONFIGS, OPT_350M, small_models.OPT, small_models.GPT2)
BY_NAME = {config["model_type"]: config for config in EVERY}
TAKING_LORA = [name for name, served in vllm_facts.SERVED.items() if served.linear]
HEADER = """\
| Families | vLLM's class | An adapter on all linear modules | Beside them |
| --- | --- | --- | --- |
"""


def adapter_of(config, **lora) -> algebra.LoraAdapter:
    """Return an adapter for the model of a config.json, as its file has it."""
    family = family_of(config)
    spec = family.spec_from_config(config)
    wanted = LoraConfig(r=4, **lora)
    network = targets.adapted_network(wanted, family, spec)
    trained = tiny.split(tiny.random_leaves(network), network)[0]
    tensors = peft_format.to_tensors(trained, family, network)
    content = peft_format.adapter_config(wanted, family, spec, "someone/model", None)
    return algebra.parse(content, tensors, Path("adapter"))


def tensors_on(config, **lora) -> set[str]:
    """Return the names of such an adapter's tensors, with nothing computed."""
    family = family_of(config)
    spec = family.spec_from_config(config)
    return {
        f"base_model.model.{module.name}.lora_{side}.weight"
        for module in targets.targeted(LoraConfig(r=4, **lora), family, spec)
        for side in "AB"
    }


def verdicts_on(config, **lora):
    """Return what becomes of an adapter's modules by vLLM's rules for its family."""
    return vllm_facts.verdicts(vllm_facts.SERVED[config["model_type"]], tensors_on(config, **lora))


def kind_of(served: vllm_facts.Served) -> str:
    if not served.linear:
        return "takes no LoRA" if served.file else "none"
    return "its Transformers backend" if served.file == vllm_facts.TRANSFORMERS else "takes LoRA"


def fate_of(config) -> str:
    """Return what the table says of an adapter on all linear modules."""
    served = vllm_facts.SERVED[config["model_type"]]
    if not served.linear:
        return "merge with `jaxft export`" if served.file else "not served, merged or not"
    found = verdicts_on(config, target_modules="all-linear")
    fates = [
        f"{fate} for {', '.join(f'`{each}`' for each in sorted(found[fate]))}: leave it out, "
        "or merge"
        for fate in ("refused", "dropped")
        if found[fate]
    ]
    return "; ".join(fates) or "taken as written"


def table() -> str:
    """Return the table of docs/lora.md, families that fare alike in one row."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for name, config in sorted(BY_NAME.items()):
        served = vllm_facts.SERVED[name]
        beside = ", ".join(f"`{each.rpartition('.')[2]}`" for each in served.embeddings)
        rows.setdefault((kind_of(served), fate_of(config), beside), []).append(name)
    lines = [
        f"| {', '.join(alike)} | {' | '.join(row)} |"
        for row, alike in sorted(rows.items(), key=lambda item: -len(item[1]))
    ]
    return HEADER + "\n".join(lines) + "\n"


def test_the_facts_are_of_the_families_that_there_are():
    assert set(vllm_facts.SERVED) == set(BY_NAME) == {family.model_type for family in FAMILIES}


def test_the_page_has_the_table_that_follows_from_the_facts():
    assert f"\n{table()}\n" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("config", EVERY, ids=lambda config: config["model_type"])
def test_nothing_is_dropped_unsaid_and_a_family_has_one_row(config):
    assert fate_of(config) == fate_of(BY_NAME[config["model_type"]])
    if config["model_type"] in TAKING_LORA:
        assert not verdicts_on(config, target_modules="all-linear")["dropped"]


@pytest.mark.parametrize("name", TAKING_LORA)
def test_an_adapter_on_the_head_is_taken_where_the_table_has_it_beside_the_others(name):
    found = verdicts_on(BY_NAME[name], target_modules=["lm_head"])
    fate = "taken" if "lm_head" in vllm_facts.SERVED[name].embeddings else "refused"
    assert found == {"taken": set(), "dropped": set(), "refused": set()} | {fate: {"lm_head"}}


@pytest.mark.parametrize("name", ["glm", "glm4"])
def test_what_is_refused_can_be_left_out(name):
    lora = {"target_modules": "all-linear", "exclude_modules": ["gate_up_proj"]}
    found = verdicts_on(BY_NAME[name], **lora)
    assert found["taken"]
    assert not found["refused"] | found["dropped"]


def test_a_known_ending_in_an_unknown_place_is_dropped():
    tensors = ["base_model.model.layers.0.self_attn.q_proj.lora_A.weight"]  # one "model." short
    assert vllm_facts.verdicts(vllm_facts.SERVED["llama"], tensors)["dropped"] == {"q_proj"}


@pytest.mark.parametrize(
    "config",
    [BY_NAME["llama"], BY_NAME["gemma3"], BY_NAME["gpt_bigcode"], OPT_350M],
    ids=lambda config: config["model_type"],
)
def test_the_tensors_are_those_that_are_written_and_their_config_is_taken(config):
    adapter = adapter_of(config, target_modules="all-linear")
    tensors = algebra.tensors_of(adapter)
    assert set(tensors) == tensors_on(config, target_modules="all-linear")
    assert serving.vllm_objections(adapter.content, tensors) == []


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_one_with_patterns_can_be_served_once_it_is_folded(name):
    lora = {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}}
    adapter = adapter_of(BY_NAME[name], **lora)
    assert serving.vllm_objections(adapter.content, algebra.tensors_of(adapter))
    folded = algebra.fold(adapter)
    assert serving.vllm_objections(folded.content, algebra.tensors_of(folded)) == []
