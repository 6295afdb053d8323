"""Tokens of captions by a small tokenizer of RoBERTa's kind, from a bundle."""

import json

import numpy as np
import published
import pytest
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import ByteLevelBPETokenizer

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.captions import ClapCaptions
from flowley_jax.interop.bundles import Bundle
from flowley_jax.interop.convert import convert
from flowley_jax.networks.clap import Clap, ClapConfig
from flowley_jax.networks.clap_audio import HtsatConfig
from flowley_jax.networks.clap_text import RobertaConfig

CONFIG = ClapConfig(
    audio=HtsatConfig(width=4, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1)),
    text=RobertaConfig(vocab_size=330, positions=80, width=64, layers=1, heads=1, mlp_width=8),
    dim=8,
)


@pytest.fixture(scope="module")
def weights():
    return published.torch_weights(Clap(CONFIG, rngs=nnx.Rngs(0)))


@pytest.fixture
def files(weights, tmp_path):
    """Weights, vocab.json and merges.txt in a folder, with files that a download of roberta-base also has."""
    folder = tmp_path / "files"
    folder.mkdir()
    save_file(weights, folder / "clap.safetensors")
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(published.CAPTIONS * 5, 320, special_tokens=special, show_progress=False)
    tokenizer.save_model(str(folder))
    (folder / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    return folder


def _captions(files, out):
    return ClapCaptions(bundle=Bundle.open(convert(str(files), out / "bundles").folder))


def test_captions_have_a_first_and_a_last_token_and_padding(files, tmp_path):
    tokens = _captions(files, tmp_path)(["a dog barks", "", "A dog"])
    assert tokens.shape == (3, 77) and tokens.dtype == np.int32
    vocabulary = json.loads((files / "vocab.json").read_text())
    # No space is put in front, and case counts.
    words = [vocabulary[word] for word in ("a", "Ġdog", "Ġbarks")]
    assert tokens[0].tolist() == [0, *words, 2, *[1] * 72]
    assert tokens[1].tolist() == [0, 2, *[1] * 75]
    assert tokens[2].tolist() == [0, vocabulary["A"], words[1], 2, *[1] * 73]


def test_long_captions_are_cut_and_keep_the_last_token(files, tmp_path, caplog):
    tokens = _captions(files, tmp_path)(["a dog barks " * 40])
    assert tokens[0, 0] == 0 and tokens[0, -1] == 2
    assert not np.isin(tokens[0, 1:-1], (0, 1, 2)).any()
    assert "is cut to 77" in caplog.text


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_both_files_of_the_tokenizer_are_needed(files, tmp_path, caplog, name):
    (files / name).rename(tmp_path / name)
    captions = _captions(files, tmp_path)
    assert "put vocab.json and merges.txt of roberta-base there" in caplog.text
    with pytest.raises(FlowleyError, match=r"no tokenizer; put vocab.json and merges.txt of roberta-base"):
        captions(["a dog"])
    (tmp_path / name).rename(files / name)
    assert _captions(files, tmp_path)(["a dog"]).shape == (1, 77)


def test_a_damaged_tokenizer_is_noticed(files, tmp_path):
    captions = _captions(files, tmp_path)
    (captions.bundle.folder / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(FlowleyError, match=r"merges\.txt: is damaged or was replaced"):
        captions(["a dog"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"<s>": 1, "<pad>": 0}, r"vocab\.json: has the tokens .*; RoBERTa's are \{'<s>': 0"),
        (
            {"more": 400, "words": 401} | {f"word{n}": 402 + n for n in range(20)},
            r"and the text network only 330",
        ),
    ],
)
def test_tokenizers_of_other_models_are_refused(files, tmp_path, change, message):
    vocabulary = json.loads((files / "vocab.json").read_text())
    (files / "vocab.json").write_text(json.dumps(vocabulary | change))
    with pytest.raises(FlowleyError, match=message):
        _captions(files, tmp_path)(["a dog"])


def test_bundles_of_other_models_are_refused(tmp_path):
    source = published.write_t5(tmp_path / "t5", published.T5)
    with pytest.raises(FlowleyError, match="expected LAION-CLAP, found a T5 encoder"):
        ClapCaptions(bundle=convert(str(source), tmp_path / "bundles"))
