"""The modules of benches/side_by_side/reference.py, called as a research team's own script would call them."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from conftest import ROOT
from torch import nn

sys.path.append(str(ROOT / "benches" / "side_by_side"))

import reference  # noqa: E402

Weights = dict[str, torch.Tensor]


def load(path: Path) -> Weights:
    """The tensors of a .safetensors or .pt file."""
    state: Weights = reference.load(path)
    return state


class Gpt(nn.Module):
    """LlamaGen: with classes the baseline, without them the entropy model."""

    def __init__(self, weights: Weights, heads: int, grid: int) -> None:
        super().__init__()
        self.model = reference.Transformer(weights, heads, grid)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of every slot: behind its own token, or with classes behind those before it."""
        found: torch.Tensor = self.model(tokens if labels is None else tokens[:, :-1], labels)
        return found.float()


class Dpar(nn.Module):
    """The main configuration: `dynamic_4d` rotary embedding of patches."""

    def __init__(self, weights: Weights, heads: int, grid: int) -> None:
        super().__init__()
        self.model = reference.Dpar(weights, heads, grid, "dynamic_4d")

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor, patch_lengths: torch.Tensor) -> torch.Tensor:
        """Logits of every slot behind the tokens before it, in the patches of these lengths."""
        starts = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, lengths in enumerate(patch_lengths):
            first = lengths[lengths > 0].cumsum(0)[:-1]
            starts[row, 0] = True
            starts[row, first] = True
        found: torch.Tensor = self.model(tokens[:, :-1], labels, starts)
        return found.float()
