"""Photographs in; label maps, or alpha mattes, cut-outs and composites out."""

from fadeup.predict.cutout import composite_on, cut_out, read_background
from fadeup.predict.matte import Matter, MatteResult, load_matter, matte_photo, matte_photos, read_guide
from fadeup.predict.photos import find_guides, find_photos
from fadeup.predict.segment import PhotoResult, Segmenter, load_segmenter, overlay, segment_photo, segment_photos
from fadeup.predict.trained import default_model, load_trained, save_trained, shipped, weights_file

__all__ = [
    "MatteResult",
    "Matter",
    "PhotoResult",
    "Segmenter",
    "composite_on",
    "cut_out",
    "default_model",
    "find_guides",
    "find_photos",
    "load_matter",
    "load_segmenter",
    "load_trained",
    "matte_photo",
    "matte_photos",
    "overlay",
    "read_background",
    "read_guide",
    "save_trained",
    "segment_photo",
    "segment_photos",
    "shipped",
    "weights_file",
]
