#!/usr/bin/env bash
# Build a Horovod wheel for the torch of an interpreter, once per torch and Python version, and print its path.
#   build_horovod.sh PYTHON FOLDER
# Needs g++ >= 9, make and cmake. HVD_MPI=1 adds MPI (and Adasum), HVD_NCCL=1 the GPU operations.
set -euo pipefail
python=$1 version=${HVD_VERSION:-0.28.1}
mkdir -p "$2"
folder=$(cd "$2" && pwd)
tag=$("$python" -c 'import sys, torch; print(f"torch{torch.__version__}-cp{sys.version_info[0]}{sys.version_info[1]}")')
machine=$(uname -m)
[ "$machine" = x86_64 ] || tag=$tag-$machine
# pip's own cache does not know which torch a wheel was built for, so the folder's name does.
kept=$folder/horovod-$version-$tag${HVD_MPI:+-mpi}${HVD_NCCL:+-nccl}
log=$folder/build-$tag.log
if compgen -G "$kept/horovod-*.whl" >/dev/null; then
  ls "$kept"/horovod-*.whl
  exit 0
fi

work=$(mktemp -d)
# Beside where it will be kept: a rename within one file system leaves no half a wheel.
partial=$folder/.build.$$
trap 'rm -rf "$work" "$partial"' EXIT
"$python" -m pip install -q wheel packaging cloudpickle psutil pyyaml cffi 'setuptools>=77' 2>"$log" || { cat "$log" >&2; exit 1; }

# Horovod asks for C++14 after every flag of ours, and torch refuses less than its own header names.
level=$("$python" - <<'PY'
import re
from pathlib import Path

import torch

header = Path(torch.__file__).parent / "include/torch/csrc/api/include/torch/all.h"
found = re.search(r"C\+\+(\d\d) or later", header.read_text())
print("c++" + (found[1] if found else "17"))
PY
)
cat >"$work/cxx" <<SH
#!/usr/bin/env bash
exec ${CXX:-g++} "\${@/#-std=c++1[14]/-std=$level}" -g0
SH
chmod +x "$work/cxx"
export CXX=$work/cxx
# g++ 13 no longer drags these headers in.
export CXXFLAGS="-include stdexcept -include string -include cstdint ${CXXFLAGS:-}"
# cmake 4 refuses gloo's old minimum otherwise.
export MAKEFLAGS=-j${HVD_JOBS:-$(nproc)} CMAKE_POLICY_VERSION_MINIMUM=3.5
# Read by nvcc alone, whose file asks for C++11.
export NVCC_APPEND_FLAGS=${NVCC_APPEND_FLAGS:--std=c++17}
export HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_GLOO=1
if [ -n "${HVD_MPI:-}" ]; then export HOROVOD_WITH_MPI=1; else export HOROVOD_WITHOUT_MPI=1; fi
if [ -n "${HVD_NCCL:-}" ]; then
  export HOROVOD_GPU_OPERATIONS=NCCL
  nccl=$("$python" -c 'import nvidia.nccl as m; print(list(m.__path__)[0])' 2>/dev/null || true)
  if [ -n "$nccl" ] && [ -z "${HOROVOD_NCCL_HOME:-}" ]; then
    # The Python package of NCCL has no libnccl.so without a version.
    mkdir -p "$work/nccl/lib"
    ln -s "$nccl/include" "$work/nccl/include"
    ln -s "$nccl/lib/libnccl.so.2" "$work/nccl/lib/libnccl.so"
    export HOROVOD_NCCL_HOME=$work/nccl HOROVOD_NCCL_LINK=SHARED
  fi
fi

PATH=$(dirname "$("$python" -c 'import sys; print(sys.executable)')"):$PATH
if ! "$python" -m pip wheel --no-build-isolation --no-deps --no-cache-dir --no-binary horovod -v \
  -w "$partial" "horovod==$version" >"$log" 2>&1; then
  grep -nE ' error:|CMake Error' "$log" | head -20 >&2
  echo "Horovod did not build; the whole record is $log" >&2
  exit 1
fi
mkdir -p "$kept"
mv "$partial"/horovod-*.whl "$kept/"
ls "$kept"/horovod-*.whl
