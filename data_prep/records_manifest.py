"""The manifest of finished records: whose a folder is, and whether its records are whole and wanted."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.feature_store import digest
from data_prep.record_components import RecordComponents
from data_prep.settings import RecordSettings
from flowley_jax.common.files import sha256
from flowley_jax.common.json_files import read_json_object
from flowley_jax.data.component_registry import ROLES
from flowley_jax.data.components import COMPONENTS_FILE, Components
from flowley_jax.data.record import check_metadata, dataset_dir, has_records
from flowley_jax.errors import FlowleyError

MANIFEST_FILE = "manifest.json"
REJECTED_FILE = "rejected.tsv"
REJECTED_HEADER = "id\tvideo_path\treason\tdetail"
# What a run replaces in its folder, besides the manifest.
_REPLACED = (REJECTED_FILE, COMPONENTS_FILE, "codec.npz", str(dataset_dir("")))
_MANIFEST_TYPES = {
    "identity": str,
    "settings_identity": str,
    "settings": dict,
    "examples": dict,
    "rejected": dict,
    "files": dict,
}


def read_manifest(out: Path) -> dict[str, Any] | None:
    """Return the manifest of finished records; None if it is missing or damaged.

    Raises:
      FlowleyError: a run would replace files that another program wrote.
    """
    path = out / MANIFEST_FILE
    if not _is_own_folder(out):
        foreign = [name for name in (MANIFEST_FILE, *_REPLACED) if os.path.lexists(out / name)]
        if foreign:
            raise FlowleyError(
                f"{out / foreign[0]}: data_prep.extract did not write it, and would replace it; choose "
                "another folder"
            )
        return None
    if not path.exists():
        return None
    try:
        return _checked_manifest(path)
    except FlowleyError as error:
        print(f"{error}; the records are written again")
        return None


def _is_own_folder(out: Path) -> bool:
    """Return whether this program wrote the records of a folder, or began to.

    The manifest says so. It is missing while records are written, but `rejected.tsv` then is there.
    """
    try:
        _checked_manifest(out / MANIFEST_FILE)
        return True
    except FlowleyError:
        pass
    try:
        with open(out / REJECTED_FILE, "rb") as file:
            return file.readline(1000).strip() == REJECTED_HEADER.encode()
    except OSError:
        return False


def _checked_manifest(path: Path) -> dict[str, Any]:
    manifest = read_json_object(path)
    for name, kind in _MANIFEST_TYPES.items():
        if not isinstance(manifest.get(name), kind):
            raise FlowleyError(f"{path}: {name} is missing or of the wrong type")
    counts = [*manifest["examples"].values(), *manifest["rejected"].values()]
    if not all(isinstance(count, int) for count in counts):
        raise FlowleyError(f"{path}: examples and rejected must be counts")
    if not all(isinstance(file, dict) for file in manifest["files"].values()):
        raise FlowleyError(f"{path}: files must hold one object for each file")
    return manifest


def is_complete(out: Path, manifest: Mapping[str, Any], *, verify: bool) -> bool:
    """Return whether the files of the records are whole.

    Args:
      out: folder of the records.
      manifest: what their sizes and checksums should be.
      verify: also compare the checksums of the record files, which takes hours for terabytes.
    """
    if not has_records(out):
        return False
    try:
        Components.load(out)
        check_metadata(out)
        for name, checksum in manifest.get("metadata", {}).items():
            _check_content(dataset_dir(out) / name, checksum)
        for name, file in manifest["files"].items():
            path = dataset_dir(out) / name
            size = path.stat().st_size if path.is_file() else None
            # Manifests of earlier versions list no sizes.
            if size is None or size != file.get("size", size):
                raise FlowleyError(f"{path}: is missing, or its size has changed")
            if verify:
                _check_content(path, file.get("sha256"))
    except FlowleyError as problem:
        print(f"{problem}; the records are written again")
        return False
    return True


def _check_content(path: Path, checksum: Any) -> None:
    if sha256(path) != checksum:
        raise FlowleyError(f"{path}: its content has changed")


def check_settings(out: Path, manifest: Mapping[str, Any], components: RecordComponents) -> None:
    """Check that the records of a folder were made with these components.

    Raises:
      FlowleyError: they were not; the message lists the settings that differ.
    """
    if manifest["settings_identity"] == digest(components.identity):
        return
    stored, now = map(_with_chosen, (manifest["settings"], dataclasses.asdict(components.settings)))
    changed = [
        f"{name} was {stored.get(name)!r}, is now {value!r}"
        for name, value in now.items()
        if stored.get(name) != value
    ]
    listed = "; ".join(changed) or "weights, or the version of a component, have changed"
    raise FlowleyError(f"{out}: has records with different settings ({listed}); choose another folder")


def _with_chosen(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the components that they choose by their default or by `published`."""
    names = {field.name for field in dataclasses.fields(RecordSettings)}
    typed = RecordSettings(**{name: value for name, value in settings.items() if name in names})
    chosen = {role.removesuffix("_encoder"): typed.component(role) for role in ROLES}
    return {**settings, **chosen, "published": ""}
