"""Without PyTorch there is nothing here to collect."""

import importlib.util
from pathlib import Path

_OPERATORS = (
    *("nms", "qnms", "roi_align", "qroi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d"),
    *("_roi_align_backward", "_ps_roi_align_backward", "_roi_pool_backward", "_ps_roi_pool_backward"),
    "_deform_conv2d_backward",
)


def _let_torchvision_be_imported():
    """open_clip imports torchvision, whose only builds on the registry are for CUDA and cannot load their
    operators beside a PyTorch for CPU. Nothing here calls them; declared, they let it be imported."""
    import torch

    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or torch.version.cuda is not None:
        return None
    if "+cu" not in (Path(found.origin).parent / "version.py").read_text():
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in _OPERATORS:
        library.define(f"{name}(Tensor x) -> Tensor")
    return library


if importlib.util.find_spec("torch"):
    # The declarations live as long as the library.
    DECLARED = _let_torchvision_be_imported()
else:
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py")]
