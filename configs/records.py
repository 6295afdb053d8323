"""What training records are made with (`python -m data_prep.extract --config configs/records.py:…`).

| option | what |
|---|---|
| `embedded` | parts that need no weights; the default |
| `published` | the bundles in `published` (docs/published.md), 8 s at 8 frames/s |

Any value can be set from the command line: `--config.seconds=8`, `--config.published=DIR`.
"""

from ml_collections import ConfigDict

from data_prep.settings import RecordSettings
from flowley_jax.cli import config_dict_of

SETTINGS = {
    "embedded": RecordSettings(),
    "published": RecordSettings(published="published", seconds=8.0, video_fps=8.0),
}


def get_config(option: str = "embedded") -> ConfigDict:
    """The settings of an option."""
    if option not in SETTINGS:
        raise ValueError(f"configs/records.py has no option {option!r}; it has {', '.join(SETTINGS)}")
    return config_dict_of(SETTINGS[option])
