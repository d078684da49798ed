"""Networks as users write them, each with its own way to upsample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, 1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
    )


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1, self.layer2, self.layer3 = conv(3, 8), conv(8, 16, 2), conv(16, 32, 2)

    def forward(self, image: Tensor) -> list[Tensor]:
        a = self.layer1(image)
        b = self.layer2(a)
        return [a, b, self.layer3(b)]


class Flat(nn.Module):
    """All in one forward pass; upsampling by two modules, guides only known as what modules return."""

    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.up2, self.up1 = nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear")
        self.middle, self.last, self.head = conv(48, 16), conv(24, 8), nn.Conv2d(8, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        a, b, c = self.encoder(image)
        x = self.middle(torch.cat([self.up2(c), b], 1))
        x = self.last(torch.cat([self.up1(x), a], 1))
        return self.head(x)


class Block(nn.Module):
    def __init__(self, in_channels: int, skip: int, out_channels: int):
        super().__init__()
        self.body = conv(in_channels + skip, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.body(torch.cat([F.interpolate(x, skip.shape[2:]), skip], 1))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Block(32, 16, 16), Block(16, 8, 8)

    def forward(self, features: list[Tensor]) -> Tensor:
        a, b, c = features
        return self.second(self.first(c, b), a)


class Nested(nn.Module):
    """Encoder, decoder of blocks that call F.interpolate, a head whose logits are resized."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.head = Encoder(), Decoder(), nn.Conv2d(8, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        logits = self.head(self.decoder(self.encoder(image)))
        return F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)


class Transposed(nn.Module):
    """Up-convolutions, one of which changes the channels."""

    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ConvTranspose2d(16, 16, 2, 2)
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        a, b, c = self.encoder(image)
        return self.head(torch.cat([self.up1(self.up2(c) + b), a], 1))


class Shared(nn.Module):
    """One upsampling module at two levels."""

    def __init__(self):
        super().__init__()
        self.encoder, self.up = Encoder(), nn.Upsample(scale_factor=2)
        self.middle, self.head = conv(48, 16), nn.Conv2d(24, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        a, b, c = self.encoder(image)
        return self.head(torch.cat([self.up(self.middle(torch.cat([self.up(c), b], 1))), a], 1))


class Twice(nn.Module):
    """The same network over two images, of two sizes."""

    def __init__(self):
        super().__init__()
        self.net = Nested()

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image).mean() + self.net(F.avg_pool2d(image, 2)).mean()


class Pooled(nn.Module):
    """Two resizes that are no upsampling of features: of a pooled map, of one channel."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse, self.attention = conv(3, 8), conv(8, 8, 2), nn.Conv2d(8, 1, 1)
        self.pool, self.head = nn.AdaptiveAvgPool2d(2), nn.Conv2d(8, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        a = self.fine(image)
        b = self.coarse(a)
        pooled = F.interpolate(self.pool(b), a.shape[2:])
        weights = F.interpolate(self.attention(b).sigmoid(), a.shape[2:])
        return self.head(a * weights + pooled)


class WaveringDecoder(Decoder):
    def forward(self, features: list[Tensor]) -> Tensor:
        out = super().forward(features)
        return out if features[0].mean() < 10 else out + F.interpolate(F.max_pool2d(out, 2), out.shape[2:])


class Wavering(Nested):
    """Its path depends on the values of the image."""

    def __init__(self):
        super().__init__()
        self.decoder = WaveringDecoder()


def sequential() -> nn.Sequential:
    """Its forward runs every child, so that none may be added to those."""
    return nn.Sequential(conv(3, 8), conv(8, 16, 2), nn.Upsample(scale_factor=2), nn.Conv2d(16, 4, 1))


PLAIN = {"flat": Flat, "nested": Nested, "transposed": Transposed, "shared": Shared, "sequential": sequential}
