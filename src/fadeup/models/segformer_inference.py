"""SegFormer without gradients: the same function, with its linear maps in an order that costs less.

Mixing channels and weighing points commute, so that for the projections `P_i`, the fusing convolution's parts `F_i`
(with BatchNorm folded in) and weights `w` of a window

    F_i · up(x, p_1) = F_i · (g p_1 + (1 - g) sum_t w_t x_t) = g (F_i P_1) · c_1 + (1 - g) sum_t w_t (F_i · x)_t

The right-hand side mixes 256 channels at the size of `x`, a quarter of the points, and the backbone's 64 instead of
256 channels at the full size; nothing is concatenated. Everything stays in channels-last memory, where a 1x1
convolution is one matrix product, and MiT's 3x3 depthwise convolution at 1/4 takes 6 ms in place of 40 on one thread.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module

from fadeup.functional import compressed_conv, reassemble
from fadeup.kernels.op import in_autocast
from fadeup.upsamplers.fade import FADE, SemiShiftConv


def applies(model: nn.Module, image: Tensor) -> bool:
    """Whether nobody can tell the difference: evaluation without gradients, autocast, tracing and forward hooks."""
    if module._global_forward_hooks or module._global_forward_pre_hooks:  # torch's counter of operations sets some
        return False
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or in_autocast(image):
        return False
    return not any(part.training or part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def serves(head: Any) -> bool:
    """Whether `head_logits` knows the layers: bilinear, FADE or FADE-Lite with semi-shift and gate, none replaced."""
    if "fadeup" in head._modules:  # the child of an upgraded one, whose own forward pass must run
        return False
    plain = all(type(part) is nn.Conv2d for part in (*head.project, head.fuse, head.classify))
    return plain and all(
        isinstance(part, FADE) and isinstance(part.kernels, SemiShiftConv) and part.fusion.gate is not None
        for part in head.upsamplers
    )


def mit_maps(backbone: Any, image: Tensor) -> list[Tensor]:
    """The four maps of a `transformers.SegformerModel`, channels-last, largest first."""
    maps, x = [], image.contiguous(memory_format=torch.channels_last)
    for stage in backbone.stages:
        embedding = stage.patch_embeddings
        points = embedding.layer_norm(embedding.proj(x).permute(0, 2, 3, 1))
        for block in stage.blocks:
            points = _attention(block.attention, block.layernorm_before(points)).add_(points)
            mlp = block.mlp
            hidden = mlp.dwconv.dwconv(mlp.fc1(block.layernorm_after(points)).permute(0, 3, 1, 2))
            points = mlp.fc2(mlp.activation_fn(hidden.permute(0, 2, 3, 1))).add_(points)
        x = stage.layer_norm(points).permute(0, 3, 1, 2)
        maps.append(x)
    return maps


def _attention(attention: Any, points: Tensor) -> Tensor:
    """Self-attention over points `(B, H, W, C)`, keys and values from a map reduced by a strided convolution."""
    source = points
    if attention.sequence_reduction_ratio > 1:
        reduction = attention.sequence_reduction
        reduced = reduction.sequence_reduction(points.permute(0, 3, 1, 2))
        source = reduction.layer_norm(reduced.permute(0, 2, 3, 1))

    def heads(x: Tensor) -> Tensor:
        return x.flatten(1, 2).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    query, key, value = attention.q_proj(points), attention.k_proj(source), attention.v_proj(source)
    mixed = F.scaled_dot_product_attention(heads(query), heads(key), heads(value), scale=attention.scaling)
    return attention.o_proj(mixed.transpose(1, 2).reshape(points.shape))


def head_logits(head: Any, maps: list[Tensor], routes: tuple[tuple[int, tuple[int, ...]], ...]) -> Tensor:
    """What `SegFormerHead` computes from `maps` in evaluation, channels-last.

    Args:
        head: A `SegFormerHead` whose upsamplers `serves` knows.
        maps: `(B, C_i, H_i, W_i)`, largest first.
        routes: Each level that is upsampled, and the levels that guide it one after another.
    """
    maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    projections = [(part.weight.flatten(1), part.bias) for part in head.project]
    scale = head.norm.weight * torch.rsqrt(head.norm.running_var + head.norm.eps)
    parts = (head.fuse.weight.flatten(1) * scale[:, None]).chunk(4, dim=1)[::-1]  # it takes the smallest map first
    mixed = [
        (part @ weight, part @ bias if level else part @ bias + head.norm.bias - head.norm.running_mean * scale)
        for level, (part, (weight, bias)) in enumerate(zip(parts, projections, strict=True))
    ]
    total = _linear(maps[0], *mixed[0])
    if not len(head.upsamplers):
        for x, folded in zip(maps[1:], mixed[1:], strict=True):
            total += F.interpolate(_linear(x, *folded), total.shape[2:], mode="bilinear", align_corners=False)
        return _linear(total.relu_(), head.classify.weight.flatten(1), head.classify.bias)
    upsamplers = iter(head.upsamplers)
    projected = [None, *(_linear(x, *folded) for x, folded in zip(maps[1:], projections[1:], strict=True))]
    for level, guides in routes:
        x: Any = projected[level]
        for guide in guides[:-1]:
            upsampler = next(upsamplers)
            x = upsampler(x, projected[guide], fine_logits=_fine_logits(upsampler, maps[guide], *projections[guide]))
        upsampler = next(upsamplers)
        encoder = _linear(maps[0], parts[level] @ projections[0][0], parts[level] @ projections[0][1])
        total += reassemble(
            _linear(x, parts[level]),
            _fine_logits(upsampler, maps[0], *projections[0]),
            coarse_logits=upsampler.kernels.coarse(x),
            encoder=encoder,
            gate_logits=upsampler.fusion.gate(x),
            impl=upsampler.impl,
        )
    return _linear(total.relu_(), head.classify.weight.flatten(1), head.classify.bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution; of a channels-last map it is one matrix product, and oneDNN's is faster than F.linear's."""
    return F.conv2d(x, weight[:, :, None, None], bias)


def _fine_logits(upsampler: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The encoder's share of the kernels for the guide `weight · x + bias`, which is never computed."""
    compressor, content = upsampler.kernels.encoder_compressor, upsampler.kernels.content_encoder
    compressed = compressor.weight.flatten(1)
    folded = (compressed @ weight)[:, :, None, None]
    return compressed_conv(x, folded, compressed @ bias + compressor.bias, content.weight, content.bias)
