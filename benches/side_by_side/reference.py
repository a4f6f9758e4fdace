"""DPAR and LlamaGen in PyTorch, as an experiment folder holds them: every token again for every slot (`recompute`, as
the research code decodes), or with KV caches in all three transformers (`Cached`).

    python reference.py EXPERIMENT REFERENCE.safetensors --loops --near      holds all against recorded logits, entropies and patches

Shapes: B images, T tokens of an image, W tokens of a row, M patches, D width, V codes. float32 throughout, or as autocast rounds
it. It is what the program's own graphs are timed and checked against, so it shares nothing with them but the checkpoint; the
tests of the Python package record references from the same modules (python/tests/torch_model.py).
"""

import argparse
import json
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

EPS = 1e-5
#: Largest difference that float32 sums in another order make in the logits and entropies of the fixtures and of size B.
NEAR = 2e-4


def read_safetensors(path):
    """The tensors of a file, mapped, not copied."""
    kinds = {"F32": np.float32, "I64": np.int64, "U8": np.uint8, "I32": np.int32}
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    data = np.memmap(path, np.uint8, mode="c", offset=8 + length)
    out = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        out[name] = data[start:end].view(kinds[entry["dtype"]]).reshape(entry["shape"])
    return out


def load(path):
    """The state dict of a .safetensors or .pt file, as float32 tensors."""
    if path.suffix == ".safetensors":
        return {name: torch.from_numpy(array) for name, array in read_safetensors(path).items()}
    state = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    for key in ("model", "module", "state_dict"):
        state = state.get(key, state)
    return {name: tensor.float() for name, tensor in state.items()}


def weights(folder):
    """The state dict of an experiment folder."""
    for places in ("checkpoints/*/model.safetensors", "checkpoints/*/model.pt", "*.pt"):
        found = sorted(Path(folder).glob(places))
        if found:
            return load(found[-1])
    sys.exit(f"{folder} holds no weights")


def hold(module, tensors):
    """Gives a module its weights, by name; those that are None it does not have."""
    for name, tensor in tensors.items():
        held = None if tensor is None else torch.nn.Parameter(tensor, requires_grad=False)
        module.register_parameter(name, held)


# Rotary embedding: angles of Dh/2 pairs; a class or start slot has cos = sin = 0.


def token_angles(positions, width, pairs):
    """[..., pairs] angles of tokens at `positions` (int64)."""
    half = pairs // 2
    omega = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    row, column = positions // width, positions % width
    return torch.cat([row[..., None] * omega, column[..., None] * omega], -1).float()


def patch_angles(kind, first, last, index, width, pairs):
    """[..., pairs] angles of patches of tokens first..last, or of their index where `kind` is None."""
    if kind is None:
        omega = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        return (index[..., None] * omega).float()
    half = pairs // 2
    rows = (first // width)[..., None] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    a, b = (first % width)[..., None], (last % width)[..., None]
    if kind == "dynamic_3d":
        quarter = pairs // 4
        beta = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
        return torch.cat([rows, a * beta, b * beta], -1).float()
    eighth = pairs // 8
    alpha = 10000.0 ** (-torch.arange(eighth, dtype=torch.float64) / eighth)
    return torch.cat([rows, a * alpha, b * alpha, b * alpha, a * alpha], -1).float()


def table(angles, zero=None):
    """cos and sin of `angles`; both 0 where `zero`."""
    cos, sin = angles.cos(), angles.sin()
    if zero is not None:
        keep = (~zero)[..., None].float()
        cos, sin = cos * keep, sin * keep
    return cos, sin


def rotate(x, cos, sin):
    """x [B, S, H, Dh]; cos, sin [B or 1, S, Dh/2]: adjacent pairs turn."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[:, :, None], sin[:, :, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def norm(x, weight):
    return F.rms_norm(x, x.shape[-1:], weight, EPS)


class Block(torch.nn.Module):
    """LlamaGen's block: attention and feed-forward, each behind an RMSNorm."""

    def __init__(self, state, prefix, heads):
        super().__init__()
        self.heads = heads
        keys = {
            "wqkv": "attention.wqkv", "wo": "attention.wo", "w1": "feed_forward.w1", "w2": "feed_forward.w2",
            "w3": "feed_forward.w3", "attention_norm": "attention_norm", "ffn_norm": "ffn_norm",
        }
        hold(self, {name: state[f"{prefix}.{key}.weight"] for name, key in keys.items()})

    def qkv(self, h, cos, sin):
        q, k, v = F.linear(norm(h, self.attention_norm), self.wqkv).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))
        return rotate(q, cos, sin).transpose(1, 2), rotate(k, cos, sin).transpose(1, 2), v.transpose(1, 2)

    def rest(self, h, attended):
        h = h + F.linear(attended.transpose(1, 2).flatten(-2), self.wo)
        n = norm(h, self.ffn_norm)
        return h + F.linear(F.silu(F.linear(n, self.w1)) * F.linear(n, self.w3), self.w2)

    def forward(self, h, cos, sin, mask=None):
        """Over whole sequences; causal, or as `mask` says."""
        q, k, v = self.qkv(h, cos, sin)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.rest(h, attended)

    def step(self, h, cos, sin, keys, values, past):
        """One new slot of each row, [B, 1, D], behind `past` slots of the caches [B, H, slots, Dh], which it extends."""
        q, k, v = self.qkv(h, cos, sin)
        keys[:, :, past:past + 1], values[:, :, past:past + 1] = k, v
        attended = F.scaled_dot_product_attention(q, keys[:, :, :past + 1], values[:, :, :past + 1])
        return self.rest(h, attended)

    def ragged(self, h, cos, sin, keys, values, rows, past, longest):
        """As `step`, of the rows `rows` of the caches, each behind its own number of slots `past`, all below `longest`."""
        q, k, v = self.qkv(h, cos, sin)
        keys[rows, :, past], values[rows, :, past] = k[:, :, 0], v[:, :, 0]
        mask = (torch.arange(longest)[None] <= past[:, None])[:, None, None]
        attended = F.scaled_dot_product_attention(q, keys[rows, :, :longest], values[rows, :, :longest], attn_mask=mask)
        return self.rest(h, attended)


@dataclass
class Rule:
    """`patcher` of config.yaml: where patches open."""

    mode: str
    threshold: float
    longest: int
    row: int

    def opens(self, slot, entropy, held):
        """Whether token `slot` opens a patch; the open one holds `held` tokens. Arrays over images."""
        if self.mode == "token":
            return np.ones_like(held, bool)
        always = slot in (0, 1) or slot % self.row == 0
        return (entropy > np.float32(self.threshold)) | (held >= self.longest) | always


class Transformer(torch.nn.Module):
    """A LlamaGen transformer: the baseline with classes, the entropy model without."""

    def __init__(self, state, heads, width):
        super().__init__()
        self.width, self.heads = width, heads
        self.dim = state["norm.weight"].shape[0]
        count = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("layers."))
        self.blocks = torch.nn.ModuleList(Block(state, f"layers.{i}", heads) for i in range(count))
        hold(self, {
            "tokens": state["tok_embeddings.weight"], "classes": state.get("cls_embedding.embedding_table.weight"),
            "norm": state["norm.weight"], "output": state["output.weight"],
        })

    @property
    def lead(self):
        """Slots before the first token."""
        return int(self.classes is not None)

    def logits(self, h):
        return F.linear(norm(h, self.norm), self.output)

    def slots(self, first, count):
        """Rotary tables [1, count, Dh/2] of slots first..; slot 0 turns by nothing where a class stands there."""
        slot = torch.arange(first, first + count)[None]
        zero = slot < self.lead
        return table(token_angles((slot - self.lead).clamp(min=0), self.width, self.dim // self.heads // 2), zero)

    def forward(self, tokens, labels=None):
        """[B, lead + S, V]: logits behind the class and each of S tokens."""
        h = self.tokens[tokens]
        if self.lead:
            h = torch.cat([self.classes[labels][:, None], h], 1)
        cos, sin = self.slots(0, h.shape[1])
        for block in self.blocks:
            h = block(h, cos, sin)
        return self.logits(h)

    def step(self, h, cos, sin, keys, values, past):
        for block, k, v in zip(self.blocks, keys, values):
            h = block.step(h, cos, sin, k, v, past)
        return self.logits(h)[:, 0]


def entropy_of(logits):
    """In nats."""
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)


class Cross(torch.nn.Module):
    """The weights of a cross-attention; the decoder's has no queries where it attends over one key."""

    def __init__(self, state, prefix):
        super().__init__()
        names = ("wq", "wk", "wv", "wo", "cross_attn_norm_q", "cross_attn_norm_kv")
        hold(self, {name: state.get(f"{prefix}.{name}.weight") for name in names})


class Dpar(torch.nn.Module):
    """Patch encoder, global transformer, patch decoder."""

    def __init__(self, state, heads, width, embedding):
        super().__init__()
        self.width, self.heads, self.embedding = width, heads, embedding
        self.dim = state["norm.weight"].shape[0]

        def blocks(prefix):
            at = prefix.count(".") + 1
            count = 1 + max(int(k.split(".")[at]) for k in state if k.startswith(f"{prefix}."))
            return torch.nn.ModuleList(Block(state, f"{prefix}.{i}", heads) for i in range(count))

        self.encoder, self.world, self.decoder = blocks("local_encoder.layers"), blocks("layers"), blocks("local_decoder.layers")

        def crosses(prefix, blocks):
            return torch.nn.ModuleList(Cross(state, f"{prefix}.cross_attn_layers.{i}") for i in range(len(blocks)))

        self.pools, self.injects = crosses("local_encoder", self.encoder), crosses("local_decoder", self.decoder)
        keys = {
            "tokens": "tok_embeddings", "classes": "cls_embedding.embedding_table", "start": "decoder_start_embedding",
            "norm": "norm", "output": "output",
        }
        hold(self, {name: state[f"{key}.weight"] for name, key in keys.items()})

    @property
    def pairs(self):
        return self.dim // self.heads // 2

    def pool(self, layer, hidden, patch, mask):
        """Cross-attention of patches over their own tokens. hidden [P, L, D], mask [P, L]; patch [P, D] or None."""
        w = self.pools[layer]
        if patch is None:
            patch = hidden.masked_fill(~mask[..., None], -torch.inf).amax(1)
        heads = lambda t: t.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        q = heads(F.linear(norm(patch, w.cross_attn_norm_q), w.wq)[:, None])
        n = norm(hidden, w.cross_attn_norm_kv)
        k, v = heads(F.linear(n, w.wk)), heads(F.linear(n, w.wv))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        return patch + F.linear(attended.transpose(1, 2).flatten(1), w.wo)

    def embed(self, hiddens, mask):
        """Patches of P × L token states, a list over encoder layers."""
        patch = None
        for layer, hidden in enumerate(hiddens):
            patch = self.pool(layer, hidden, patch, mask)
        return patch

    def inject(self, layer, h, g):
        """What the global state adds to a decoder slot: attention over one key is its value."""
        w = self.injects[layer]
        value = norm(g, w.cross_attn_norm_kv)
        if w.wv is not None:
            value = F.linear(value, w.wv)
        return h + F.linear(value, w.wo)

    def logits(self, h):
        return F.linear(norm(h, self.norm), self.output)

    def token_table(self, slot, lead):
        zero = slot < lead
        return table(token_angles((slot - lead).clamp(min=0), self.width, self.pairs), zero)

    def patch_table(self, first, last, index):
        return table(patch_angles(self.embedding, first, last, index, self.width, self.pairs))

    def forward(self, tokens, labels, starts):
        """Logits [B, S + 1, V] of slots 0..S behind S tokens; starts [B, S + 1] says which slots open a patch."""
        batch, count = tokens.shape
        patch_of = starts.cumsum(1) - 1
        h, hiddens = self.tokens[tokens], []
        if count:
            cos, sin = self.token_table(torch.arange(count)[None], 0)
            for block in self.encoder:
                h = block(h, cos, sin)
                hiddens.append(h)
        # A patch is known to the global transformer when it is closed: all but the last.
        closed = patch_of[:, -1]
        most = int(closed.max())
        states = self.classes[labels][:, None]
        zero = torch.zeros(batch, self.pairs)[:, None]
        cos, sin = zero, zero
        if most:
            opens = torch.zeros(batch, most + 1, dtype=torch.int64)
            for row in range(batch):
                at = starts[row].nonzero()[:, 0][:most + 1]
                opens[row, :len(at)] = at
            first = opens[:, :most]
            last = torch.where(torch.arange(most)[None] < closed[:, None], opens[:, 1:] - 1, first)
            length = int((last - first).max()) + 1
            index = (first[..., None] + torch.arange(length)).clamp(max=count - 1)
            mask = torch.arange(length) <= (last - first)[..., None]
            rows = torch.arange(batch)[:, None, None].expand_as(index)
            gathered = [h[rows, index].flatten(0, 1) for h in hiddens]
            patches = self.embed(gathered, mask.flatten(0, 1)).unflatten(0, (batch, most))
            states = torch.cat([states, patches], 1)
            turn = self.patch_table(first, last, torch.arange(most)[None].expand_as(first))
            cos, sin = (torch.cat([zero, t], 1) for t in turn)
        for block in self.world:
            states = block(states, cos, sin)
        g = states.gather(1, patch_of[..., None].expand(-1, -1, self.dim))
        h = torch.cat([self.start.expand(batch, 1, -1), h], 1)
        cos, sin = self.token_table(torch.arange(count + 1)[None], 1)
        for layer, block in enumerate(self.decoder):
            h = block(self.inject(layer, h, g), cos, sin)
        return self.logits(h)


def caches(blocks, rows, slots):
    """Keys and values of each block: [rows, H, slots, Dh]."""
    block = blocks[0]
    shape = (rows, block.heads, slots, block.wo.shape[0] // block.heads)
    make = lambda: [torch.zeros(shape) for _ in blocks]  # noqa: E731
    return make(), make()


class System:
    """An experiment folder: what is needed to decode tokens."""

    def __init__(self, folder, entropy=None):
        import yaml

        folder = Path(folder)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        model, data = config["model"], config["dataset"]
        state = weights(folder)
        dim = state["norm.weight"].shape[0]
        heads = model.get("n_head", dim // 64)
        self.width = data["image_size"] // model["downsample_size"]
        self.tokens = self.width ** 2
        self.codes = model["codebook_size"]
        self.null = data["num_classes"]
        self.is_dpar = model["gpt_model"].startswith("DGPT")
        if not self.is_dpar:
            self.model = Transformer(state, heads, self.width)
            self.rule = Rule("token", 0.0, 1, self.width)
            return
        rule = config["patcher"]
        if rule["patching_mode"] != "entropy_row_boundary":
            sys.exit(f"patching_mode {rule['patching_mode']} is not what this reference decodes")
        self.rule = Rule("entropy", rule["threshold"], rule.get("max_patch_length", self.tokens), rule["block_size"])
        self.model = Dpar(state, heads, self.width, model.get("embedding_type"))
        place = Path(entropy) if entropy else (folder / rule["entropy_model_checkpoint_config"]).parent
        small = yaml.safe_load((place / "config.yaml").read_text())["model"]
        state = weights(place)
        self.entropy = Transformer(state, small.get("n_head", state["norm.weight"].shape[0] // 64), self.width)

    def starts(self, tokens):
        """[B, T] where patches open, and [B, T] entropies of what follows each token, of whole images."""
        e = torch.zeros(tokens.shape)
        if self.is_dpar:
            e = entropy_of(self.entropy(tokens)[..., :self.codes])
        held, out = np.zeros(len(tokens), int), np.zeros(tokens.shape, bool)
        for t in range(tokens.shape[1]):
            out[:, t] = self.rule.opens(t, e[:, max(t - 1, 0)].numpy(), held)
            held = np.where(out[:, t], 1, held + 1)
        return torch.from_numpy(out), e


def guided(logits, scale):
    """Of conditional rows, then null-class rows."""
    if scale <= 1:
        return logits
    c, u = logits.chunk(2)
    return u + scale * (c - u)


@torch.inference_mode()
def recompute(system, labels, scale, pick):
    """The research code's loop: the whole model again for every token. `pick(slot, logits [B, V])` gives the tokens."""
    rows = labels if scale <= 1 else torch.cat([labels, torch.full_like(labels, system.null)])
    twice = len(rows) // len(labels)
    tokens = torch.zeros(len(labels), 0, dtype=torch.int64)
    steps = torch.zeros(len(labels), dtype=torch.int64)
    for t in range(system.tokens):
        if system.is_dpar:
            # The token that is being predicted counts for the patches: its entropy needs those before it only.
            padded = torch.cat([tokens, torch.zeros(len(labels), 1, dtype=torch.int64)], 1)
            starts, _ = system.starts(padded)
            logits = system.model(tokens.repeat(twice, 1), rows, starts.repeat(twice, 1))[:, -1]
            steps = starts.sum(1)
        else:
            logits = system.model(tokens.repeat(twice, 1), rows)[:, -1]
            steps += 1
        tokens = torch.cat([tokens, pick(t, guided(logits[:, :system.codes], scale))[:, None]], 1)
    return tokens, steps


class Cached:
    """Decoding with KV caches, all images at the same slot; the global transformer runs on the images whose patch closes.

    `compiled` puts each step of a transformer through torch.compile.
    """

    def __init__(self, system, compiled=False):
        self.system = system
        wrap = (lambda f: torch.compile(f, dynamic=True)) if compiled else (lambda f: f)
        if system.is_dpar:
            self.entropy_step, self.encode = wrap(self._entropy), wrap(self._encode)
            self.close, self.world, self.decode = wrap(self._close), wrap(self._world), wrap(self._decode)
        else:
            self.step = wrap(system.model.step)

    def _entropy(self, h, cos, sin, keys, values, past):
        return entropy_of(self.system.entropy.step(h, cos, sin, keys, values, past)[:, :self.system.codes])

    def _encode(self, h, cos, sin, keys, values, past):
        hiddens = []
        for block, k, v in zip(self.system.model.encoder, keys, values):
            h = block.step(h, cos, sin, k, v, past)
            hiddens.append(h[:, 0])
        return hiddens

    def _close(self, hiddens, mask):
        return self.system.model.embed(hiddens, mask)

    def _world(self, h, cos, sin, keys, values, rows, past, longest):
        for block, k, v in zip(self.system.model.world, keys, values):
            h = block.ragged(h, cos, sin, k, v, rows, past, longest)
        return h[:, 0]

    def _decode(self, h, g, cos, sin, keys, values, past):
        model = self.system.model
        for layer, (block, k, v) in enumerate(zip(model.decoder, keys, values)):
            h = block.step(model.inject(layer, h, g), cos, sin, k, v, past)
        return model.logits(h)[:, 0]

    @torch.inference_mode()
    def run(self, labels, scale, pick):
        """As `recompute`."""
        run = self._dpar if self.system.is_dpar else self._llamagen
        return run(labels, scale, pick)

    def _llamagen(self, labels, scale, pick):
        system, model = self.system, self.system.model
        rows = labels if scale <= 1 else torch.cat([labels, torch.full_like(labels, system.null)])
        twice = len(rows) // len(labels)
        keys, values = caches(model.blocks, len(rows), system.tokens + 1)
        tokens, h = [], model.classes[rows][:, None]
        for t in range(system.tokens):
            logits = self.step(h, *model.slots(t, 1), keys, values, t)
            tokens.append(pick(t, guided(logits[:, :system.codes], scale)))
            h = model.tokens[tokens[-1].repeat(twice)][:, None]
        return torch.stack(tokens, 1), torch.full_like(labels, system.tokens)

    def _dpar(self, labels, scale, pick):
        system, model = self.system, self.system.model
        n = len(labels)
        rows = labels if scale <= 1 else torch.cat([labels, torch.full_like(labels, system.null)])
        twice = len(rows) // n
        entropy = caches(system.entropy.blocks, n, system.tokens)
        encoder = caches(model.encoder, n, system.tokens)
        world = caches(model.world, len(rows), system.tokens + 1)
        decoder = caches(model.decoder, len(rows), system.tokens)
        zero = torch.zeros(len(rows), 1, model.pairs)
        every, none = torch.arange(len(rows)), torch.zeros(len(rows), dtype=torch.int64)
        g = self.world(model.classes[rows][:, None], zero, zero, *world, every, none, 1)
        h, tokens = model.start.expand(n, -1), []
        held, count = np.zeros(n, int), np.zeros(n, int)
        states = torch.zeros(len(model.encoder), n, system.tokens, model.dim)
        for t in range(system.tokens):
            e = np.zeros(n, np.float32)
            if t:
                token = tokens[-1]
                at = torch.tensor([[t - 1]])
                e = self.entropy_step(system.entropy.tokens[token][:, None], *system.entropy.slots(t - 1, 1), *entropy, t - 1).numpy()
                hiddens = self.encode(model.tokens[token][:, None], *model.token_table(at, 0), *encoder, t - 1)
                for layer, hidden in enumerate(hiddens):
                    states[layer, :, t - 1] = hidden
                h = hiddens[-1]
            opens = system.rule.opens(t, e, held)
            if t and opens.any():
                which = np.flatnonzero(opens)
                first, last = torch.from_numpy(t - held[which]), torch.full((len(which),), t - 1)
                length = int(held[which].max())
                index = (first[:, None] + torch.arange(length)).clamp(max=t - 1)
                mask = index <= last[:, None]
                mask &= torch.arange(length)[None] < torch.from_numpy(held[which])[:, None]
                gathered = [s[torch.from_numpy(which)[:, None], index] for s in states]
                patches = self.close(gathered, mask)
                turn = model.patch_table(first, last, torch.from_numpy(count[which] - 1))
                both = torch.cat([torch.from_numpy(which) + i * n for i in range(twice)])
                past = torch.from_numpy(count[which]).repeat(twice)
                cos, sin = (x.repeat(twice, 1)[:, None] for x in turn)
                g[both] = self.world(patches.repeat(twice, 1)[:, None], cos, sin, *world, both, past, int(past.max()) + 1)
            held, count = np.where(opens, 1, held + 1), count + opens
            logits = self.decode(
                h.repeat(twice, 1)[:, None], g[:, None], *model.token_table(torch.tensor([[t]]), 1), *decoder, t
            )
            tokens.append(pick(t, guided(logits[:, :system.codes], scale)))
        return torch.stack(tokens, 1), torch.from_numpy(count)


def forced(tokens, seen):
    """A `pick` that takes given tokens and keeps the logits."""

    def pick(slot, logits):
        seen.append(logits)
        return tokens[:, slot]

    return pick


def arrays(path):
    """The arrays of an .npz or .safetensors file."""
    return dict(np.load(path)) if str(path).endswith(".npz") else read_safetensors(path)


@torch.inference_mode()
def main(options):
    """Holds logits, entropies and patches against recorded ones."""
    system, golden = System(options.experiment), {}
    for path in options.recorded:
        golden.update(arrays(path))
    tokens, labels = (torch.from_numpy(np.array(golden[k], np.int64)) for k in ("tokens", "class_labels"))
    recorded = torch.from_numpy(np.array(golden["logits"]))[..., :system.codes]
    starts, entropy = system.starts(tokens)
    found = {"parts_at": None}
    if system.is_dpar:
        opened = torch.zeros_like(starts)
        for row, lengths in enumerate(golden["patch_lengths"]):
            opened[row, np.cumsum([0, *lengths[lengths > 0]])[:-1]] = True
        found["boundaries_that_differ"] = int((starts != opened).sum())
        found["entropy"] = (entropy - torch.from_numpy(np.array(golden["entropy"]))).abs().max().item()
        # What follows is of the same patches, so that a near-tie is not taken for other logits.
        whole = system.model(tokens[:, :-1], labels, opened)
    else:
        whole = system.model(tokens[:, :-1], labels)
    whole = whole[..., :system.codes]
    last = system.tokens - 1
    slots = {"first": 0, "middle": last // 2, "last": last}
    slots = [slots[word] for word in options.slots.split(",")] if options.slots else list(range(system.tokens))
    found["logits"] = (whole - recorded)[:, slots].abs().max().item()
    if options.loops:
        for name, loop in {"recompute": recompute, "cached": lambda _, *rest: Cached(system).run(*rest)}.items():
            seen = []
            _, steps = loop(system, labels, 1.0, forced(tokens, seen))
            found[name] = (torch.stack(seen, 1) - recorded).abs().max().item()
            found["boundaries_that_differ"] = found.get("boundaries_that_differ", 0) + int((steps != starts.sum(1)).sum())
    if options.against:
        differ = (tokens != torch.from_numpy(arrays(options.against)["tokens"])).any(0).nonzero()
        found["parts_at"] = int(differ[0]) if len(differ) else None
    print(json.dumps(found))
    far = [k for k in ("entropy", "logits", "recompute", "cached") if found.get(k, 0) > NEAR]
    if options.near and (far or found.get("boundaries_that_differ")):
        sys.exit(f"not what is recorded: {', '.join(far) or 'patches'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", metavar="EXPERIMENT", help="folder with config.yaml and checkpoints")
    parser.add_argument("recorded", nargs="+", metavar="FILE", help=".npz or .safetensors: tokens, class_labels, logits; of a DPAR patch_lengths, entropy")
    parser.add_argument("--slots", metavar="first,middle,last", help="compare the logits of these slots only")
    parser.add_argument("--against", metavar="TRACE.npz", help="say at which slot its tokens first differ")
    parser.add_argument("--loops", action="store_true", help="also decode the tokens with both loops")
    parser.add_argument("--near", action="store_true", help=f"fail where something is more than {NEAR} away, or patches differ")
    main(parser.parse_args())
