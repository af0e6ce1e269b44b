"""A linear layer and its LoRA as one operation of autograd.

peft adds the adapter's product to the layer's in passes of their own, and autograd keeps what lies
between. Here both products go into one result, forwards and backwards, and only the input and its
down-projection are kept: the gradients of Hu et al. 2021 (arXiv:2106.09685), written by hand, as
the LoRA kernels of Unsloth do.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear

from training.lora.result import ADAPTER


class FusedLinear(Linear):  # type: ignore[misc]
    """peft's layer of one adapter without dropout. One that is merged, disabled or DoRA's computes
    as peft's does."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """... x inputs to ... x outputs, in the dtype of the base layer, or autocast's."""
        if self.merged or self.disable_adapters or self.lora_variant:
            peft: torch.Tensor = super().forward(x, *args, **kwargs)
            return peft
        base, device = self.base_layer, x.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else base.weight.dtype
        bias = None if base.bias is None else base.bias.to(dtype)
        down, up, scale = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight, self.scaling
        if scale[ADAPTER] != 1:  # as it is not by default
            down = down * scale[ADAPTER]
        result: torch.Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
            x.to(dtype), base.weight.to(dtype), bias, down.to(dtype), up.to(dtype)
        )
        return result


class _LoraLinear(torch.autograd.Function):
    """y = x weight^T + bias + (x down^T) up^T; weight and bias are frozen, all of one dtype.

    x is ... x inputs, weight outputs x inputs, down rank x inputs, up outputs x rank.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
        low = rows @ down.t()
        y.addmm_(low, up.t())
        ctx.save_for_backward(rows, weight, down, up, low)
        ctx.shape = x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, down, up, low = ctx.saved_tensors
        grad = grads[0].reshape(-1, up.shape[0])
        grad_low = grad @ up
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, down).view(ctx.shape)
        return grad_x, None, None, grad_low.t() @ rows, grad.t() @ low
