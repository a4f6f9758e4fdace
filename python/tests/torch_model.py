"""DPAR and LlamaGen in PyTorch, as small as they can be written: what a research team's own script would bring."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Weights = dict[str, torch.Tensor]
KINDS = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}


def load(path: Path) -> Weights:
    """The tensors of a .safetensors file, or of a .pt under "model"."""
    if path.suffix == ".pt":
        state: Weights = torch.load(path, map_location="cpu")["model"]
        return state
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    out = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + at for at in entry["data_offsets"])
        kind = KINDS[entry["dtype"]]
        out[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=kind).reshape(entry["shape"])
    return out


class RmsNorm(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """[n, heads, slots, width]: scores and softmax in float32; weights and sums rounded to the type of v."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
        scores = q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~allowed, -math.inf).softmax(-1).to(v.dtype)
        return (weights.float() @ v.float()).to(v.dtype)


def rotate(x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    cos, sin = rope
    pairs = x.float().unflatten(-1, (-1, 2))
    even, odd = pairs[..., 0], pairs[..., 1]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2).to(x.dtype)


def frequencies(count: int, span: float) -> torch.Tensor:
    return torch.tensor([10000.0 ** (-2.0 * k / span) for k in range(count)], dtype=torch.float64)


def tables(angles: torch.Tensor, zero_slot: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [.., slots, pairs]; a class or start slot before them has both 0."""
    cos, sin = angles.cos().float(), angles.sin().float()
    if zero_slot:
        none = torch.zeros_like(cos[..., :1, :])
        cos, sin = torch.cat([none, cos], -2), torch.cat([none, sin], -2)
    return cos, sin


def token_angles(tokens: int, grid: int, width: int) -> torch.Tensor:
    at = torch.arange(tokens, dtype=torch.float64)
    omega = frequencies(width // 4, width / 2)
    return torch.cat([torch.outer(at.div(grid, rounding_mode="floor"), omega), torch.outer(at % grid, omega)], 1)


class Block(nn.Module):
    def __init__(self, w: Weights, name: str, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = RmsNorm(w[f"{name}.attention_norm.weight"])
        self.ffn_norm = RmsNorm(w[f"{name}.ffn_norm.weight"])
        for part in ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"):
            self.register_parameter(part.split(".")[1], nn.Parameter(w[f"{name}.{part}.weight"]))

    def forward(
        self, h: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], allowed: torch.Tensor
    ) -> torch.Tensor:
        q, k, v = (self.split(x) for x in F.linear(self.attention_norm(h), self.wqkv).chunk(3, -1))
        mixed = attend(rotate(q, rope), rotate(k, rope), v, allowed).transpose(1, 2).flatten(-2)
        h = h + F.linear(mixed, self.wo)
        n = self.ffn_norm(h)
        return h + F.linear(F.silu(F.linear(n, self.w1)) * F.linear(n, self.w3), self.w2)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def blocks(w: Weights, name: str, heads: int) -> nn.ModuleList:
    count = 0
    while f"{name}.{count}.attention_norm.weight" in w:
        count += 1
    return nn.ModuleList(Block(w, f"{name}.{i}", heads) for i in range(count))


def causal(slots: int) -> torch.Tensor:
    return torch.ones(slots, slots, dtype=torch.bool).tril()


class Gpt(nn.Module):
    """LlamaGen: with classes the baseline, without them the entropy model."""

    def __init__(self, w: Weights, heads: int, grid: int) -> None:
        super().__init__()
        self.heads, self.grid = heads, grid
        self.layers = blocks(w, "layers", heads)
        self.norm = RmsNorm(w["norm.weight"])
        self.tok_embeddings = nn.Parameter(w["tok_embeddings.weight"])
        self.output = nn.Parameter(w["output.weight"])
        classes = w.get("cls_embedding.embedding_table.weight")
        self.classes = None if classes is None else nn.Parameter(classes)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        h = F.embedding(tokens, self.tok_embeddings)
        t = tokens.shape[1]
        if self.classes is not None:
            assert labels is not None
            h = torch.cat([F.embedding(labels, self.classes)[:, None], h[:, :-1]], 1)
        width = h.shape[-1] // self.heads
        leading = self.classes is not None
        rope = tables(token_angles(t - leading, self.grid, width), leading)
        for layer in self.layers:
            h = layer(h, rope, causal(t))
        return F.linear(self.norm(h), self.output).float()


class Cross(nn.Module):
    def __init__(self, w: Weights, name: str, parts: list[str]) -> None:
        super().__init__()
        for part in parts:
            weight = w[f"{name}.{part}.weight"]
            if part.startswith("cross_attn_norm"):
                self.add_module(part, RmsNorm(weight))
            else:
                self.register_parameter(part, nn.Parameter(weight))


class Dpar(nn.Module):
    """The main configuration: one encoder layer or more, `dynamic_4d`, full self-attention in the encoder."""

    def __init__(self, w: Weights, heads: int, grid: int) -> None:
        super().__init__()
        self.heads, self.grid = heads, grid
        self.tok_embeddings = nn.Parameter(w["tok_embeddings.weight"])
        self.classes = nn.Parameter(w["cls_embedding.embedding_table.weight"])
        self.start = nn.Parameter(w["decoder_start_embedding.weight"])
        self.output = nn.Parameter(w["output.weight"])
        self.norm = RmsNorm(w["norm.weight"])
        self.encoder = blocks(w, "local_encoder.layers", heads)
        self.layers = blocks(w, "layers", heads)
        self.decoder = blocks(w, "local_decoder.layers", heads)
        encoder = ["cross_attn_norm_q", "cross_attn_norm_kv", "wq", "wk", "wv", "wo"]
        into = "local_encoder.cross_attn_layers"
        self.pool = nn.ModuleList(Cross(w, f"{into}.{i}", encoder) for i in range(len(self.encoder)))
        out = "local_decoder.cross_attn_layers"
        kept = ["cross_attn_norm_kv", "wo"]
        self.add = nn.ModuleList(Cross(w, f"{out}.{i}", kept) for i in range(len(self.decoder)))

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor, patch_lengths: torch.Tensor) -> torch.Tensor:
        return torch.cat(
            [
                self.one(tokens[i : i + 1], labels[i : i + 1], [int(n) for n in patch_lengths[i] if n > 0])
                for i in range(len(tokens))
            ]
        )

    def one(self, tokens: torch.Tensor, label: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        t, width = tokens.shape[1], self.classes.shape[1] // self.heads
        patch_of = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        inside = torch.arange(len(lengths))[:, None] == patch_of[None]
        h = F.embedding(tokens, self.tok_embeddings)
        rope = tables(token_angles(t, self.grid, width), False)
        patches: Any = None
        for layer, cross in zip(self.encoder, self.pool):
            h = layer(h, rope, causal(t))
            if patches is None:
                patches = torch.stack([h[0, row].amax(0) for row in inside])[None]
            keys = cross.cross_attn_norm_kv(h)
            q = layer.split(F.linear(cross.cross_attn_norm_q(patches), cross.wq))
            k, v = layer.split(F.linear(keys, cross.wk)), layer.split(F.linear(keys, cross.wv))
            mixed = attend(q, k, v, inside).transpose(1, 2).flatten(-2)
            patches = patches + F.linear(mixed, cross.wo)
        g = torch.cat([F.embedding(label, self.classes)[:, None], patches[:, :-1]], 1)
        patch_rope = tables(self.patch_angles(lengths[:-1], width), True)
        for layer in self.layers:
            g = layer(g, patch_rope, causal(len(lengths)))
        h = torch.cat([self.start[None], h[:, :-1]], 1)
        rope = tables(token_angles(t - 1, self.grid, width), True)
        of_slot = g[:, patch_of]
        for layer, cross in zip(self.decoder, self.add):
            h = h + F.linear(cross.cross_attn_norm_kv(of_slot), cross.wo)
            h = layer(h, rope, causal(t))
        return F.linear(self.norm(h), self.output).float()

    def patch_angles(self, lengths: list[int], width: int) -> torch.Tensor:
        sizes = torch.tensor(lengths, dtype=torch.float64)
        last = sizes.cumsum(0) - 1
        first = last - sizes + 1
        row, a, b = first.div(self.grid, rounding_mode="floor"), first % self.grid, last % self.grid
        alpha = frequencies(width // 16, width / 8)
        by_row = torch.outer(row, frequencies(width // 4, width / 2))
        a, b = torch.outer(a, alpha), torch.outer(b, alpha)
        return torch.cat([by_row, a, b, b, a], 1)
