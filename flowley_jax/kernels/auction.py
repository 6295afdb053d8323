"""Linear assignment on an accelerator: an auction in which all unassigned rows bid at once.

An exact solver takes one small step after the other, some 7,000 for 256 rows, and a device waits in each of
them; an auction needs about 700 rounds of a few reductions over the whole matrix.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from flowley_jax.devices import platform_in_use

# In units of a matrix's mean distance of a cost from the least one of its row.
FIRST_INCREMENT, LAST_INCREMENT = 2.0**-3, 2.0**-15
NARROWING = 4.0
# An auction that is not over after this many rounds per row hands out what is left.
PATIENCE = 64
# A GPU's host decides after every iteration of a loop whether there is another one.
ROUNDS_PER_ITERATION = 8
# On a TPU a matrix and what is made of it in a round stay in a core's vector memory, in tiles of 8 × 128.
LANES, LARGEST_IN_VMEM = 128, 512
# Owner of a column that only fills up a tile, which no row is.
_FILLING = 2**20
_NEVER = -1e30


class _Auction(NamedTuple):
    """Of every column, (…, 1, N): owner, -1 for none; price; the auction's increment, the same for all."""

    owner: jax.Array
    price: jax.Array
    increment: jax.Array


def assign(costs: Float[Array, "G N N"], *, interpret: Any = False) -> Int[Array, "G N"]:
    """The column of every row, each column once, in each of G matrices (Bertsekas, 1988: ε-scaled auction).

    The total cost is at most N·2⁻¹⁵ spreads above the least one, a spread being the mean distance of a cost
    from the least of its row; for costs without near ties it is the least one. Matrices of which an auction
    takes longer than 64·N rounds get the columns that are left in the rows' order.

    Args:
      interpret: run the TPU's kernel in Pallas's interpreter: True, or pltpu.InterpretParams.
    """
    size = costs.shape[1]
    if size == 1:
        return jnp.zeros(costs.shape[:2], jnp.int32)
    # What all columns cost a row more does not change its choice, and would cost digits.
    values = jnp.min(costs, axis=2, keepdims=True) - costs
    spread = jnp.maximum(-jnp.mean(values, axis=(1, 2), keepdims=True), jnp.finfo(costs.dtype).tiny)
    values = values / spread
    in_kernel = interpret or (platform_in_use() == "tpu" and size <= LARGEST_IN_VMEM)
    owner = _by_pallas(values, interpret) if in_kernel else _by_xla(values)
    return _hand_out(owner)


def _by_xla(values: Float[Array, "G N N"]) -> Int[Array, "G N"]:
    size = values.shape[1]

    def unfinished(state):
        auction, rounds = state
        return _unfinished(auction) & (rounds < PATIENCE * size)

    def several(state):
        auction, rounds = state
        for _ in range(ROUNDS_PER_ITERATION):
            auction = _round(values, size, auction)
        return auction, rounds + ROUNDS_PER_ITERATION

    start = _start((len(values), 1, size), size)
    return jax.lax.while_loop(unfinished, several, (start, jnp.int32(0)))[0].owner[:, 0]


def _by_pallas(values: Float[Array, "G N N"], interpret) -> Int[Array, "G N"]:
    """One matrix after the other, each from beginning to end in vector memory."""
    groups, size, _ = values.shape
    filled = LANES * math.ceil(size / LANES)
    values = jnp.pad(
        values, ((0, 0), (0, filled - size), (0, filled - size)), constant_values=jnp.float32(_NEVER)
    )

    def kernel(values, owner, price, increment):
        # Mosaic carries numbers through a loop, and rows of them only in memory.
        rows = (owner, price, increment)
        _store(rows, _start((1, filled), size))

        def unfinished(state):
            return (state[0] > 0) & (state[1] < PATIENCE * size)

        def once(state):
            auction = _round(values[...], size, _Auction(*(row[...] for row in rows)))
            _store(rows, auction)
            return _unfinished(auction).astype(jnp.int32), state[1] + 1

        jax.lax.while_loop(unfinished, once, (jnp.int32(1), jnp.int32(0)))

    owner: Any = pl.pallas_call(
        kernel,
        grid=(groups,),
        in_specs=[pl.BlockSpec((None, filled, filled), lambda group: (group, 0, 0))],
        out_specs=pl.BlockSpec((None, 1, filled), lambda group: (group, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((groups, 1, filled), jnp.int32),
        scratch_shapes=[pltpu.VMEM((1, filled), jnp.float32)] * 2,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=interpret,
    )(values)
    return owner[:, 0, :size]


def _store(rows, auction: _Auction) -> None:
    for row, value in zip(rows, auction, strict=True):
        row[...] = value


def _start(shape: tuple[int, ...], size: int) -> _Auction:
    return _Auction(
        owner=_nobodys(shape, size),
        price=jnp.zeros(shape, jnp.float32),
        increment=jnp.full(shape, FIRST_INCREMENT, jnp.float32),
    )


def _unfinished(auction: _Auction):
    """Whether a column has no owner, or a finer auction is still to come."""
    return (jnp.min(auction.owner) < 0) | (jnp.max(auction.increment) > LAST_INCREMENT)


def _round(values, size: int, auction: _Auction) -> _Auction:
    """Every row without a column bids for its best one; where all have one, the next finer auction begins."""
    owner, price, increment = auction
    # Mosaic broadcasts numbers, and not the outcomes of comparisons.
    lowest = jnp.broadcast_to(jnp.min(owner, axis=-1, keepdims=True), owner.shape)
    sold = (lowest >= 0) & (increment > LAST_INCREMENT)
    increment = jnp.where(sold, increment / NARROWING, increment)
    owner = jnp.where(sold, _nobodys(owner.shape, size), owner)

    rows, columns = _indices(values.shape, -2), _indices(values.shape, -1)
    owned = jnp.max(jnp.where(owner == rows, 1.0, 0.0), axis=-1, keepdims=True)
    waiting = (owned == 0.0) & (_indices(owned.shape, -2) < size)
    gain = values - price
    best = jnp.max(gain, axis=-1, keepdims=True)
    is_wanted = columns == jnp.argmax(gain, axis=-1, keepdims=True).astype(columns.dtype)
    second = jnp.max(jnp.where(is_wanted, -jnp.inf, gain), axis=-1, keepdims=True)
    margin = jnp.where(waiting, best - second, -jnp.inf)
    bids = jnp.where(is_wanted, margin, -jnp.inf)
    highest = jnp.max(bids, axis=-2, keepdims=True)
    bidder = jnp.argmax(bids, axis=-2, keepdims=True).astype(owner.dtype)
    bought = highest >= 0.0
    return _Auction(
        owner=jnp.where(bought, bidder, owner),
        price=jnp.where(bought, price + highest + increment, price),
        increment=increment,
    )


def _nobodys(shape: tuple[int, ...], size: int) -> Int[Array, "..."]:
    """Owners before anything is sold."""
    return jnp.where(_indices(shape, -1) < size, -1, _FILLING)


def _indices(shape: tuple[int, ...], axis: int) -> Int[Array, "..."]:
    return jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) + axis)


def _hand_out(owner: Int[Array, "G N"]) -> Int[Array, "G N"]:
    """The column of every row, from the owners; what is left goes to the rows without, in their order."""
    rows = jnp.arange(owner.shape[1], dtype=owner.dtype)
    owns = owner[:, None, :] == rows[None, :, None]
    poor, free = ~jnp.any(owns, axis=2), owner < 0
    rank_of_row, rank_of_column = jnp.cumsum(poor, axis=1), jnp.cumsum(free, axis=1)
    meets = rank_of_row[:, :, None] == rank_of_column[:, None, :]
    return jnp.argmax(owns | (poor[:, :, None] & free[:, None, :] & meets), axis=2).astype(jnp.int32)
