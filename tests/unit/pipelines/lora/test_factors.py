"""Each kind of adapter against the dense delta that its definition gives."""

from __future__ import annotations

import pytest
import torch

from pipelines.lora.factors import Misfit, factorise

LINEAR, CONV, POINT = torch.Size((12, 8)), torch.Size((12, 8, 3, 3)), torch.Size((12, 8, 1, 1))
Tensors = dict[str, torch.Tensor]


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def delta(parts: Tensors, shape: torch.Size, alpha: float | None = None) -> torch.Tensor:
    """The dense delta of the factors."""
    down, up, _ = factorise(parts, shape, alpha)
    assert down.shape[1:] == shape[1:]
    return (up.T @ down.flatten(1)).view(shape)


@pytest.mark.parametrize(("stored", "given", "scale"), [(2.0, 9.0, 0.5), (None, 9.0, 2.25)])
@pytest.mark.parametrize("shape", [LINEAR, CONV, POINT], ids=["linear", "3x3", "1x1"])
def test_lora_is_up_times_down_times_alpha_over_rank(
    shape: torch.Size, stored: float | None, given: float, scale: float
) -> None:
    down, up = rand(4, *shape[1:]), rand(12, 4)
    parts = {"down": down, "up": up.view(12, 4, *[1] * (len(shape) - 2))}
    if stored is not None:
        parts["alpha"] = torch.tensor(stored)
    expected = scale * torch.einsum("or,r...->o...", up, down)
    torch.testing.assert_close(delta(parts, shape, given), expected)


def test_without_any_alpha_the_scale_is_one() -> None:
    parts = {"down": rand(4, 8), "up": rand(12, 4)}
    torch.testing.assert_close(delta(parts, LINEAR), parts["up"] @ parts["down"])


def test_a_linear_layer_takes_the_weights_of_a_1x1_convolution() -> None:
    parts = {"down": rand(4, 8, 1, 1), "up": rand(12, 4, 1, 1)}
    expected = parts["up"].flatten(1) @ parts["down"].flatten(1)
    torch.testing.assert_close(delta(parts, LINEAR), expected)


def test_tucker_locon_is_three_convolutions_in_one() -> None:
    parts = {"down": rand(4, 8, 1, 1), "mid": rand(4, 4, 3, 3), "up": rand(12, 4, 1, 1)}
    picture = rand(1, 8, 6, 6)
    hidden = torch.conv2d(torch.conv2d(picture, parts["down"]), parts["mid"], padding=1)
    expected = torch.conv2d(hidden, parts["up"])
    got = torch.conv2d(picture, delta(parts, CONV), padding=1)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [2, 5], ids=["low rank", "rank above that of any matrix"])
@pytest.mark.parametrize("shape", [LINEAR, CONV], ids=["linear", "conv"])
def test_loha_is_the_hadamard_product_of_two_products(shape: torch.Size, rank: int) -> None:
    columns = shape[1:].numel()
    parts = {
        "hada_w1_a": rand(12, rank),
        "hada_w1_b": rand(rank, columns),
        "hada_w2_a": rand(12, rank) * 2,
        "hada_w2_b": rand(rank, columns) - 1,
        "alpha": torch.tensor(3.0),
    }
    one = parts["hada_w1_a"] @ parts["hada_w1_b"]
    two = parts["hada_w2_a"] @ parts["hada_w2_b"]
    torch.testing.assert_close(delta(parts, shape), (one * two * 3 / rank).view(shape))
    assert factorise(parts, shape, None).rank == min(rank**2, *(12, columns))


def test_tucker_loha_is_the_hadamard_product_of_two_kernels() -> None:
    parts = {f"hada_w{i}_{ab}": rand(2, n) + i for i in (1, 2) for ab, n in (("a", 12), ("b", 8))}
    parts |= {f"hada_t{i}": rand(2, 2, 3, 3) - i for i in (1, 2)}
    kernels = [
        torch.einsum(
            "ijkl,ip,jr->prkl",
            parts[f"hada_t{i}"],
            parts[f"hada_w{i}_a"],
            parts[f"hada_w{i}_b"],
        )
        for i in (1, 2)
    ]
    expected = kernels[0] * kernels[1] / 2
    torch.testing.assert_close(delta(parts, CONV, 1.0), expected, atol=1e-4, rtol=1e-5)


LOKR = {
    "both full": ({"lokr_w1": rand(3, 2), "lokr_w2": rand(4, 4)}, LINEAR, 1.0),
    "second of low rank": (
        {"lokr_w1": rand(3, 2), "lokr_w2_a": rand(4, 2), "lokr_w2_b": rand(2, 4)},
        LINEAR,
        3.0 / 2,
    ),
    "both of low rank": (
        {
            "lokr_w1_a": rand(3, 1),
            "lokr_w1_b": rand(1, 2),
            "lokr_w2_a": rand(4, 1),
            "lokr_w2_b": rand(1, 4),
        },
        LINEAR,
        3.0,
    ),
    "full kernel": ({"lokr_w1": rand(3, 2), "lokr_w2": rand(4, 4, 3, 3)}, CONV, 1.0),
    "kernel of low rank": (
        {"lokr_w1": rand(3, 2), "lokr_w2_a": rand(4, 2), "lokr_w2_b": rand(2, 36)},
        CONV,
        3.0 / 2,
    ),
    "Tucker kernel": (
        {
            "lokr_w1": rand(3, 2),
            "lokr_t2": rand(2, 2, 3, 3),
            "lokr_w2_a": rand(2, 4),
            "lokr_w2_b": rand(2, 4),
        },
        CONV,
        3.0 / 2,
    ),
}


@pytest.mark.parametrize("kind", LOKR)
def test_lokr_is_the_kronecker_product(kind: str) -> None:
    parts, shape, scale = LOKR[kind]
    first = parts.get("lokr_w1")
    if first is None:
        first = parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    if "lokr_t2" in parts:
        second = torch.einsum(
            "ijkl,ip,jr->prkl", parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"]
        )
    elif "lokr_w2" in parts:
        second = parts["lokr_w2"]
    else:
        second = (parts["lokr_w2_a"] @ parts["lokr_w2_b"]).view(4, 4, *shape[2:])
    first = first.view(3, 2, *[1] * (len(shape) - 2))
    expected = torch.kron(first, second.contiguous()) * scale
    torch.testing.assert_close(delta(parts, shape, 3.0), expected)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"down": rand(4, 8)}, "its parts make no known kind of LoRA: down"),
        ({"alpha": rand(1)}, "its parts make no known kind of LoRA"),
        ({"down": rand(4, 8), "up": rand(12, 4), "hada_t1": rand(1)}, "no known kind"),
        ({"hada_w1_a": rand(12, 2), "hada_w1_b": rand(2, 8)}, "no known kind"),
        ({"lokr_w1": rand(3, 2)}, "do not fit together: lokr_w1 3 x 2"),
        ({"down": rand(4, 8), "up": rand(12, 3)}, "fit together: down 4 x 8, up 12 x 3"),
        ({"down": rand(4, 9), "up": rand(12, 4)}, "the file's is 12 x 9, the model's 12 x 8"),
        ({"down": rand(4, 8), "up": rand(13, 4)}, "the file's is 13 x 8, the model's 12 x 8"),
        ({"down": rand(4), "up": rand(12, 4)}, "fit together: down 4, up 12 x 4"),
        ({"down": rand(0, 8), "up": rand(12, 0)}, "its rank is 0"),
        ({"down": rand(4, 8), "up": rand(12, 4), "alpha": rand(2)}, "alpha has 2 values"),
    ],
)
def test_parts_that_make_no_delta_of_the_shape_are_named(parts: Tensors, message: str) -> None:
    with pytest.raises(Misfit) as error:
        factorise(parts, LINEAR, None)
    assert message in str(error.value)
