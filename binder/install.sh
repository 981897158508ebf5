#!/usr/bin/env bash
# Set dhlab up in .venv beside this folder. Run it as often as you like: what is there stays.
#   binder/install.sh [demo|lab|test|dev] [--horovod]
# demo: what the library needs. lab: JupyterLab and every reader. test: tests, linters and Horovod too. dev: benchmarks too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
profile=demo horovod=
for argument; do
  case $argument in
    demo | lab | test | dev) profile=$argument ;;
    --horovod) horovod=yes ;;
    *) sed -n '2,4s/^# //p' "binder/install.sh" >&2; exit 2 ;;
  esac
done
venv=$PWD/.venv python=$PWD/.venv/bin/python constraints=binder/constraints.txt
say() { printf '\033[1m%s\033[0m\n' "$*"; }

# --- Debian packages: only as root, only what is missing -------------------------------------------------------------
wanted=()
need() { command -v "$1" >/dev/null || wanted+=("$2"); }
if [ ! -x "$python" ] && ! "${PYTHON:-python3}" -c 'import ensurepip' 2>/dev/null; then wanted+=(python3 python3-venv); fi
[ "$profile" = demo ] || need npm npm
need cc gcc # for the C kernels; without them PyTorch's operations run
case $profile in
  test | dev)
    need nm binutils
    # The C kernels are tested on ARM too, in an emulator.
    if [ "$(uname -m)" = x86_64 ]; then
      need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu
      need qemu-aarch64-static qemu-user-static
      [ -e /usr/aarch64-linux-gnu/include/stdio.h ] || wanted+=(libc6-dev-arm64-cross)
    fi
    command -v chromium chromium-browser google-chrome >/dev/null || wanted+=(chromium)
    # Jobs are tested on a Slurm of their own, with its accounts.
    need slurmctld slurm-wlm
    need munged munge
    need slurmdbd slurmdbd
    need mariadbd mariadb-server
    # napari draws on a screen that nobody sees, and in a browser through VNC.
    need Xvfb xvfb
    need Xtigervnc tigervnc-standalone-server
    need openbox openbox
    for library in libEGL.so.1:libegl1 libGL.so.1:libgl1 libOpenGL.so.0:libopengl0 libdbus-1.so.3:libdbus-1-3 \
      libfontconfig.so.1:libfontconfig1 libxkbcommon-x11.so.0:libxkbcommon-x11-0 libxcb-cursor.so.0:libxcb-cursor0 \
      libxcb-icccm.so.4:libxcb-icccm4 libxcb-keysyms.so.1:libxcb-keysyms1 libxcb-image.so.0:libxcb-image0 \
      libxcb-render-util.so.0:libxcb-render-util0 libxcb-shape.so.0:libxcb-shape0 libxcb-xinerama.so.0:libxcb-xinerama0; do
      PATH=$PATH:/sbin:/usr/sbin ldconfig -p | grep -q "${library%:*}" || wanted+=("${library#*:}")
    done
    compgen -G '/usr/lib/*/dri/swrast_dri.so' >/dev/null || wanted+=(libgl1-mesa-dri)
    ;;
esac
case $profile in test | dev) horovod=${horovod:-wanted} ;; esac
if [ -n "$horovod" ]; then need g++ g++; need make make; need cmake cmake; fi
if [ ${#wanted[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "Debian packages: ${wanted[*]}"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${wanted[@]}" >/dev/null
  else
    say "Missing, ask your administrator if something below fails: ${wanted[*]}"
  fi
fi

# --- the environment and uv ------------------------------------------------------------------------------------------
if [ ! -x "$python" ]; then
  say "environment: .venv"
  "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dhlab needs Python 3.11 or newer; name one: PYTHON=python3.12 make …")'
  "${PYTHON:-python3}" -m venv "$venv"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The slide comes while the packages are installed.
bash binder/fetch_slide.sh "$python" >"$work/slide" 2>&1 &
slide=$!
# So are the viewer's bundle and the Lab extension built, where their sources are newer.
lab=extensions/jupyterlab/labextension front=
stale() {
  [ ! -e "$1" ] || [ -n "$(find extensions -type d \( -name node_modules -o -name lib -o -name labextension -o -name dhlab_lab \) -prune \
    -o -newer "$1" -type f -print -quit)" ]
}
build_front() {
  local project
  for project in viewer jupyterlab; do
    npm ci --silent --no-audit --no-fund --prefix extensions/$project && npm run --silent --prefix extensions/$project build || return
  done
}
# The proxy of the hub in the tests.
hub=tests/browser/hub proxy=
case $profile in
  test | dev)
    if [ $hub/package-lock.json -nt $hub/node_modules ]; then
      npm ci --silent --no-audit --no-fund --prefix $hub >"$work/proxy" 2>&1 &
      proxy=$!
    fi
    ;;
esac
if [ "$profile" != demo ] && { stale dhlab/view/static/viewer.js || stale $lab/LICENSES.txt; }; then
  build_front >"$work/front" 2>&1 &
  front=$!
fi

if [ ! -x "$venv/bin/uv" ]; then
  "$python" -m pip install -q --disable-pip-version-check -c "$constraints" uv 2>"$work/log" || { cat "$work/log"; exit 1; }
fi
# uv does not read pip's settings: hand over what decides where packages come from.
setting() {
  local name=PIP_${1^^}
  local value=${!name:-}
  [ -n "$value" ] || value=$("$python" -m pip config list | sed -n "s/^[^:].*\.${1//_/-}='\(.*\)'$/\1/p" | tail -n 1)
  printf '%s' "$value"
}
links=$(setting find_links) index=$(setting index_url)
[ -z "$links" ] || export UV_FIND_LINKS=${UV_FIND_LINKS:-${links// /,}}
[ -z "$index" ] || export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}
install() { "$venv/bin/uv" pip install -q --python "$python" -c "$constraints" "$@"; }

# --- torch first: a CPU build unless there is a GPU ------------------------------------------------------------------
if ! "$python" -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then
  say "torch"
  if nvidia-smi -L >/dev/null 2>&1; then
    install torch
  else
    # A file that pip's settings offer, else PyTorch's own CPU builds, else what the index has.
    "$python" -m pip install -q --disable-pip-version-check --no-index --no-deps -c "$constraints" torch 2>/dev/null \
      || install --torch-backend cpu torch || install torch
  fi
fi

# --- dhlab and what the profile needs --------------------------------------------------------------------------------
say "dhlab and its dependencies ($profile)"
case $profile in
  demo) install -e . ;;
  lab) install -e '.[dicom,jobs,lab,models,nifti]' ;;
  test) install -e '.[dicom,jobs,lab,models,nifti]' --group test --group lint ;;
  dev) install -e '.[dicom,jobs,lab,models,nifti]' --group dev ;;
esac
compgen -G 'dhlab/kernels/_cpu/*.so' >/dev/null || say "No C kernels were built: it takes a C compiler. PyTorch's operations run instead."
if [ "$profile" != demo ] && ! "$python" binder/torchvision_cpu_ops.py; then
  say "torchvision will not load beside this CPU build of torch (it takes a C compiler and nm to mend)"
fi

if [ -n "$horovod" ]; then
  say "horovod (one to four minutes, kept for the next time)"
  if bash binder/build_horovod.sh "$python" "${XDG_CACHE_HOME:-$HOME/.cache}/dhlab/wheels" >"$work/horovod"; then
    install "$(tail -n 1 "$work/horovod")"
  elif [ "$horovod" = yes ]; then
    exit 1
  else
    say "Horovod did not build: training uses one process, and the tests of several are skipped."
  fi
fi

wait "$slide" || say "The sample slide could not be fetched; this command tries again when you run it again."
cat "$work/slide"
if [ -n "$front" ] && ! wait "$front"; then
  cat "$work/front"
  say "The viewer could not be built: npm, above, says why. Everything but dh.show and slides in JupyterLab works; run this again."
  exit 1
fi
if [ -n "$proxy" ] && ! wait "$proxy"; then
  cat "$work/proxy"
  say "The proxy of JupyterHub could not be fetched: npm, above, says why. The tests behind a hub are skipped."
fi
if [ "$profile" != demo ]; then
  # JupyterLab looks for extensions here; the link shows it what npm builds later, too.
  extensions=$venv/share/jupyter/labextensions
  mkdir -p "$extensions"
  rm -rf "$extensions/dhlab"
  ln -s "$PWD/$lab" "$extensions/dhlab"
fi
for done in demo lab test dev; do
  touch "$venv/.ready-$done"
  [ "$done" != "$profile" ] || break
done
