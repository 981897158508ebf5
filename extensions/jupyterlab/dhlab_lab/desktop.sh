#!/bin/sh
# What the screen in the browser shows: a window manager and napari. It ends when napari is closed.
export QT_X11_NO_MITSHM=1
if command -v openbox >/dev/null; then openbox & fi
exec "$DHLAB_PYTHON" -m dhlab_napari --inbox "$DHLAB_INBOX"
