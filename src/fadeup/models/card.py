"""Model cards: what a network is, how it is used, what it was trained on, how it scores, where it fails."""

from __future__ import annotations

import inspect
import json
from typing import Any

from fadeup.upsamplers import resolve

MARK = "<!-- Written by fadeup, which replaces it when the network is saved again. Delete this line after editing. -->"
BACKBONES = ("backbone", "trunk")
"""What constructors call the part that others have trained."""
TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ summary }}

| | |
|---|---|
| class | `fadeup.models.{{ kind }}` |
| upsampler | `{{ upsampler }}` |
{% if backbone %}| {{ backbone[0] }} | {{ backbone[1] }} |
{% endif %}| parameters | {{ parameters }}, in float32 |
{% if classes %}| classes | {{ classes | length }}: {{ classes | join(", ") }} |
{% endif %}
## How to use it

```python
import torch
from fadeup.models import {{ kind }}

network = {{ kind }}.from_pretrained("{{ model_id }}")  # a folder, or a name on the hub; in evaluation mode
with torch.no_grad():
    output = network(torch.rand(1, {{ in_channels }}, 128, 160))
print(tuple(output.shape))
```

{{ call }}
{% if mean %}
Normalise pictures in 0–1 by the mean {{ mean }} and the standard deviation {{ std }}.
{% endif %}{% if predict %}
On photographs, where these files are in the folder `{{ folder }}`:

```text
{% if model_id != folder %}hf download {{ model_id }} --local-dir {{ folder }}
{% endif %}{{ predict }}
```
{% endif %}
{{ "Both need" if predict else "It needs" }} `pip install 'fadeup[experiments]'`.

## Training data and recipe

{% if not card %}Nothing is recorded of the training of these weights: the network was saved from Python. Whoever shares
it, please say here what it was trained on and how it scores.
{% else %}**Data:** {{ card.data }}

**Network:** {{ card.trained }}. {{ card.start }}

{% if card.command %}```text
{{ card.command }}
```

{% endif %}Seed {{ record.seed | default("unknown") }}, {{ card.length }}fadeup {{ record.fadeup }}. All fields:

| field | value |
|---|---|
{% for name, value in record.recipe.items() %}| {{ name }} | {{ value }} |
{% endfor %}{% endif %}
## Scores

{% if not card or not card.scores %}None are recorded.
{% else %}| metric | value | better |
|---|---|---|
{% for score in card.scores %}| {{ score.label }} | {{ score.shown }} | {{ score.better }} |
{% endfor %}
{{ card.scored }}
{% if card.classes %}
| class | IoU % | boundary IoU % | pixels % |
|---|---|---|---|
{% for row in card.classes %}| {{ row.name }} | {{ row.miou }} | {{ row.biou }} | {{ row.share }} |
{% endfor %}{% endif %}{% endif %}
## Limits

{% for limit in limits %}- {{ limit }}
{% endfor %}
## Licence and sources

{% if license == "unknown" %}No licence is stated for these weights. Whoever shares them, please set `license` above:
`network.save_pretrained(folder, model_card_kwargs={"license": "…"})` or `fadeup share … --license …` does.
{% else %}Weights: {{ license }}.
{% endif %}Code (fadeup): Apache-2.0.
{% if card %}
Data: {{ card.sources }}
{% endif %}
## Citation

{{ papers }}

{{ mark }}
"""
PLAIN_LIMITS = (
    "Its scores are not known here; measure it on your own pictures before you rely on it (`fadeup.engine.evaluate`).",
)


def model_card(
    network: Any,
    config: dict[str, Any],
    told: dict[str, Any],
    *,
    model_id: str = "",
    license: str | None = None,
) -> Any:
    """The card of a network, a `huggingface_hub.ModelCard`.

    Args:
        network: A `fadeup.models.pretrained.Pretrained`; its `record` tells of its training.
        config: What `config.json` holds.
        told: Front matter that its class brings.
        model_id: Folder or name on the hub, for the examples.
        license: Identifier of the hub's; by default what the record says, or `"unknown"`.

    Raises:
        ModuleNotFoundError: huggingface_hub is missing.
    """
    from huggingface_hub import ModelCard, ModelCardData

    record, kind = network.record, type(network).__name__
    card = (record or {}).get("card", {})
    license = license or card.get("license", "unknown")
    model_id = model_id or kind
    upsampler = str((record or {}).get("upsampler", config.get("upsampler", "")))
    front = told | {"license": license, "model_name": model_id.rpartition("/")[2]}
    plain = upsampler.partition(",")[0].replace("_", "-")
    front["tags"] = sorted({*told.get("tags", ()), plain, *card.get("tags", ())})
    if card:
        front |= {"datasets": [card["dataset"]], "metrics": [score["metric"] for score in card["scores"]]}
        front["eval_results"] = _results(card)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    folder = model_id.rpartition("/")[2]
    return ModelCard.from_template(
        ModelCardData(**front),
        template_str=TEMPLATE,
        title=folder,
        summary=_paragraph(network.__class__),
        kind=kind,
        upsampler=upsampler,
        backbone=_backbone(config),
        parameters=f"{parameters:,}",
        classes=[_cell(name) for name in network.classes or ()],
        model_id=model_id,
        folder=folder,
        in_channels=network.in_channels,
        call=_paragraph(network.forward),
        mean=_numbers((record or {}).get("mean")),
        std=_numbers((record or {}).get("std")),
        predict=card.get("predict", "").format(folder=folder),
        record=_rows(record),
        card=card | {"classes": [_row(row) for row in card.get("classes", ())]} if card else None,
        limits=card.get("limits") or PLAIN_LIMITS,
        license=license,
        papers=_papers(type(network), resolve(upsampler)[0]),
        mark=MARK,
    )


def _results(card: dict[str, Any]) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=card["task_type"],
            dataset_type=card["dataset"],
            dataset_name=card["dataset"],
            dataset_split="test",
            metric_type=score["metric"],
            metric_name=score["label"],
            metric_value=score["value"],
        )
        for score in card["scores"]
    ]


def _rows(record: dict[str, Any] | None) -> dict[str, Any] | None:
    """The record with its recipe's values as code."""
    if record is None:
        return None
    return record | {"recipe": {name: f"`{_cell(json.dumps(value))}`" for name, value in record["recipe"].items()}}


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A class's line; what is absent has no score."""
    values = {key: "–" if row[key] is None else f"{row[key]:.2f}" for key in ("miou", "biou", "share")}
    return {"name": _cell(row["name"]), **values}


def _backbone(config: dict[str, Any]) -> tuple[str, str] | None:
    for name in BACKBONES:
        if name in config:
            given = config[name]
            return name, f"`{given}`" if isinstance(given, str) else "a MiT of transformers, as in config.json"
    return None


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.4g}" for value in values) if values else ""


def _cell(text: str) -> str:
    """A text as it may stand in a table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def _paragraph(thing: Any) -> str:
    """The first paragraph of its docstring."""
    return (inspect.getdoc(thing) or "").partition("\n\n")[0]


def _papers(*kinds: type) -> str:
    """What the docstrings of modules or classes name as their sources, a line each."""
    found = []
    for kind in kinds:
        for told in (inspect.getdoc(inspect.getmodule(kind)), inspect.getdoc(kind)):
            _, _, source = (told or "").partition("Source: ")
            if source:
                found.append(f"- {' '.join(source.split())}")
                break
    return "\n".join([*found, "- fadeup, the library: see its CITATION.cff"])
