"""Linear assignment on an accelerator: an auction in which all unassigned rows bid at once.

An exact solver takes small steps one after another, about 7,000 for 256 rows, and a device would wait in each
of them. An auction needs about 700 rounds of a few reductions over the whole matrix.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from flowley_jax.common.devices import platform_in_use

# Bidding increments ε, relative to a matrix's mean distance of a cost from the lowest cost of its row.
FIRST_INCREMENT, LAST_INCREMENT = 2.0**-3, 2.0**-15
# Each phase of the auction has one increment, this many times smaller than the previous phase's.
INCREMENT_DECAY = 4.0
# After this many rounds per row, the auction stops and unassigned columns are distributed in order.
MAX_ROUNDS_PER_ROW = 64
# On a GPU, the host decides after every loop iteration whether to run another one.
ROUNDS_PER_ITERATION = 8
# On a TPU, a matrix and the arrays of a round stay in a core's vector memory, padded to tiles of 8 × 128.
LANES, MAX_SIZE_IN_VMEM = 128, 512
_UNASSIGNED = -1
# Owner of the columns that only pad a tile: not a row, and not _UNASSIGNED.
_PADDING_OWNER = 2**20
_PADDING_VALUE = -1e30


class _State(NamedTuple):
    """State of an auction, one entry per column; each array is (…, 1, N).

    Attributes:
      owners: row that owns each column, or _UNASSIGNED.
      prices: price of each column.
      increment: bidding increment of the current phase, the same in every entry.
    """

    owners: jax.Array
    prices: jax.Array
    increment: jax.Array


def assign(
    costs: Float[Array, "G N N"], *, rounds_per_iteration: int = ROUNDS_PER_ITERATION, interpret: Any = False
) -> Int[Array, "G N"]:
    """Assign each row of each matrix its own column, at nearly the lowest total cost.

    This is the auction algorithm with ε-scaling (Bertsekas, 1988). The total cost is at most N·2⁻¹⁵ spreads
    above the lowest possible one, where a spread is the mean distance of a cost from the lowest cost of its
    row; without near ties it is the lowest. If the auction takes more than 64·N rounds, unassigned columns go
    to unassigned rows in order.

    Args:
      costs: G matrices of N rows and N columns, float32.
      rounds_per_iteration: bidding rounds per iteration of the XLA loop; no effect on the result.
      interpret: run the TPU kernel in Pallas's interpreter: True, or pltpu.InterpretParams.

    Returns:
      Column of each row, int32.
    """
    size = costs.shape[1]
    if size == 1:
        return jnp.zeros(costs.shape[:2], jnp.int32)
    # The lowest cost of a row changes none of its choices, and would cost digits.
    values = jnp.min(costs, axis=2, keepdims=True) - costs
    spread = jnp.maximum(-jnp.mean(values, axis=(1, 2), keepdims=True), jnp.finfo(costs.dtype).tiny)
    values = values / spread
    if interpret or (platform_in_use() == "tpu" and size <= MAX_SIZE_IN_VMEM):
        owners = _run_pallas(values, interpret)
    else:
        owners = _run_xla(values, rounds_per_iteration)
    return _columns_of_rows(owners)


def _run_xla(values: Float[Array, "G N N"], rounds_per_iteration: int) -> Int[Array, "G N"]:
    """Return the owner of each column after the auction."""
    groups, size, _ = values.shape

    def unfinished(carry):
        state, rounds = carry
        return _unfinished(state) & (rounds < MAX_ROUNDS_PER_ROW * size)

    def iterate(carry):
        state, rounds = carry
        for _ in range(rounds_per_iteration):
            state = _bidding_round(values, size, state)
        return state, rounds + rounds_per_iteration

    start = _initial_state((groups, 1, size), size)
    state, _ = jax.lax.while_loop(unfinished, iterate, (start, jnp.int32(0)))
    return state.owners[:, 0]


def _run_pallas(values: Float[Array, "G N N"], interpret: Any) -> Int[Array, "G N"]:
    """Return the owner of each column; each matrix stays in vector memory for its whole auction."""
    groups, size, _ = values.shape
    padded = LANES * math.ceil(size / LANES)
    padding = (0, padded - size)
    values = jnp.pad(values, ((0, 0), padding, padding), constant_values=jnp.float32(_PADDING_VALUE))

    def kernel(values_ref, owners_ref, prices_scr, increment_scr):
        """Run the auction of one matrix.

        values_ref is (padded, padded) float32; owners_ref (1, padded) int32, the output; prices_scr and
        increment_scr (1, padded) float32.
        """
        # Mosaic carries scalars through a loop, but no arrays; these live in memory.
        refs = (owners_ref, prices_scr, increment_scr)
        _store(refs, _initial_state((1, padded), size))

        def unfinished(carry):
            running, rounds = carry
            return (running > 0) & (rounds < MAX_ROUNDS_PER_ROW * size)

        def iterate(carry):
            state = _bidding_round(values_ref[...], size, _State(*(ref[...] for ref in refs)))
            _store(refs, state)
            return _unfinished(state).astype(jnp.int32), carry[1] + 1

        jax.lax.while_loop(unfinished, iterate, (jnp.int32(1), jnp.int32(0)))

    owners: Any = pl.pallas_call(
        kernel,
        grid=(groups,),
        in_specs=[pl.BlockSpec((None, padded, padded), lambda group: (group, 0, 0))],
        out_specs=pl.BlockSpec((None, 1, padded), lambda group: (group, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((groups, 1, padded), jnp.int32),
        scratch_shapes=[pltpu.VMEM((1, padded), jnp.float32)] * 2,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=interpret,
        name="auction",
    )(values)
    return owners[:, 0, :size]


def _store(refs, state: _State) -> None:
    for ref, value in zip(refs, state, strict=True):
        ref[...] = value


def _initial_state(shape: tuple[int, ...], size: int) -> _State:
    return _State(
        owners=_no_owners(shape, size),
        prices=jnp.zeros(shape, jnp.float32),
        increment=jnp.full(shape, FIRST_INCREMENT, jnp.float32),
    )


def _unfinished(state: _State) -> Bool[Array, ""]:
    """Return whether a column is unassigned, or a phase with a smaller increment is still to come."""
    return (jnp.min(state.owners) < 0) | (jnp.max(state.increment) > LAST_INCREMENT)


def _bidding_round(values: jax.Array, size: int, state: _State) -> _State:
    """Let every unassigned row bid for its best column, and give each column to its highest bidder.

    Where all columns are assigned, the next phase begins first: with a smaller increment, the same prices and
    no owners.
    """
    owners, prices, increment = state
    # Mosaic broadcasts numbers, but not booleans.
    lowest_owner = jnp.broadcast_to(jnp.min(owners, axis=-1, keepdims=True), owners.shape)
    restart = (lowest_owner >= 0) & (increment > LAST_INCREMENT)
    increment = jnp.where(restart, increment / INCREMENT_DECAY, increment)
    owners = jnp.where(restart, _no_owners(owners.shape, size), owners)

    rows, columns = _indices(values.shape, -2), _indices(values.shape, -1)
    is_owner = jnp.max(jnp.where(owners == rows, 1.0, 0.0), axis=-1, keepdims=True)
    unassigned_rows = (is_owner == 0.0) & (_indices(is_owner.shape, -2) < size)
    gain = values - prices
    best = jnp.max(gain, axis=-1, keepdims=True)
    is_best = columns == jnp.argmax(gain, axis=-1, keepdims=True).astype(columns.dtype)
    second_best = jnp.max(jnp.where(is_best, -jnp.inf, gain), axis=-1, keepdims=True)
    margin = jnp.where(unassigned_rows, best - second_best, -jnp.inf)
    bids = jnp.where(is_best, margin, -jnp.inf)
    highest_bid = jnp.max(bids, axis=-2, keepdims=True)
    highest_bidder = jnp.argmax(bids, axis=-2, keepdims=True).astype(owners.dtype)
    sold = highest_bid >= 0.0
    return _State(
        owners=jnp.where(sold, highest_bidder, owners),
        prices=jnp.where(sold, prices + highest_bid + increment, prices),
        increment=increment,
    )


def _no_owners(shape: tuple[int, ...], size: int) -> Int[Array, "..."]:
    """Return the owners before the first sale."""
    return jnp.where(_indices(shape, -1) < size, _UNASSIGNED, _PADDING_OWNER)


def _indices(shape: tuple[int, ...], axis: int) -> Int[Array, "..."]:
    return jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) + axis)


def _columns_of_rows(owners: Int[Array, "G N"]) -> Int[Array, "G N"]:
    """Return each row's column; unassigned columns go to unassigned rows, in order."""
    rows = jnp.arange(owners.shape[1], dtype=owners.dtype)
    owns = owners[:, None, :] == rows[None, :, None]
    unassigned_rows, unassigned_columns = ~jnp.any(owns, axis=2), owners < 0
    row_rank, column_rank = jnp.cumsum(unassigned_rows, axis=1), jnp.cumsum(unassigned_columns, axis=1)
    same_rank = row_rank[:, :, None] == column_rank[:, None, :]
    fallback = unassigned_rows[:, :, None] & unassigned_columns[:, None, :] & same_rank
    return jnp.argmax(owns | fallback, axis=2).astype(jnp.int32)
