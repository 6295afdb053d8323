"""Random keys that depend on the item, not on its place in a batch."""

import hashlib

import jax


def item_key(seed: int, item_id: str, sample: int = 0) -> jax.Array:
    """Key of one sample of one item: the seed, a stable hash of the id, and the sample's number."""
    digest = hashlib.sha256(item_id.encode()).digest()
    key = jax.random.fold_in(jax.random.key(seed), int.from_bytes(digest[:4], "little"))
    return jax.random.fold_in(key, sample)
