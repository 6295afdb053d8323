"""Write the files of this folder with PyTorch 2.13: PYTHONPATH=.torch python tests/interop/files/make.py"""

import collections
from pathlib import Path

import torch

FOLDER = Path(__file__).parent


class Caller:
    """Object whose unpickling calls `print`."""

    def __reduce__(self):
        return print, ("this must not be run",)


def main() -> None:
    """Write tensors of several kinds, the same before the zip format, and a pickle that calls a function."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
    tensors = collections.OrderedDict(
        plain=base,
        transposed=base.T,
        strided=base[1::2, ::3],
        scalar=torch.tensor(3.5),
        empty=torch.zeros(0, 3),
        half=base.half(),
        bfloat16=base.bfloat16(),
        long=torch.arange(5),
        parameter=torch.nn.Parameter(base[2:].clone()),
    )
    torch.save({"state_dict": tensors, "epoch": 3, "optimizer": {"lr": 0.1}}, FOLDER / "tensors.pth")
    torch.save(tensors, FOLDER / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"a": torch.ones(2), "b": Caller()}, FOLDER / "calling.pth")


if __name__ == "__main__":
    main()
