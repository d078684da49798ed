"""Makes docs/images/matte.png from the dandelion: picture, trimap, alpha, composite, by the default network."""

from pathlib import Path

from matplotlib.figure import Figure

from fadeup.cli.predict import MATTER
from fadeup.data.labelled import read_photo
from fadeup.predict import composite_on, load_matter, matte_photo, read_background, read_guide

IMAGES = Path(__file__).parent.parent / "docs" / "images"

photo = read_photo(IMAGES / "dandelion.jpg")
trimap = read_guide(IMAGES / "dandelion-mask.png", tuple(photo.shape[1:]), mask=True, width=24)
matter = load_matter(MATTER)
alpha = matte_photo(matter.network, photo, trimap, matter.mean, matter.std)
panels = {
    "photograph": photo.permute(1, 2, 0).numpy(),
    "trimap from a rough mask": trimap.numpy(),
    "alpha": alpha.numpy(),
    "before another background": composite_on(photo, alpha, read_background("#2f6f9f")),
}
figure = Figure(figsize=(12, 2.5), layout="constrained")
for axis, (title, picture) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()
figure.savefig(IMAGES / "matte.png", dpi=120)
