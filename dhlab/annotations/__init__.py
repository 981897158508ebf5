"""Vector annotations in level-0 pixels of a scan: classes, scores, files as QuPath writes them, masks and back."""

from dhlab.annotations.classes import DocumentClass
from dhlab.annotations.collection import Annotation, Annotations
from dhlab.annotations.document import Document
from dhlab.annotations.edits import Change, Edit, History
from dhlab.annotations.geojson import geojson_bytes, geojson_offset, read_geojson_chunks, write_geojson
from dhlab.annotations.store import Update

__all__ = [
    "Annotation",
    "Annotations",
    "Change",
    "Document",
    "DocumentClass",
    "Edit",
    "History",
    "Update",
    "geojson_bytes",
    "geojson_offset",
    "read_geojson_chunks",
    "write_geojson",
]
