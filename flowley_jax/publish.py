"""Share a model: python -m flowley_jax.publish --workdir RUN --out FOLDER [--push ORG/NAME]

The folder holds the averaged weights, the configuration, the components and a model card. It takes the place
of a run's folder: as --workdir FOLDER, or as --workdir hf:ORG/NAME when it is on the Hugging Face hub.
"""

from pathlib import Path

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.common.number_flags import define_float
from flowley_jax.common.ranges import SIGMA_RELS
from flowley_jax.errors import FlowleyError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training run.", required=True)
_OUT = flags.DEFINE_string("out", None, "New folder for the model.", required=True)
_SIGMA_REL = define_float(
    "sigma_rel",
    None,
    "Relative EMA length of the weights; by default that of the run's sampling.",
    SIGMA_RELS,
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of the stored weights.")
_COMPACT = flags.DEFINE_bool(
    "compact", False, "Store each shared block once; only Flowley-JAX can read such a file."
)
_SCORES = flags.DEFINE_string(
    "scores", None, "The scores.json of an evaluation of this run (docs/evaluation.md), for the card."
)
_LICENSE = flags.DEFINE_string("license", "", "License of the weights for the card, such as cc-by-4.0.")
_PUSH = flags.DEFINE_string("push", None, "Repository on the Hugging Face hub to upload to: ORG/NAME.")
_PRIVATE = flags.DEFINE_bool("private", False, "Create the repository of --push as a private one.")


def main() -> int:
    """Write the folder, and upload it if --push is given."""
    from flowley_jax.common.files import write_text
    from flowley_jax.interop.hub import upload
    from flowley_jax.runs.hub_models import repository_name
    from flowley_jax.runs.model_card import CARD, model_card
    from flowley_jax.runs.model_folder import check_empty, write_model_folder
    from flowley_jax.runs.workdir import load_components, read_config

    workdir, out = Path(_WORKDIR.value or ""), Path(_OUT.value or "")
    repository = repository_name(_PUSH.value) if _PUSH.value else None
    check_empty(out)
    config, components = read_config(workdir), load_components(workdir)
    figures = _figures(workdir, Path(_SCORES.value) if _SCORES.value else None)
    sigma_rel = config.sample.sigma_rel if _SIGMA_REL.value is None else _SIGMA_REL.value
    weights = write_model_folder(
        workdir, out, sigma_rel=sigma_rel, dtype=_DTYPE.value or "float32", compact=bool(_COMPACT.value)
    )
    card = model_card(
        repository or out.name,
        config,
        components,
        weights,
        workdir=f"hf:{repository}" if repository else out.name,
        license_name=_LICENSE.value or "",
        figures=figures,
    )
    write_text(out / CARD, card)
    print(out)
    if repository:
        print(upload(out, repository, private=_PRIVATE.value))
    return 0


def _figures(workdir: Path, scores: Path | None) -> dict[str, float]:
    """Return a run's last validation loss, and the metrics of its evaluation, if there are any."""
    from flowley_jax.common.json_files import read_json_object
    from flowley_jax.training.metrics import read_history

    losses = [row["valid/loss"] for row in read_history(workdir) if "valid/loss" in row]
    figures = {"validation loss": losses[-1]} if losses else {}
    if scores is None:
        return figures
    rows = read_json_object(scores).get("rows")
    row = next(iter(rows.values())) if isinstance(rows, dict) and rows else None
    metrics = row.get("metrics") if isinstance(row, dict) else None
    if not isinstance(metrics, dict):
        raise FlowleyError(f"--scores {scores}: is not the scores.json of flowley_jax.evaluate --table")
    return figures | {name: value for name, value in metrics.items() if isinstance(value, int | float)}


if __name__ == "__main__":
    run_main(main)
