"""Small evaluation networks with random weights, as bundles that `convert` makes from published layouts."""

import json
from pathlib import Path

from flax import nnx
from golden_data import state_dict
from published import torch_weights

from flowley_jax.interop.convert import convert
from flowley_jax.interop.torch_writer import write_torch_file
from flowley_jax.networks.clap import Clap, ClapConfig
from flowley_jax.networks.clap_audio import HtsatConfig
from flowley_jax.networks.clap_text import RobertaConfig
from flowley_jax.networks.imagebind import ImageBind, ImageBindConfig, TrunkConfig
from flowley_jax.networks.passt import Passt, PasstConfig
from flowley_jax.networks.synchformer import Synchformer
from flowley_jax.networks.synchformer_config import SynchformerConfig

_CLAP = ClapConfig(
    audio=HtsatConfig(width=8, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4)),
    text=RobertaConfig(vocab_size=300, positions=80, width=64, layers=1, heads=1, mlp_width=96),
    dim=16,
)
_IMAGEBIND = ImageBindConfig(
    vision=TrunkConfig(width=16, layers=1, heads=16, mlp_width=24),
    audio=TrunkConfig(width=12, layers=1, heads=12, mlp_width=24),
    dim=8,
)


def write_networks(folder: Path) -> Path:
    """Write bundles of all six evaluation networks to a folder, and return it."""
    rngs = nnx.Rngs(0)
    passt = Passt(PasstConfig(width=64, layers=1, heads=1, mlp_width=96), rngs=rngs)
    clap = torch_weights(Clap(_CLAP, rngs=rngs))
    synchformer = Synchformer(SynchformerConfig(width=24, mlp_width=48, layers=1, head_layers=1), rngs=rngs)
    files = {
        "panns": {"model": state_dict("panns_small")},
        "vggish": state_dict("vggish_small"),
        "passt": torch_weights(passt),
        "clap": {"state_dict": {f"module.{name}": array for name, array in clap.items()}},
        "synchformer": torch_weights(synchformer),
        "imagebind": torch_weights(ImageBind(_IMAGEBIND, rngs=rngs)),
    }
    for name, content in files.items():
        published = folder / "published" / name
        published.mkdir(parents=True)
        write_torch_file(published / "weights.pth", content)
        if name == "clap":
            write_tokenizer(published)
        convert(str(published / "weights.pth"), folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write the files of a byte-level tokenizer that knows single letters."""
    # Bytes that are no printable characters have names from code point 256 on, such as Ġ for the space.
    letters = [chr(code) for code in range(33, 127)] + ["Ġ"]
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    vocabulary |= {letter: index for index, letter in enumerate(letters, start=4)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
