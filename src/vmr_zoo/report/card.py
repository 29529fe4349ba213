"""The card of a published run: what it is, how it was scored, and how to use it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from vmr_zoo.config.compose import config_dir
from vmr_zoo.data.annotations.records import NOT_SELECTED
from vmr_zoo.metrics.settings import shown_metrics
from vmr_zoo.report.escape import markdown, markdown_table
from vmr_zoo.runs.directory import SIMULATED

if TYPE_CHECKING:
    from vmr_zoo.runs.publish import Staged

_TAG = re.compile(r"[^\w.-]+")


def model_card(staged: Staged, repository: str, licence: str | None) -> str:
    """Returns a model card with metadata of the hub.

    Args:
        staged: what is published.
        repository: OWNER/NAME.
        licence: identifier of the licence of the weights; None: its owner states none.
    """
    header, metrics = staged.header, staged.metrics
    address = f"hf://{repository}"
    parts = [
        f"# {markdown(str(header['name']))} on {markdown(str(header['protocol']))}",
        f"A run of vmr_zoo for video moment retrieval: given a video and a sentence, it returns the moments "
        f"that the sentence describes. {_training(header)}",
        *_warnings(header),
        "## Results",
        f"Per cent. {_selection(header)}",
        _table(metrics),
        "## Use",
        f'```bash\nvmr predict run={address} video=clip.mp4 query="a person opens the door"\n'
        f"vmr eval run={address} split=all paths.annotations=DIR paths.features=DIR\n```",
        _reading(staged),
        "## Details",
        _details(staged),
        "## Licence",
        _licence(staged, licence),
    ]
    return f"---\n{_metadata(staged, licence)}---\n\n" + "\n\n".join(parts) + "\n"


def _metadata(staged: Staged, licence: str | None) -> str:
    """Returns the YAML block that the hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    header = staged.header
    protocol = str(header["protocol"])
    results = [
        EvalResult(
            task_type="video-moment-retrieval",
            task_name="Video moment retrieval",
            dataset_type=_TAG.sub("-", protocol),
            dataset_name=protocol,
            dataset_split=split,
            metric_type=name,
            metric_name=name,
            metric_value=round(value, 2),
        )
        for split, values in staged.metrics.items()
        for name in shown_metrics(staged.metrics)
        if (value := values.get(name)) is not None
    ]
    tags = ["video-moment-retrieval", "temporal-grounding", str(header["method"]), protocol]
    data = ModelCardData(
        library_name="vmr_zoo",
        license=licence or "other",
        tags=[_TAG.sub("-", tag) for tag in tags],
        model_name=str(header["name"]),
        eval_results=results or None,
    ).to_dict()
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _table(metrics: Mapping[str, Mapping[str, float | None]]) -> str:
    columns = shown_metrics(metrics)
    rows = [
        [split, *("" if (value := values.get(name)) is None else f"{value:.2f}" for name in columns)]
        for split, values in metrics.items()
    ]
    return markdown_table(["split", *columns], rows, right=1)


def _selection(header: Mapping[str, Any]) -> str:
    """Says how the weights behind the numbers were selected."""
    selection = str(header.get("selection", "not recorded"))
    if selection == NOT_SELECTED:
        return "Weights of the last epoch; no checkpoint was selected."
    metric = markdown(str(header.get("selection_metric")))
    epoch = f", epoch {header['best_epoch']} of {header.get('epochs')}" if header.get("best_epoch") else ""
    return f"Weights with the best {metric} on the selection split ({markdown(selection)}){epoch}."


def _training(header: Mapping[str, Any]) -> str:
    """Says whether training went on until the selection metric stopped improving."""
    reached = header.get("plateau")
    if reached is None:
        return "Whether its training reached a plateau was not recorded."
    if reached:
        return "Its training reached a plateau: the selection metric had stopped improving."
    return (
        "**Its training ended before a plateau: the selection metric was still improving.** Its scores are "
        "lower bounds."
    )


def _warnings(header: Mapping[str, Any]) -> list[str]:
    found = [str(text) for text in header.get("warnings", ())]
    if header.get("origin") == SIMULATED:
        found.append("The features are simulated; the numbers say nothing about real videos.")
    return [f"> **Warning.** {markdown(text)}" for text in found]


def _reading(staged: Staged) -> str:
    """Says which inputs the run reads."""
    features = staged.config["features"]
    return (
        f"The run reads the features `{_code(staged.header['features'])}`: clip vectors of "
        f"{features['video_dim']} "
        f"numbers, sentences of {features['query_dim']} per token. `vmr predict` computes them from a video "
        "if their encoder is known, and says so if not. `vmr eval` reads annotations and features below "
        "`paths.annotations` and "
        "`paths.features`, and refuses others than those of the training."
    )


def _details(staged: Staged) -> str:
    header, environment = staged.header, staged.environment
    packages = environment.get("packages") or {}
    git = environment.get("git") or {}
    rows = {
        "method": f"{header['method']}, variant {header.get('variant')}",
        "paper": _paper(str(staged.config["method"].get("_target_"))),
        "data set and protocol": header["protocol"],
        "features": f"{header['features']} ({header['origin']})",
        "encoder of the clips": _named(staged.manifest.get("video")),
        "encoder of the sentences": _named(staged.manifest.get("query")),
        "narrator": _narrator(staged.manifest.get("narration")),
        "parameters": f"{header['parameters']:,}",
        "seed": header["seed"],
        "epochs": header.get("epochs"),
        "rounding": header.get("rounding"),
        "vmr_zoo": packages.get("vmr_zoo"),
        "revision": git.get("revision") and f"{git['revision']}{' with changes' if git.get('dirty') else ''}",
        "torch": packages.get("torch"),
        "settings that differ from the defaults": ", ".join(
            f"{key}={value}" for key, value in (header.get("overrides") or {}).items()
        ),
    }
    return markdown_table(
        ("", ""), [(name, str(value)) for name, value in rows.items() if value not in (None, "")]
    )


def _paper(target: str) -> str:
    """Returns the paper that the module of a method states, "" for none."""
    try:
        text = importlib.import_module(target.rpartition(".")[0]).__doc__ or ""
    except ImportError:
        return ""
    found = re.search(
        r"(?:Paper: |Following )(.*?(?:arXiv \d{4}\.\d{4,5}|abs/\d{4}\.\d{4,5}|, [A-Z]+ \d{4}))",
        text,
        re.DOTALL,
    )
    return " ".join(found[1].split()) if found else ""


def _named(manifest: Any) -> str:
    """Returns the models that a manifest of features names."""
    if not isinstance(manifest, Mapping):
        return ""
    parts = manifest.get("encoders") or manifest.get("sources") or [manifest]
    names = [
        str(one.get("backbone") or one.get("encoder") or "") for one in parts if isinstance(one, Mapping)
    ]
    return ", ".join(dict.fromkeys(name for name in names if name))


def _narrator(manifest: Any) -> str:
    """Returns the model that wrote the narrations of the features, which not every method reads."""
    narrator = manifest.get("narrator") if isinstance(manifest, Mapping) else None
    return str(narrator.get("model") or "") if isinstance(narrator, Mapping) else ""


def _code(text: object) -> str:
    return str(text).replace("`", "'")


def _licence(staged: Staged, licence: str | None) -> str:
    """States the licences of the weights and of the annotations that they were trained on."""
    stated = (
        f"The weights are under {markdown(licence)}."
        if licence
        else "Their owner states no licence of the weights."
    )
    file = config_dir() / "sources" / "published.yaml"
    sources = yaml.safe_load(file.read_text(encoding="utf-8"))
    used = {str(staged.config["data"]["name"]), str(staged.config["features"]["name"])}
    lines = [
        f"- {markdown(one['title'])}: {markdown(' '.join(one['licence'].split()))} Terms: <{one['terms']}>. "
        f"Cite {markdown(one['citation'])}."
        for one in sources.values()
        if used & set(one["read_by"])
    ]
    if lines:
        return "\n".join([f"{stated} It was trained on these annotations:", "", *lines])
    if str(staged.config["data"]["protocol"].get("_target_")).startswith("vmr_zoo.data.worlds."):
        return f"{stated} Its videos and annotations are generated by vmr_zoo."
    return f"{stated} vmr_zoo does not know the licence of the annotations."
