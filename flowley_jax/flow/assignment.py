"""Linear assignment on an accelerator: an auction in which all unassigned rows bid at once.

An exact solver takes one small step after the other, some 7,000 for 256 rows, and a device waits in each of
them; an auction needs about 1,000 rounds of a few reductions over the whole matrix.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# In units of a matrix's mean distance of a cost from the least one of its row.
FIRST_INCREMENT, LAST_INCREMENT = 2.0**-3, 2.0**-15
NARROWING = 4.0
# An auction that is not over after this many rounds per row hands out what is left.
PATIENCE = 64
# A GPU's host decides after every iteration of a loop whether there is another one.
ROUNDS_PER_ITERATION = 8


class _Auction(NamedTuple):
    """Owner of every column (G, N), -1 for none; prices (G, N); increments (G,); rounds so far."""

    owner: jax.Array
    price: jax.Array
    increment: jax.Array
    rounds: jax.Array


def assign(costs: Float[Array, "G N N"]) -> Int[Array, "G N"]:
    """The column of every row, each column once, in each of G matrices (Bertsekas, 1988: ε-scaled auction).

    The total cost is at most N·2⁻¹⁵ spreads above the least one, a spread being the mean distance of a cost
    from the least of its row; for costs without near ties it is the least one. Matrices of which an auction
    takes longer than 64·N rounds get the columns that are left in the rows' order.
    """
    groups, size, _ = costs.shape
    # What all columns cost a row more does not change its choice, and would cost digits.
    values = jnp.min(costs, axis=2, keepdims=True) - costs
    spread = jnp.maximum(-jnp.mean(values, axis=(1, 2)), jnp.finfo(costs.dtype).tiny)
    values = values / spread[:, None, None]
    start = _Auction(
        owner=jnp.full((groups, size), -1, jnp.int32),
        price=jnp.zeros((groups, size), costs.dtype),
        increment=jnp.full((groups,), FIRST_INCREMENT, costs.dtype),
        rounds=jnp.int32(0),
    )

    def unfinished(auction: _Auction):
        waiting = jnp.any(auction.owner < 0) | jnp.any(auction.increment > LAST_INCREMENT)
        return waiting & (auction.rounds < PATIENCE * size)

    def rounds(auction: _Auction) -> _Auction:
        for _ in range(ROUNDS_PER_ITERATION):
            auction = _round(values, auction)
        return auction

    return _hand_out(jax.lax.while_loop(unfinished, rounds, start).owner)


def _round(values: Float[Array, "G N N"], auction: _Auction) -> _Auction:
    """Every row without a column bids for its best one; where all have one, the next finer auction begins."""
    owner, increment = auction.owner, auction.increment
    sold = jnp.all(owner >= 0, axis=1) & (increment > LAST_INCREMENT)
    increment = jnp.where(sold, increment / NARROWING, increment)
    owner = jnp.where(sold[:, None], -1, owner)

    rows = jnp.arange(owner.shape[1], dtype=owner.dtype)
    waiting = ~jnp.any(_owns(owner), axis=2)
    gain = values - auction.price[:, None, :]
    wanted = jnp.argmax(gain, axis=2).astype(owner.dtype)
    is_wanted = wanted[:, :, None] == rows[None, None, :]
    best = jnp.max(gain, axis=2)
    second = jnp.max(jnp.where(is_wanted, -jnp.inf, gain), axis=2)
    # With one column there is no second.
    raise_ = jnp.where(jnp.isfinite(second), best - second, 0.0) + increment[:, None]
    bids = jnp.where(is_wanted & waiting[:, :, None], raise_[:, :, None], -jnp.inf)
    highest = jnp.max(bids, axis=1)
    bidder = jnp.argmax(bids, axis=1).astype(owner.dtype)
    bought = highest > 0
    return _Auction(
        owner=jnp.where(bought, bidder, owner),
        price=jnp.where(bought, auction.price + highest, auction.price),
        increment=increment,
        rounds=auction.rounds + 1,
    )


def _owns(owner: Int[Array, "G N"]) -> Bool[Array, "G N N"]:
    """Whether a row owns a column."""
    rows = jnp.arange(owner.shape[1], dtype=owner.dtype)
    return owner[:, None, :] == rows[None, :, None]


def _hand_out(owner: Int[Array, "G N"]) -> Int[Array, "G N"]:
    owns = _owns(owner)
    poor, free = ~jnp.any(owns, axis=2), owner < 0
    rank_of_row, rank_of_column = jnp.cumsum(poor, axis=1), jnp.cumsum(free, axis=1)
    meets = rank_of_row[:, :, None] == rank_of_column[:, None, :]
    return jnp.argmax(owns | (poor[:, :, None] & free[:, None, :] & meets), axis=2).astype(jnp.int32)
