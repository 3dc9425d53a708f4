"""A language model after a fixed prefix, whose keys and values are computed once."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache

from offkey.errors import BadInput, BadValue, UnmappedModel
from offkey.estimate.risk.problem import Pull, TokenInputs, TokenNetwork
from offkey.models import Model

__all__ = ["LanguageNetwork"]

_Keys = list[tuple[Tensor, Tensor]]
_NODES = 64
"""How many inputs' keys and values are held side by side."""


class LanguageNetwork(TokenNetwork):
    """The next token after a prefix and free tokens.

    Logits are those before a cap, where the model caps them: the largest stays the largest.
    Everything is computed in the model's dtype; in bfloat16 logits tie often, so float32 is
    advised.

    Args:
        model: a causal language model.
        prefix: tokens that come first in every input.

    Raises:
        UnmappedModel: the model's parts are not known.
        BadInput: the prefix is empty.
        BadValue: a token of the prefix is not in the vocabulary.
    """

    def __init__(self, model: Model, prefix: Sequence[int]) -> None:
        wiring = model.wiring
        if wiring is None or wiring.unembedding is None:
            raise model.unmapped or UnmappedModel("no unembedding", where=f"model {model.name}")
        if not len(prefix):
            raise BadInput("the prefix is empty", where="prefix", mend="Give at least one token")
        self.model, self._wiring = model, wiring
        self.input_vocabulary = int(wiring.config.vocab_size)
        if min(prefix) < 0 or max(prefix) >= self.input_vocabulary:
            raise BadValue(
                f"a token is not in the vocabulary of {self.input_vocabulary}", where="prefix"
            )
        self.weight = cast(Tensor, wiring.unembedding.weight).detach()
        bias = getattr(wiring.unembedding, "bias", None)
        self.bias = self.weight.new_zeros(len(self.weight)) if bias is None else bias.detach()
        self.prefix = torch.tensor([list(prefix)], device=model.device)
        with torch.no_grad():
            cache = DynamicCache(config=wiring.config)
            wiring.decoder(input_ids=self.prefix, past_key_values=cache, use_cache=True)
        self._keys: _Keys = [(layer.keys, layer.values) for layer in cache.layers]

    def finals(self, tokens: Int[Tensor, "n k"]) -> Tensor:
        """What enters the unembedding at the last free token."""
        with torch.no_grad():
            return torch.cat(
                [self._last(self._embed(part)) for part in torch.split(tokens, _NODES)]
            )

    def pull(self, tokens: Int[Tensor, "n k"], target: int, candidates: Tensor) -> Pull:
        """The gradient of the target's logit with respect to the one-hot tokens."""
        with torch.no_grad():
            rows = self._embed(candidates)
        parts = []
        for part in torch.split(tokens, _NODES):
            with torch.enable_grad():
                embedded = self._embed(part).detach().requires_grad_()
                finals = self._last(embedded)
                (slope,) = torch.autograd.grad(self.logit(finals, target).sum(), embedded)
            parts.append(Pull(finals.detach(), torch.einsum("nkd,kcd->nkc", slope, rows)))

        return Pull(
            torch.cat([part.finals for part in parts]),
            torch.cat([part.gradient for part in parts]).double().cpu(),
        )

    def walk(self, inputs: TokenInputs) -> Iterator[tuple[Tensor, Tensor]]:
        """Every input, as a tree: a token that several inputs share is computed once.

        The candidates of a position stand side by side after their common past; the mask lets
        each see that past and itself.
        """
        root = torch.zeros(1, 0, dtype=torch.long)
        with torch.no_grad():
            yield from self._branches(inputs, root, self._keys)

    def _branches(
        self, inputs: TokenInputs, past: Tensor, keys: _Keys
    ) -> Iterator[tuple[Tensor, Tensor]]:
        depth, width = past.shape[1], inputs.sizes[past.shape[1]]
        hidden, grown = self._candidates(inputs.tokens[depth, :width], len(past), keys)
        number = torch.arange(width).repeat(len(past))[:, None]
        children = torch.cat([past.repeat_interleave(width, 0), number], 1)
        if depth + 1 == inputs.positions:
            yield children, hidden.flatten(0, 1)
            return
        length = self.prefix.shape[1] + depth
        for part in torch.split(torch.arange(len(children)), _NODES):
            yield from self._branches(inputs, children[part], _grown(grown, part, length, width))

    def _candidates(self, tokens: Tensor, parents: int, keys: _Keys) -> tuple[Tensor, _Keys]:
        """Runs the same candidates after each of several pasts."""
        cache = self._cache(keys, parents)
        length, width = keys[0][0].shape[2], len(tokens)
        embedded = self._embed(tokens[None]).expand(parents, -1, -1)
        mask = embedded.new_full((width, length + width), torch.finfo(embedded.dtype).min)
        mask[:, :length] = 0
        mask[:, length:].fill_diagonal_(0)
        out = self._wiring.decoder(
            inputs_embeds=embedded,
            attention_mask=mask.expand(parents, 1, -1, -1),
            position_ids=torch.full((parents, width), length, device=embedded.device),
            past_key_values=cache,
            use_cache=True,
        )

        return out.last_hidden_state, [(layer.keys, layer.values) for layer in cache.layers]

    def _embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self._wiring.embedding(tokens.to(self.model.device))

        return embedded

    def _last(self, embedded: Tensor) -> Tensor:
        out = self._wiring.decoder(
            inputs_embeds=embedded,
            past_key_values=self._cache(self._keys, len(embedded)),
            use_cache=True,
        )

        return out.last_hidden_state[:, -1].contiguous()  # type: ignore[no-any-return] # untyped

    def _cache(self, keys: _Keys, rows: int) -> Any:
        cache = DynamicCache(config=self._wiring.config)
        for number, (key, value) in enumerate(keys):
            cache.update(key.expand(rows, -1, -1, -1), value.expand(rows, -1, -1, -1), number)

        return cache


def _grown(keys: _Keys, nodes: Tensor, length: int, width: int) -> _Keys:
    """Keys and values of some children: their parent's, and their own."""
    parent, own = nodes // width, length + nodes % width

    def of(x: Tensor) -> Tensor:
        new = x[parent, :, own][:, :, None]

        return torch.cat([x[parent, :, :length], new], 2)

    return [(of(key), of(value)) for key, value in keys]
