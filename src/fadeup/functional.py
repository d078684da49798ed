"""The maths of content-aware upsampling as pure functions, and the checks at the public door.

    w[t, y, x]  = softmax over t of (logits[t, y, x] + coarse_logits[t, y', x'])
    up[c, y, x] = sum over t of w[t, y, x] * decoder[c, y' + t // K - K // 2, x' + t % K - K // 2]
    out         = g * encoder + (1 - g) * up,    g = sigmoid(gate_logits[y', x'])

`(y', x') = ((y * H) // H', (x * W) // W')` in integers, with H x W the decoder's size and H' x W' the output's, so
that exact 2x is the common case and not the only one. Windows are zero outside the decoder and not renormalised.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fadeup.kernels import op
from fadeup.kernels.eager import whole_ratio
from fadeup.kernels.reference import nearest

__all__ = ["nearest", "reassemble", "semi_shift_conv", "window_dot"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FORMS = ("low_to_high", "high_to_low")
WATCHERS: list[Callable[[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None], None]] = []
"""Called with the maps of every `reassemble`: how `fadeup.visualize` sees kernels and gates."""


def check_map(name: str, x: Tensor, channels: int | None = None) -> None:
    """Raise unless `x` is a `(B, C, H, W)` map of floats with at least one point, and `channels` channels."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    shape = tuple(x.shape)
    if x.dim() != 4:
        raise ValueError(f"{name} must be of shape (batch, channels, height, width), got {shape}")
    if x.dtype not in FLOATS:
        raise ValueError(
            f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}; convert it with .float()"
        )
    if shape[2] < 1 or shape[3] < 1:
        raise ValueError(f"{name} must be at least 1 x 1 in height and width, got {shape}")
    if channels is not None and shape[1] != channels:
        raise ValueError(f"{name} must be of {channels} channels, got {shape[1]} in {shape}")


def check_alike(name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    """Raise unless `x` is on the device, of the dtype (outside autocast) and of the batch size of `like`."""
    if x.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like {like_name}, got {x.device}; move it with .to(...)")
    if x.dtype != like.dtype and not op.in_autocast(like):
        raise ValueError(f"{name} must be {like.dtype} like {like_name}, got {x.dtype}; convert it with .to(...)")
    if x.shape[0] != like.shape[0]:
        raise ValueError(f"{name} must be of batch size {like.shape[0]} like {like_name}, got {x.shape[0]}")


def _check_shape(name: str, x: Tensor, expected: tuple[int, ...], why: str) -> None:
    if tuple(x.shape) != expected:
        raise ValueError(f"{name} must be {expected} {why}, got {tuple(x.shape)}")


def check_not_smaller(name: str, x: Tensor, like_name: str, like: Tensor, hint: str = "") -> None:
    """Raise unless height and width of `x` are at least those of `like`: all of this upsamples."""
    (height, width), (out_height, out_width) = like.shape[2:], x.shape[2:]
    if out_height < height or out_width < width:
        rule = f"{name} must be at least {height} x {width} like {like_name}"
        raise ValueError(f"{rule}, got {out_height} x {out_width}{hint}")


def check_count(name: str, value: int) -> int:
    """Raise unless `value` is a whole number, 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number, 1 or more, got {value!r}")
    return value


def check_kernel_size(name: str, value: int) -> int:
    """Raise unless `value` is an odd whole number: a window needs a centre."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value % 2 == 0:
        raise ValueError(f"{name} must be an odd whole number, 1, 3, 5 ..., got {value!r}")
    return value


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Raise unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def check_impl(impl: str) -> str:
    """Raise unless `impl` is `"auto"` or an implementation that is there."""
    op.choose(impl)
    return impl


def _check_no_nan(name: str, x: Tensor | None) -> None:
    """Refuse NaN where looking costs nothing: not on a GPU (it would wait for the device), not in a traced graph."""
    if x is None or torch.compiler.is_compiling() or x.device.type != "cpu":
        return
    if type(x) not in (Tensor, torch.nn.Parameter):  # fake and wrapped tensors have no values
        return
    if bool(x.detach().sum().isnan()):  # one pass; infinities of both signs land here too, and are told apart below
        bad = int(x.detach().isnan().sum())
        if bad:
            raise ValueError(
                f"{name} must be free of NaN, got {bad} NaN of {x.numel()} values; the network has probably diverged: "
                "lower the learning rate or look for the first layer with torch.autograd.set_detect_anomaly(True)"
            )


def reassemble(
    decoder: Tensor,
    logits: Tensor,
    *,
    coarse_logits: Tensor | None = None,
    encoder: Tensor | None = None,
    gate_logits: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Upsample `decoder`, weighing the source window of each output pixel with its own softmax kernel.

        w[t, y, x]  = softmax_t(logits[t, y, x] + coarse_logits[t, y', x'])
        up[c, y, x] = sum_t w[t, y, x] * window(decoder[c], y', x')[t]
        out         = g * encoder + (1 - g) * up,    g = sigmoid(gate_logits[y', x'])

    with `(y', x') = ((y * H) // H', (x * W) // W')`.

    Args:
        decoder: Features, `(B, C, H, W)`, float16, bfloat16 (summed in float32), float32 or float64.
        logits: Unnormalised kernels, any real values, `(B, K*K, H', W')`, K odd, row-major over the window,
            H' >= H and W' >= W. For kernels that are normalised already pass their logarithm.
        coarse_logits: The decoder's share of the kernels, `(B, K*K, H, W)`.
        encoder: Features that the gate lets through, `(B, C, H', W')`; needs `gate_logits`.
        gate_logits: `(B, 1, H, W)`; needs `encoder`. Large positive values let the encoder through.
        impl: `"auto"`, or one of `"reference"`, `"eager"`, `"native"`, `"triton"`, which is then used or refused.

    Returns:
        Features, `(B, C, H', W')`, in the dtype and memory format of `decoder`. Windows are zero outside `decoder`.

    Raises:
        ValueError: A shape, dtype or device does not fit (the message names the one that would), or logits on the
            CPU hold NaN. On a GPU and in compiled graphs NaN goes through to the outputs that it touches.

    Source: Wang et al., CARAFE, ICCV 2019; Lu et al., FADE, ECCV 2022, equations 3 and 4.
    """
    check_map("decoder", decoder)
    check_map("logits", logits)
    batch, channels, height, width = decoder.shape
    out_height, out_width = logits.shape[2:]
    if logits.shape[1] not in (k * k for k in range(1, int(logits.shape[1] ** 0.5) + 1, 2)):
        raise ValueError(f"logits must be of K*K channels with K odd (1, 9, 25, 49 ...), got {logits.shape[1]}")
    check_not_smaller("logits", logits, "decoder", decoder)
    if (encoder is None) != (gate_logits is None):
        given, missing = ("encoder", "gate_logits") if gate_logits is None else ("gate_logits", "encoder")
        raise ValueError(f"{missing} must be given with {given}, got None")
    expected = {
        "coarse_logits": (coarse_logits, (batch, logits.shape[1], height, width), "to match decoder and logits"),
        "encoder": (encoder, (batch, channels, out_height, out_width), "to match decoder and logits"),
        "gate_logits": (gate_logits, (batch, 1, height, width), "to match decoder"),
    }
    check_alike("logits", logits, "decoder", decoder)
    for name, (tensor, shape, why) in expected.items():
        if tensor is not None:
            check_map(name, tensor)
            _check_shape(name, tensor, shape, why)
            check_alike(name, tensor, "decoder", decoder)
    for name, tensor in (("logits", logits), ("coarse_logits", coarse_logits), ("gate_logits", gate_logits)):
        _check_no_nan(name, tensor)
    if encoder is not None and encoder.dtype != decoder.dtype:  # autocast: convolutions halve one of the two
        decoder = decoder.to(torch.promote_types(decoder.dtype, encoder.dtype))
    for watch in WATCHERS:
        watch(decoder, logits, coarse_logits, encoder, gate_logits)
    return op.reassemble(decoder, logits, coarse_logits, encoder, gate_logits, impl)


def window_dot(query: Tensor, key: Tensor, kernel_size: int, *, impl: str = "auto") -> Tensor:
    """Similarity of each high-resolution point to the window of low-resolution points around its source.

        out[t, y, x] = sum_c query[c, y, x] * window(key[c], y', x')[t],    (y', x') = ((y * H) // H', (x * W) // W')

    Taps outside `key` give 0. The result is what `reassemble` takes as `logits`.

    Args:
        query: `(B, D, H', W')`, H' >= H and W' >= W.
        key: `(B, D, H, W)`.
        kernel_size: K, odd.
        impl: As in `reassemble`.

    Returns:
        `(B, K*K, H', W')` in the dtype and memory format of `query`.

    Raises:
        ValueError: A shape, dtype or device does not fit, or `kernel_size` is even.

    Source: Lu et al., SAPA, NeurIPS 2022 (the logits); it is also the gradient of `reassemble` by its kernels.
    """
    check_map("query", query)
    check_map("key", key, query.shape[1])
    check_alike("key", key, "query", query)
    check_kernel_size("kernel_size", kernel_size)
    check_not_smaller("query", query, "key", key)
    return op.window_dot(query, key, kernel_size, impl)


def semi_shift_conv(
    encoder: Tensor,
    decoder: Tensor,
    encoder_weight: Tensor,
    decoder_weight: Tensor,
    kernel_weight: Tensor,
    encoder_bias: Tensor | None = None,
    kernel_bias: Tensor | None = None,
    *,
    form: str = "low_to_high",
) -> tuple[Tensor, Tensor | None]:
    """Convolve maps of two resolutions as if concatenated, without ever matching their sizes.

        logits        = kernel_weight ⊛ (encoder_weight · encoder + encoder_bias) + kernel_bias      (B, M, H', W')
        coarse_logits = kernel_weight ⊛ (decoder_weight · decoder) + kernel_bias                     (B, M, H, W)

    The result of the whole operator at (y, x) is `logits[y, x] + coarse_logits[y', x']`: the points above one decoder
    point share its decoder window, so that the encoder alone decides how they differ. `reassemble` takes the pair as
    it is and never stores the sum.

    `form="low_to_high"` returns this pair and serves any ratio. `form="high_to_low"` is the paper's: s² sub-processes
    of stride s over the encoder, each added to the decoder's share, interleaved at the end; it returns the sum and
    None, costs one more high-resolution map, and needs whole ratios (s·H, or 2·H − 1). The two are equal.

    The bias is counted twice, once in each term, as in the authors' code, whose checkpoints so load as they are;
    equation 3 has it once: halve `kernel_bias` for that. Zeros are padded after the 1x1 compression.

    Args:
        encoder: `(B, C_en, H', W')`.
        decoder: `(B, C_de, H, W)`, H <= H' and W <= W'.
        encoder_weight: 1x1 compressor of the encoder, `(D, C_en, 1, 1)`.
        decoder_weight: 1x1 compressor of the decoder, `(D, C_de, 1, 1)`.
        kernel_weight: The convolution both share, `(M, D / groups, h, h)`, h odd; groups follow from its shape.
        encoder_bias: `(D,)`.
        kernel_bias: `(M,)`.
        form: `"low_to_high"` or `"high_to_low"`.

    Returns:
        `(logits, coarse_logits)`; `coarse_logits` is None in the high-to-low form.

    Raises:
        ValueError: A shape, dtype or device does not fit, or the form does not serve the sizes.

    Source: Lu et al., FADE, ECCV 2022, section 4 and equation 3.
    """
    check_map("encoder", encoder, encoder_weight.shape[1])
    check_map("decoder", decoder, decoder_weight.shape[1])
    check_alike("encoder", encoder, "decoder", decoder)
    _check_weights(encoder_weight, decoder_weight, kernel_weight)
    check_choice("form", form, FORMS)
    check_not_smaller("encoder", encoder, "decoder", decoder)
    size, out_size = tuple(decoder.shape[2:]), tuple(encoder.shape[2:])
    coarse = compressed_conv(decoder, decoder_weight, None, kernel_weight, kernel_bias)
    if form == "low_to_high":
        return compressed_conv(encoder, encoder_weight, encoder_bias, kernel_weight, kernel_bias), coarse
    padding = kernel_weight.shape[-1] // 2
    groups = encoder_weight.shape[0] // kernel_weight.shape[1]
    fine = F.conv2d(encoder, encoder_weight, encoder_bias)
    strides = whole_ratio(size[0], out_size[0]), whole_ratio(size[1], out_size[1])
    if 0 in strides:
        raise ValueError(
            f"encoder must be a whole multiple of decoder's {size[0]} x {size[1]} for form='high_to_low', got "
            f"{out_size[0]} x {out_size[1]}; form='low_to_high' serves any size"
        )
    padded = F.pad(fine, (padding,) * 4)
    logits = fine.new_empty(fine.shape[0], kernel_weight.shape[0], *out_size)
    for top in range(strides[0]):
        for left in range(strides[1]):
            phase = F.conv2d(padded[:, :, top:, left:], kernel_weight, kernel_bias, stride=strides, groups=groups)
            below = coarse[:, :, : phase.shape[2], : phase.shape[3]]
            logits[:, :, top :: strides[0], left :: strides[1]] = phase + below
    return logits, None


def compressed_conv(
    x: Tensor, compressor: Tensor, compressor_bias: Tensor | None, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """`weight ⊛ (compressor · x + compressor_bias) + bias`, zeros padded after the compression; `(B, M, H, W)`.

    Without gradients the two are one convolution, `(weight · compressor) ⊛ x`, where that takes fewer multiplications:
    for 64 compressed and 25 output channels up to 89 channels of `x`. The zeros of the border then stand for the
    compressor's bias too much, which is taken back along the border.
    """
    compressed, size = compressor.shape[0], weight.shape[-1]
    groups, reach = compressed // weight.shape[1], size // 2
    cheaper = groups == 1 and x.shape[1] * weight.numel() // compressed < compressor.numel() + weight.numel()
    fits = min(x.shape[2:]) >= size > 1
    if torch.is_grad_enabled() or torch.compiler.is_exporting() or not (cheaper and fits):
        return F.conv2d(F.conv2d(x, compressor, compressor_bias), weight, bias, padding=reach, groups=groups)
    folded = torch.matmul(weight.permute(0, 2, 3, 1), compressor.flatten(1)).permute(0, 3, 1, 2)
    if compressor_bias is None:
        return F.conv2d(x, folded, bias, padding=reach)
    # What the compressor's bias adds on a map of size x size: in the middle everywhere, elsewhere near the border.
    shares = F.conv2d(compressor_bias[None, :, None, None].expand(1, -1, size, size), weight, bias, padding=reach)
    middle = shares[:, :, reach : reach + 1, reach : reach + 1]
    out = F.conv2d(x, folded, middle.flatten(), padding=reach)
    excess = shares - middle
    across = excess[..., reach : reach + 1].expand(-1, -1, -1, x.shape[3] - 2 * reach)
    rows = torch.cat([excess[..., :reach], across, excess[..., reach + 1 :]], dim=3)
    out[:, :, :reach] += rows[:, :, :reach]
    out[:, :, -reach:] += rows[:, :, -reach:]
    out[:, :, reach:-reach, :reach] += excess[:, :, reach : reach + 1, :reach]
    out[:, :, reach:-reach, -reach:] += excess[:, :, reach : reach + 1, -reach:]
    return out


def _check_weights(encoder_weight: Tensor, decoder_weight: Tensor, kernel_weight: Tensor) -> None:
    compressed, size = encoder_weight.shape[0], kernel_weight.shape[-1]
    check_kernel_size("kernel_weight.shape[-1]", size)
    _check_shape("encoder_weight", encoder_weight, (compressed, encoder_weight.shape[1], 1, 1), "for a 1x1 compressor")
    expected = (compressed, decoder_weight.shape[1], 1, 1)
    _check_shape("decoder_weight", decoder_weight, expected, "to compress to as many channels as encoder_weight")
    _check_shape("kernel_weight", kernel_weight, (*kernel_weight.shape[:2], size, size), "for a square window")
    if kernel_weight.shape[1] < 1 or compressed % kernel_weight.shape[1]:
        raise ValueError(f"kernel_weight.shape[1] must divide {compressed} channels, got {kernel_weight.shape[1]}")
