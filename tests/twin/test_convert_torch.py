"""Conversion of PyTorch checkpoints to bundles and back, as PyTorch reads them: make test-torch."""

import golden_data
import numpy as np
import pytest
import torch

from flowley_jax.interop.convert import convert, write_back

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("entry", ["", "generator"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_checkpoint_is_written_back_without_loss(tmp_path, entry, dtype):
    state = {
        name: torch.from_numpy(np.array(array)).to(dtype)
        for name, array in golden_data.state_dict("h_bigvgan16k").items()
    }
    torch.save({entry: state, "steps": 7} if entry else state, tmp_path / "best_netG.pt")
    bundle = convert(str(tmp_path / "best_netG.pt"), tmp_path / "bundles", expect="bigvgan")
    write_back(bundle.folder, tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    back = back[entry] if entry else back
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name
