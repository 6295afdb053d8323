"""The notebook of the first steps runs from the first cell to the last."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import shell

pytestmark = pytest.mark.scale
NOTEBOOK = shell.ROOT / "docs/first_steps.ipynb"
# Stands for IPython, which the tests do not install; it notes what would be shown.
_IMPORT = "from IPython.display import Audio, Video, display"
_SHIM = """
shown = []
display = shown.append
def Audio(data, rate): return "audio", len(data) / rate
def Video(path, embed): return "video", path.stat().st_size
"""
_CHECKS = """
import json
print(json.dumps({
    "shown": [kind for kind, size in shown if size > 0.5],
    "figures": len(plt.get_fignums()),
    "best": int(ranking[0][0]),
    "losses": [row["train/loss"] for row in history],
    "folder": str(folder),
}))
"""


def test_the_notebook_runs(tmp_path):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert code.count(_IMPORT) == 1
    script = code.replace(_IMPORT, _SHIM) + _CHECKS
    environment = {
        **os.environ,
        "PYTHONPATH": str(shell.ROOT),
        "MPLBACKEND": "agg",
        "TMPDIR": str(tmp_path),
    }
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=shell.TIMEOUT,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["shown"] == ["video", "audio", "audio", "audio", "audio"]
    assert found["figures"] == 4 and len(found["losses"]) == 10
    # The network starts as a trained one: an untrained one has a loss above 1.9.
    assert max(found["losses"]) < 1.5
    assert (Path(found["folder"]) / "tuned" / "config.json").exists()
