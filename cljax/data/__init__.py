"""Images as uint8 arrays: through tensorflow-datasets, from folders, archives, a shipped sample."""

from cljax.data.described import source_of
from cljax.data.folders import class_folders
from cljax.data.layouts import class_names
from cljax.data.load import Report, describe, images, images_or_sample, sample, sample_rows
from cljax.data.prepared import from_jpeg, prepare
from cljax.data.sources import (
    SOURCES,
    ImageData,
    Source,
    check_images,
    digest,
    licences,
    mark_of,
    marked,
)

__all__ = [
    "SOURCES", "ImageData", "Report", "Source", "check_images", "class_folders", "class_names",
    "describe", "digest", "from_jpeg", "images", "images_or_sample", "licences", "mark_of",
    "marked", "prepare", "sample", "sample_rows", "source_of",
]  # fmt: skip
