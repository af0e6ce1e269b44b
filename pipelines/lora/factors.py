"""Every kind of adapter as one low-rank product per layer: weight delta = up @ down, exactly.

LoRA (Hu et al. 2021, arXiv:2106.09685), LoCon and its Tucker form, LoHa (Hyeon-Woo et al. 2021,
arXiv:2108.06098) and LoKr (arXiv:2309.14859), the latter three as LyCORIS defines them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from pipelines.lora.formats import Parts


class Misfit(Exception):
    """The parts of a module make no delta of its shape; the message says why."""


class Factors(NamedTuple):
    """delta = up.T @ down, with all scales of the file in it."""

    down: torch.Tensor
    """rank x in, of a convolution rank x in x kernel height x kernel width."""
    up: torch.Tensor
    """rank x out."""
    norms: torch.Tensor | None = None
    """Of a DoRA, 4 x out, float32: the magnitude, |W|^2, 2 W.delta and |delta|^2 of each output."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def gain(self, weight: float) -> torch.Tensor:
        """What a DoRA of this weight multiplies each output by, W + weight x delta being its base.

        Liu et al. 2024, arXiv:2402.09353; the weight counts as in peft, before the norm.
        """
        assert self.norms is not None
        magnitude, base, cross, square = self.norms
        norm = torch.sqrt(base + weight * cross + weight**2 * square)
        return torch.div(magnitude, norm)


def factorise(parts: Parts, shape: torch.Size, alpha: float | None) -> Factors:
    """The float32 factors of a layer whose weight has this shape.

    `alpha` holds where the file gives none by itself; without any, the scale is 1. A product whose
    rank would exceed what any matrix of the shape can have becomes the dense delta times identity.
    Raises Misfit.
    """
    parts = {name: tensor.float() for name, tensor in parts.items()}
    stored = parts.pop("alpha", None)
    if stored is not None:
        if stored.numel() != 1:
            raise Misfit(f"alpha has {stored.numel()} values")
        alpha = float(stored)
    out, columns = shape[0], shape[1:].numel()
    try:
        up, down, rank = _product(parts)
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        raise Misfit(f"its parts do not fit together: {_shapes(parts)}") from error
    if (up.shape[0], down.shape[1]) != (out, columns):
        raise Misfit(f"the file's is {up.shape[0]} x {down.shape[1]}, the model's {_times(shape)}")
    if up.shape[1] == 0:
        raise Misfit("its rank is 0")
    if rank is not None and alpha is not None:
        up = up * (alpha / rank)
    if up.shape[1] > min(out, columns):
        up, down = _dense(up @ down)
    return Factors(down.reshape(-1, *shape[1:]).contiguous(), up.T.contiguous())


def dora(factors: Factors, magnitude: torch.Tensor, layer_weight: torch.Tensor) -> Factors:
    """The factors of a DoRA on a layer of this weight. Raises Misfit."""
    out = layer_weight.shape[0]
    if magnitude.numel() != out:
        raise Misfit(
            f"its DoRA magnitude is {_times(magnitude.shape)}, the layer has {out} outputs"
        )
    base = layer_weight.detach().float().cpu().flatten(1)
    down, up = factors.down.flatten(1), factors.up.T
    cross, square = 2 * (base @ down.T) * up, up @ (down @ down.T) * up
    norms = [magnitude.float().flatten(), base.square().sum(1), cross.sum(1), square.sum(1)]
    return factors._replace(norms=torch.stack(norms))


HADA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
LOKR = {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}
Product = tuple[torch.Tensor, torch.Tensor, int | None]
"""up, out x rank; down, rank x everything else; the number alpha is divided by, None for none."""


def _product(parts: Parts) -> Product:
    names = parts.keys()
    if {"down", "up"} <= names <= {"down", "up", "mid"}:
        return _lora(parts)
    if HADA <= names <= HADA | {"hada_t1", "hada_t2"}:
        return _loha(parts)
    if names and names <= LOKR:
        return _lokr(parts)
    raise Misfit(f"its parts make no known kind of LoRA: {', '.join(sorted(names))}")


def _lora(parts: Parts) -> Product:
    up, down = parts["up"].flatten(1), parts["down"]
    rank = down.shape[0]
    if "mid" in parts:
        # a 1x1 convolution down, then the kernel over the rank: one convolution
        down = torch.einsum("jixy,ic->jcxy", parts["mid"], down.flatten(1))
    down = down.flatten(1)
    if up.shape[1] != down.shape[0]:
        raise ValueError("ranks differ")
    return up, down, rank


def _loha(parts: Parts) -> Product:
    (up1, down1), (up2, down2) = (_hada(parts, i) for i in (1, 2))
    # the Hadamard product of two products is one product of their Khatri-Rao products, here over
    # rows and over columns
    up = torch.einsum("or,os->ors", up1, up2).flatten(1)
    down = torch.einsum("rc,sc->rsc", down1, down2).flatten(0, 1)
    return up, down, parts["hada_w1_b"].shape[0]


def _hada(parts: Parts, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"]
    return _tucker(parts.get(f"hada_t{i}"), a, b)


def _tucker(
    core: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """a @ b; with a core, a is rank x out and b rank x in of a kernel held by the core."""
    if core is None:
        if a.shape[1] != b.shape[0]:
            raise ValueError("ranks differ")
        return a, b.flatten(1)
    # torch.kron asks for contiguous matrices
    return a.T.contiguous(), torch.einsum("ijxy,jc->icxy", core, b).flatten(1)


def _lokr(parts: Parts) -> Product:
    (up1, down1), (up2, down2) = (_kron_side(parts, i) for i in (1, 2))
    ranks = [parts[f"lokr_w{i}_b"].shape[0] for i in (2, 1) if f"lokr_w{i}" not in parts]
    # (a b) kron (c d) = (a kron c)(b kron d)
    return torch.kron(up1, up2), torch.kron(down1, down2), ranks[0] if ranks else None


def _kron_side(parts: Parts, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    if f"lokr_w{i}" in parts:
        return _dense(parts[f"lokr_w{i}"].flatten(1))
    a, b = parts[f"lokr_w{i}_a"], parts[f"lokr_w{i}_b"]
    return _tucker(parts.get(f"lokr_t{i}"), a, b)


def _dense(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix as a product with the smaller identity."""
    rows, columns = matrix.shape
    if rows <= columns:
        return torch.eye(rows), matrix
    return matrix, torch.eye(columns)


def _shapes(parts: Parts) -> str:
    return ", ".join(f"{name} {_times(part.shape)}" for name, part in sorted(parts.items()))


def _times(shape: torch.Size) -> str:
    return " x ".join(map(str, shape)) or "scalar"
