"""Evaluation networks on several simulated devices (make test-scale)."""

import json

import numpy as np
import pytest
from evaluation_networks import write_networks
from launching import run_script

pytestmark = pytest.mark.scale

SOURCE = """
import json
from pathlib import Path

import numpy as np

from flowley_jax.evaluation.extraction import Evaluators
from flowley_jax.evaluation.extractors import EXTRACTORS
from flowley_jax.evaluation.networks import find_networks, offset_head

rng = np.random.default_rng(0)
evaluators = Evaluators(find_networks(Path({folder!r}), "float32"))
waves = [{{"waves": wave}} for wave in rng.uniform(-0.5, 0.5, (5, 16000)).astype(np.float32)]
panns = evaluators.features(EXTRACTORS["panns"], waves)
pictures, sounds = (rng.standard_normal((5, 14, count, 24)).astype(np.float32) for count in (8, 6))
offsets = offset_head(evaluators)(pictures, sounds)
print(json.dumps([panns["pann_2048"].tolist(), panns["pann_logits"].tolist(), offsets.tolist()]))
"""


def test_features_do_not_depend_on_the_number_of_devices(tmp_path):
    """Five clips, which neither three nor four devices divide."""
    source = SOURCE.format(folder=str(write_networks(tmp_path)))
    one, *others = (json.loads(run_script(source, devices=devices).splitlines()[-1]) for devices in (1, 3, 4))
    for several in others:
        for value, expected in zip(several, one, strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
