"""Vector annotations in level-0 pixels of a scan: classes, scores, files as QuPath writes them, masks and back."""

from dhlab.annotations.collection import Annotation, Annotations
from dhlab.annotations.geojson import geojson_bytes, geojson_offset, read_geojson_chunks, write_geojson

__all__ = ["Annotation", "Annotations", "geojson_bytes", "geojson_offset", "read_geojson_chunks", "write_geojson"]
