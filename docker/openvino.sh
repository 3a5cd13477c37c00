#!/bin/sh
# Fetches OpenVINO's plug-in for ONNX Runtime into a folder: a pinned version, its checksum verified by pip. It is optional.
#   docker/openvino.sh FOLDER
set -eu
folder=$1
here=$(dirname "$0")
machine=$(uname -m)
version=$(sed -n 's/^onnxruntime-ep-openvino==\([0-9.]*\).*/\1/p' "$here/openvino.txt")
[ "$(cat "$folder/version" 2>/dev/null)" != "$version" ] || exit 0
if [ "$machine" != x86_64 ]; then
    echo "there is no OpenVINO plug-in for $machine" >&2
    exit 0
fi
command -v python3 >/dev/null || { echo "python3 with pip is needed to fetch OpenVINO's plug-in: install it" >&2; exit 1; }
mkdir -p "$folder"
work=$(mktemp -d -p "$folder")
trap 'rm -rf "$work"' EXIT INT TERM
echo "fetching onnxruntime-ep-openvino $version" >&2
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --platform "manylinux_2_28_$machine" --require-hashes --requirement "$here/openvino.txt" --dest "$work"
python3 -m zipfile -e "$work"/*.whl "$work/wheel"
# The names with a version are copies of the library.
rm -f "$work"/wheel/onnxruntime_ep_openvino/libonnxruntime_providers_openvino_plugin.so.* "$work/wheel/onnxruntime_ep_openvino/__init__.py"
chmod 644 "$work"/wheel/onnxruntime_ep_openvino/*
for file in "$work"/wheel/onnxruntime_ep_openvino/*; do
    mv "$file" "$folder"
done
# Last: where it is, all is there.
echo "$version" >"$folder/version"
