"""Collection of the tests that need PyTorch, only where it is installed."""

import importlib.util
from pathlib import Path

_OPERATORS = (
    *("nms", "qnms", "roi_align", "qroi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d"),
    *("_roi_align_backward", "_ps_roi_align_backward", "_roi_pool_backward", "_ps_roi_pool_backward"),
    "_deform_conv2d_backward",
)


def _declare_torchvision_operators():
    """Declare torchvision's operators if its build does not fit PyTorch, so that it can be imported.

    open_clip imports torchvision. All of its builds on the package index are for CUDA, and cannot load their
    operators with a PyTorch for CPU. No test calls these operators.
    """
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or torch.version.cuda is not None:
        return None
    if "+cu" not in (Path(spec.origin).parent / "version.py").read_text():
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in _OPERATORS:
        library.define(f"{name}(Tensor x) -> Tensor")
    return library


if importlib.util.find_spec("torch"):
    # The declarations last as long as this object.
    DECLARED = _declare_torchvision_operators()
else:
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py")]
