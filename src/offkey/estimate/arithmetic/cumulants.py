"""Joint cumulants of a circuit's nodes, and exact moments of Gaussians."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from offkey.errors import BadInput, BadValue, Mismatch
from offkey.estimate.arithmetic.circuit import Circuit, NodeLike
from offkey.estimate.quantities import Estimate

__all__ = ["Key", "Terms", "Cumulants", "cumulant_terms", "hafnian", "gaussian_moment"]

Key = tuple[int, ...]
Terms = list[tuple[float, tuple[Key, ...]]]
_MOST = 22
"""Most factors of a moment; time and memory grow with 2 to this power."""


class Cumulants:
    r"""Joint cumulants of nodes, those of an order above ``order`` taken to be 0.

    A cumulant is expanded at its latest node, at all copies of it at once: a sum by linearity, a
    product by :math:`\kappa(ab, Z) = \kappa(a, b, Z) + \sum_{Z = A \sqcup B} \kappa(a, A)
    \kappa(b, B)`; terms with a cumulant of too high an order are dropped. ``order=1`` carries
    means alone, ``order=2`` is propagation with all covariances, and ``order=None`` drops nothing:
    exact for leaves whose cumulants are all known, such as Gaussian blocks. Cumulants are
    computed on demand and kept.

    Args:
        circuit: of the nodes.
        order: highest order that is carried; ``None`` for all.

    References:
        Christiano, Neyman, Xu, 2022, appendix D. https://arxiv.org/abs/2211.06738
        Leonov, Shiryaev, 1959. On a method of calculation of semi-invariants.
    """

    def __init__(self, circuit: Circuit, order: int | None = None) -> None:
        if order is not None and order < 1:
            raise BadValue(f"order {order} is below 1", where="Cumulants")
        self.circuit, self.order = circuit, order
        self.flops = 0
        self._found: dict[Key, float] = {}

    def joint(self, *nodes: NodeLike) -> float:
        """Joint cumulant of some nodes, which may repeat; of one node its mean.

        Raises:
            BadValue: a leaf's cumulant of an order beyond those known is needed.
        """
        wanted = tuple(sorted(map(self.circuit.index, nodes)))
        if not wanted:
            raise BadValue("no node was given", where="joint cumulant")
        if self.order is not None and len(wanted) > self.order:
            return 0.0
        waiting: list[tuple[Key, Terms | None]] = [(wanted, None)]
        while waiting:
            key, terms = waiting.pop()
            if key in self._found:
                continue
            if terms is None:
                simple = self._simple(key)
                if simple is not None:
                    self._found[key] = simple
                    continue
                terms = self._expand(key)
                waiting.append((key, terms))
                inner = {part for _, parts in terms for part in parts}
                waiting += [(part, None) for part in inner if part not in self._found]
                continue
            self._found[key] = self._value(terms)

        return self._found[wanted]

    def estimate(self, node: NodeLike | None = None) -> Estimate:
        """Estimate of a node's mean; of the first output by default."""
        before = self.flops
        value = self.joint(self.circuit.outputs[0] if node is None else node)

        return Estimate(value, flops=self.flops - before)

    def _simple(self, key: Key) -> float | None:
        """A cumulant that needs no expansion: of leaves, or of independent nodes."""
        rest = key[:-1]
        if rest and rest[0] != key[-1]:
            for place, node in enumerate(key):
                others = key[:place] + key[place + 1 :]
                if all(self.circuit.are_independent(node, other) for other in others):
                    return 0.0
        if self.circuit.steps[key[-1]].kind != "leaf":
            return None
        if len(key) == 2 and key in self.circuit.known:
            return self.circuit.known[key]
        if len(set(key)) > 1:
            return 0.0
        leaf = self.circuit.leaf(key[0])
        if leaf.order is not None and len(key) > leaf.order:
            raise BadValue(
                f"its cumulant of order {len(key)} is not known",
                where=f"leaf {self.circuit.label(key[0])}",
                mend=f"Carry no cumulants above order {leaf.order}",
            )
        cumulants = (leaf.mean, leaf.variance, *leaf.cumulants)

        return cumulants[len(key) - 1] if len(key) <= len(cumulants) else 0.0

    def _expand(self, key: Key) -> Terms:
        latest = key[-1]
        step = self.circuit.steps[latest]
        if step.kind == "product":
            i, j = step.parents
            expanded = _expansion(key, {latest: (i, j)}, self.order)
            return [(float(count), parts) for parts, count in expanded.items()]
        terms: Terms = [
            (a, (tuple(sorted((*key[:-1], i))),))
            for a, i in zip(step.weights, step.parents, strict=True)
        ]
        if len(key) == 1:
            terms.append((step.constant, ()))

        return terms

    def _value(self, terms: Terms) -> float:
        total = 0.0
        for weight, parts in terms:
            for part in parts:
                weight *= self._found[part]
            total += weight
            self.flops += len(parts) + 1

        return total


def cumulant_terms(products: int) -> int:
    """How many terms the joint cumulant of n products of two has: 2, 11, 129, 2465, ….

    Raises:
        BadValue: fewer than one product.
    """
    if products < 1:
        raise BadValue(f"{products} products", where="cumulant_terms")
    factors = {-k: (2 * k, 2 * k + 1) for k in range(1, products + 1)}

    return sum(_expansion(tuple(sorted(factors)), factors, None).values())


def _expansion(
    key: Key, factors: Mapping[int, tuple[int, int]], order: int | None
) -> Counter[tuple[Key, ...]]:
    """Terms of a cumulant after every product in it is replaced by its factors, and how often."""
    terms: Counter[tuple[Key, ...]] = Counter({(key,): 1})
    for product in (node for node in key if node in factors):
        more: Counter[tuple[Key, ...]] = Counter()
        for parts, count in terms.items():
            place = next(p for p, part in enumerate(parts) if product in part)
            rest = list(parts[place])
            rest.remove(product)
            for made in _replaced(rest, *factors[product]):
                new = (*parts[:place], *made, *parts[place + 1 :])
                if not any(_is_dropped(part, factors, order) for part in new):
                    more[tuple(sorted(new))] += count
        terms = more

    return terms


def _replaced(rest: list[int], a: int, b: int) -> Iterator[tuple[Key, ...]]:
    """The parts that a cumulant of a product and the rest falls into."""
    yield (tuple(sorted((a, b, *rest))),)
    for chosen in itertools.product((True, False), repeat=len(rest)):
        left = [x for x, is_left in zip(rest, chosen, strict=True) if is_left]
        right = [x for x, is_left in zip(rest, chosen, strict=True) if not is_left]
        yield tuple(sorted((a, *left))), tuple(sorted((b, *right)))


def _is_dropped(part: Key, factors: Mapping[int, tuple[int, int]], order: int | None) -> bool:
    return order is not None and len(part) > order and not any(x in factors for x in part)


def hafnian(matrix: Float[np.ndarray, "n n"]) -> float:
    r"""Sum over all perfect matchings of the product of the matched entries.

    It is :math:`\mathbb E \prod_i x_i` of centred Gaussians with this covariance (Isserlis), 0
    where n is odd; the diagonal does not matter. Exact, in :math:`O(2^n n)`.

    Raises:
        BadInput: not a square, symmetric and finite matrix.
        BadValue: more than 22 rows.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise BadInput(f"shape {matrix.shape} is not square", where="hafnian")

    return gaussian_moment(np.zeros(len(matrix)), matrix, range(len(matrix)))


def gaussian_moment(
    mean: Float[np.ndarray, " d"] | Sequence[float],
    covariance: Float[np.ndarray, "d d"],
    indices: Sequence[int],
) -> float:
    r""":math:`\mathbb E \prod_{i} x_i` over a list of indices, which may repeat, of a Gaussian.

    Args:
        mean: ``[d]``.
        covariance: ``[d, d]``.
        indices: one for each factor, at most 22.

    Raises:
        Mismatch: the shapes do not match.
        BadInput: not symmetric, or not finite.
        BadValue: too many factors, or an index that does not exist.

    References:
        Isserlis, 1918. On a formula for the product-moment coefficient of any order.
    """
    mu, sigma = np.asarray(mean, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
    if sigma.shape != (len(mu), len(mu)):
        raise Mismatch(f"{len(mu)} means and a covariance of shape {sigma.shape}", where="moment")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise BadInput("a mean or covariance is not finite", where="moment")
    if np.abs(sigma - sigma.T).max(initial=0.0) > 1e-9 * np.abs(sigma).max(initial=0.0):
        raise BadInput("the covariance is not symmetric", where="moment")
    if len(indices) > _MOST or any(not 0 <= i < len(mu) for i in indices):
        raise BadValue(
            f"indices {list(indices)[:8]}: at most {_MOST}, each below {len(mu)}", where="moment"
        )
    chosen = list(indices)
    means = mu[chosen].tolist()
    pairs = sigma[np.ix_(chosen, chosen)].tolist()
    moments = [1.0] + [0.0] * ((1 << len(chosen)) - 1)
    for subset in range(1, len(moments)):
        last = subset.bit_length() - 1
        rest = subset ^ (1 << last)
        moment = means[last] * moments[rest]
        for other in range(last):
            if rest >> other & 1:
                moment += pairs[last][other] * moments[rest ^ (1 << other)]
        moments[subset] = moment

    return float(moments[-1])
