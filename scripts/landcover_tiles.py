"""Makes src/fadeup/assets/landcover from the two packages that hold the world's picture and labels."""

import dataclasses
import json

from PIL import Image

from fadeup.data.landcover import ASSETS, choose_tiles, cut, full_sources

QUALITY = 92  # 21–25 kB a tile; PNG would take 103–117

picture, label = full_sources()
tiles = list(choose_tiles(label))
for old in (*ASSETS.glob("*.jpg"), *ASSETS.glob("*.png")):
    old.unlink()
for tile in tiles:
    Image.fromarray(cut(picture, tile)).save(ASSETS / f"{tile.name}.jpg", quality=QUALITY, optimize=True)
    Image.fromarray(cut(label, tile)).save(ASSETS / f"{tile.name}.png", optimize=True)
lines = ",\n".join(json.dumps(dataclasses.asdict(tile)) for tile in tiles)
(ASSETS / "tiles.json").write_text(f"[\n{lines}\n]\n")
