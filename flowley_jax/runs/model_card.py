"""The model card of a shared model: README.md, with front matter as the Hugging Face hub reads it."""

import json
from collections.abc import Mapping
from typing import Any

import jax

from flowley_jax.config import ExperimentConfig, SampleConfig
from flowley_jax.data.components import Components
from flowley_jax.runs.weights import Weights

CARD = "README.md"
_TAGS = ("video-to-audio", "foley", "audio-generation", "flowley")
# The hub has no pipeline for sound from video.
_PIPELINE = "other"
_PAPER = "https://arxiv.org/abs/2607.06405"


def model_card(
    name: str,
    config: ExperimentConfig,
    components: Components,
    weights: Weights,
    *,
    workdir: str,
    license_name: str = "",
    figures: Mapping[str, float] | None = None,
) -> str:
    """Return the text of the card.

    Args:
      name: ORG/NAME, or the name of the folder.
      config: configuration of the run.
      components: components of the run.
      weights: the shared weights.
      workdir: value of `sample --workdir` for this model; "" if it is the default.
      license_name: license of the weights, as the hub names it; "" if it is not stated.
      figures: metrics of the model by name.
    """
    figures = figures or {}
    flag = f"--workdir {workdir} " if workdir else ""
    kind = "a flow map, for few steps" if weights.are_flow_map else "a rectified flow"
    parameters = sum(leaf.size for leaf in jax.tree.leaves(weights.parameters))
    solver = config.sample.solver
    lines = [
        *_front_matter(name, license_name, figures),
        f"# {name.split('/')[-1]}",
        "",
        f"This model makes sound for silent videos. It is a [Flowley]({_PAPER}) network, trained with "
        "Flowley-JAX.",
        "",
        "```sh",
        f"python -m flowley_jax.sample {flag}--video a.mp4 \\",
        '  --prompt "what should be heard" --out b.mp4',
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| network | {parameters:,} parameters, {kind} |",
        f"| training | {weights.step:,} steps, batch {config.data.batch_size}{_start(config)} |",
        f"| clips | {components.seconds:g} s |",
        f"| video | {components.video_encoder.name}, {components.video_fps:g} frames per second |",
        f"| text | {components.text_encoder.name} |",
        f"| sound | {components.sample_rate:,} Hz |",
        f"| codec | {components.latent_space} |",
        f"| vocoder | {components.vocoder.name} |",
        f"| sampling | {solver.steps} steps of {solver.name}, {_guidance(config.sample)} |",
    ]
    if figures:
        lines += ["", "| metric | value |", "|---|---|"]
        lines += [f"| {metric} | {value:.4g} |" for metric, value in figures.items()]
    return "\n".join(lines) + "\n"


def _start(config: ExperimentConfig) -> str:
    return ", from the weights of a trained model" if config.start.weights else ""


def _front_matter(name: str, license_name: str, figures: Mapping[str, float]) -> list[str]:
    content: dict[str, Any] = {"license": license_name} if license_name else {}
    content |= {"library_name": "flowley-jax", "pipeline_tag": _PIPELINE, "tags": list(_TAGS)}
    if figures:
        metrics = [
            {"type": metric, "name": metric, "value": round(float(value), 6)}
            for metric, value in figures.items()
        ]
        task = {"type": _PIPELINE, "name": "video-to-audio"}
        dataset = {"type": "own", "name": "held-out clips of the run"}
        results = [{"task": task, "dataset": dataset, "metrics": metrics}]
        content["model-index"] = [{"name": name.split("/")[-1], "results": results}]
    # Every JSON value is valid YAML.
    return ["---", *(f"{key}: {json.dumps(value)}" for key, value in content.items()), "---", ""]


def _guidance(sample: SampleConfig) -> str:
    video, text = sample.guidance_form.scales
    if max(video, text) == 1.0:
        return "no guidance"
    words = f"guidance {video:g}"
    if sample.guidance_from > 0.0:
        words += f" from t = {sample.guidance_from:g}"
    return words if sample.guidance_text is None else f"{words}, of the text {text:g}"
