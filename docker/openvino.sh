#!/bin/sh
# Fetches OpenVINO's plug-in for ONNX Runtime into a folder: a pinned version, its checksum verified by pip. It is optional.
#   docker/openvino.sh FOLDER
set -eu
folder=$1
. "$(dirname "$0")/wheel.sh"
if [ "$machine" != x86_64 ]; then
    echo "there is no OpenVINO plug-in for $machine" >&2
    exit 0
fi
fetch_wheel openvino onnxruntime-ep-openvino
# The names with a version are copies of the library.
rm -f "$work"/wheel/onnxruntime_ep_openvino/libonnxruntime_providers_openvino_plugin.so.* "$work/wheel/onnxruntime_ep_openvino/__init__.py"
chmod 644 "$work"/wheel/onnxruntime_ep_openvino/*
for file in "$work"/wheel/onnxruntime_ep_openvino/*; do
    mv "$file" "$folder"
done
end_fetch
