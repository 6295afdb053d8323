"""Settings of training records (`python -m data_prep.extract --config configs/records.py:…`).

| option | settings |
|---|---|
| `embedded` | components that need no weights; the default |
| `published` | bundles in the folder `published` (docs/published.md), clips of 8 s at 8 frames per second |

Every value is a flag, such as `--config.seconds=8` or `--config.published=DIR`.
"""

from ml_collections import ConfigDict

from data_prep.settings import RecordSettings
from flowley_jax.config_flag import config_dict_of
from flowley_jax.errors import FlowleyError

SETTINGS = {
    "embedded": RecordSettings(),
    "published": RecordSettings(published="published", seconds=8.0, video_fps=8.0),
}


def get_config(option: str = "embedded") -> ConfigDict:
    """Return the settings of an option.

    Raises:
      FlowleyError: the option does not exist.
    """
    if option not in SETTINGS:
        raise FlowleyError(f"configs/records.py has no option {option!r}; it has {', '.join(SETTINGS)}")
    return config_dict_of(SETTINGS[option])
