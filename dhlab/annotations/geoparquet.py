"""Annotations as GeoParquet 1.1: WKB geometries, bounding boxes, columns; lossless and streamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from dhlab.annotations.collection import Annotations
from dhlab.annotations.coordinates import object_array
from dhlab.atomic import atomic_file
from dhlab.errors import BadFileError, NotFoundError
from dhlab.scan import Parent

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["read_parquet", "write_parquet"]

ROWS = 65_536
TEXTS = {"name": "names", "object_type": "kinds", "author": "authors", "time": "times"}
OWN = {"id", "geometry", "bbox", "class", "class_color", "score", "extras", *TEXTS}
MEASUREMENT = "measurement: "


def write_parquet(path: str | os.PathLike[str], annotations: Annotations) -> Path:
    """Write what `Annotations.to_parquet` describes; see https://geoparquet.org/releases/v1.1.0/."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = Path(path).expanduser()
    bounds = annotations.bounds
    types = sorted(
        {str(shapely.GeometryType(int(t)).name) for t in np.unique(shapely.get_type_id(annotations.geometries))}
    )
    corners = {"xmin": 1, "ymin": 0, "xmax": 3, "ymax": 2}
    geo = {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {
            "geometry": {
                "encoding": "WKB",
                "geometry_types": [_geojson_type(name) for name in types],
                "crs": None,  # pixels of an image, not places on Earth
                "covering": {"bbox": {key: ["bbox", key] for key in corners}},
                **(
                    {"bbox": [float(bounds[:, c].min() if c < 2 else bounds[:, c].max()) for c in corners.values()]}
                    if len(bounds)
                    else {}
                ),
            }
        },
    }
    parent = annotations.parent
    own = {
        "format": 1,
        "class_names": annotations.class_names,
        "class_colors": annotations.class_colors,
        "parent": None
        if parent is None
        else {"name": parent.name, "spacing": parent.spacing, "shape": parent.shape, "unit": parent.unit},
    }
    columns = [
        pa.field("id", pa.string()),
        pa.field("geometry", pa.binary()),
        pa.field("bbox", pa.struct([pa.field(key, pa.float64()) for key in corners])),
        pa.field("class", pa.dictionary(pa.int32(), pa.string())),
        pa.field("score", pa.float64()),
        *(pa.field(name, pa.string()) for name in TEXTS),
        pa.field("extras", pa.string()),
        *(pa.field(MEASUREMENT + name, pa.float64()) for name in annotations.measurements),
    ]
    schema = pa.schema(columns, metadata={"geo": json.dumps(geo), "dhlab": json.dumps(own)})
    with atomic_file(target) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for first in range(0, len(annotations), ROWS):
            part = annotations[first : first + ROWS]
            box = part.bounds
            data = {
                "id": pa.array(part.ids.tolist(), pa.string()),
                "geometry": pa.array(shapely.to_wkb(part.geometries).tolist(), pa.binary()),
                "bbox": pa.StructArray.from_arrays([pa.array(box[:, c]) for c in corners.values()], list(corners)),
                "class": pa.DictionaryArray.from_arrays(
                    pa.array(part.classes, mask=part.classes < 0), pa.array(part.class_names, pa.string())
                ),
                "score": pa.array(part.scores, mask=np.isnan(part.scores)),
                **{name: pa.array(getattr(part, field).tolist(), pa.string()) for name, field in TEXTS.items()},
                "extras": pa.array(
                    [None if e is None else json.dumps(e, ensure_ascii=False) for e in part.extras.tolist()],
                    pa.string(),
                ),
                **{MEASUREMENT + k: pa.array(v, mask=np.isnan(v)) for k, v in part.measurements.items()},
            }
            writer.write_table(pa.table(data, schema=schema))
    return target


def read_parquet(path: str | os.PathLike[str]) -> Iterator[Annotations]:
    """Yield the row groups of a GeoParquet file as annotations."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = Path(path).expanduser()
    if not source.exists():
        raise NotFoundError(f"nothing at {source}; expected GeoParquet. Check the path.")
    try:
        with pq.ParquetFile(source) as file:
            metadata = file.schema_arrow.metadata or {}
            geo = json.loads(metadata[b"geo"])
            column = geo["primary_column"]
            encoding = geo["columns"][column]["encoding"]
            if encoding != "WKB":
                raise BadFileError(f"{source.name} stores geometries as {encoding}; expected WKB. Write it so.")
            own = json.loads(metadata.get(b"dhlab", b"{}"))
            wanted = [
                name for name in file.schema_arrow.names if name in OWN | {column} or name.startswith(MEASUREMENT)
            ]
            batches = file.iter_batches(ROWS, columns=[name for name in wanted if name != "bbox"])
            parts = (_annotations(batch, column, own) for batch in batches)
            empty = Annotations(
                np.empty(0, object),
                class_names=tuple(own.get("class_names", ())),
                class_colors=tuple(map(tuple, own.get("class_colors", ()))),
                parent=_parent(own),
            )
            yield empty
            yield from parts
    except BadFileError:
        raise
    except (pa.ArrowException, shapely.errors.ShapelyError, OSError, ValueError, KeyError, TypeError) as error:
        raise BadFileError(
            f"{source.name} is not GeoParquet or is damaged ({error}). Write it with to_parquet or geopandas."
        ) from error


def _annotations(batch: Any, column: str, own: dict[str, Any]) -> Annotations:
    def texts(name: str) -> NDArray[np.object_]:
        given = batch.column(name) if name in batch.schema.names else None
        # An empty column stands for one without entries.
        return object_array([] if given is None or given.null_count == len(given) else given.to_pylist())

    def numbers(name: str) -> NDArray[np.float64]:
        given = batch.column(name) if name in batch.schema.names else None
        if given is None or given.null_count == len(given):
            return np.full(len(batch), np.nan)
        return np.array(given.cast("float64").to_numpy(zero_copy_only=False), np.float64)

    classes, names = _classes(batch, tuple(own.get("class_names", ())))
    return Annotations(
        geometries=shapely.from_wkb(object_array(batch.column(column).to_pylist())),
        classes=classes,
        class_names=names,
        class_colors=tuple(map(tuple, own.get("class_colors", ()))),
        scores=numbers("score"),
        ids=texts("id") if own else np.empty(0, object),
        extras=object_array([None if e is None else json.loads(e) for e in texts("extras").tolist()]),
        measurements={
            name.removeprefix(MEASUREMENT): numbers(name) for name in batch.schema.names if name.startswith(MEASUREMENT)
        },
        parent=_parent(own),
        **({field: texts(name) for name, field in TEXTS.items()} if own else {}),
    )


def _classes(batch: Any, known: tuple[str, ...]) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Return the class of every row, and the names: the file's own first, then others as they come."""
    import pyarrow as pa

    if "class" not in batch.schema.names:
        return np.full(len(batch), -1, np.int32), known
    column = batch.column("class")
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).dictionary_encode()
    found = [str(name) for name in column.dictionary.to_pylist()]
    names = known + tuple(name for name in dict.fromkeys(found) if name not in known)
    place = np.array([*(names.index(name) for name in found), -1], np.int32)
    return place[column.indices.fill_null(len(found)).to_numpy(zero_copy_only=False)], names


def _parent(own: dict[str, Any]) -> Parent | None:
    given = own.get("parent")
    return given and Parent(given["name"], tuple(given["spacing"]), tuple(given["shape"]), given["unit"])


def _geojson_type(name: str) -> str:
    known = ("Point", "LineString", "Polygon", "MultiPoint", "MultiLineString", "MultiPolygon", "GeometryCollection")
    return {kind.upper(): kind for kind in known}.get(name, "LineString")
