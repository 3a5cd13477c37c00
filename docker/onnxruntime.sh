#!/bin/sh
# Fetches the ONNX Runtime library into a folder: a pinned version, its checksum verified by pip.
#   docker/onnxruntime.sh FOLDER
set -eu
# A library of the user's own is used as it is.
[ -z "${ORT_DYLIB_PATH:-}" ] || exit 0
folder=$1
here=$(dirname "$0")
machine=$(uname -m)
version=$(sed -n 's/^onnxruntime==\([0-9.]*\).*/\1/p' "$here/onnxruntime.txt")
library=$folder/libonnxruntime.so.$version
if [ -s "$library" ]; then
    ln -sf "libonnxruntime.so.$version" "$folder/libonnxruntime.so"
    exit 0
fi
command -v python3 >/dev/null || { echo "python3 with pip is needed to fetch ONNX Runtime: install it, or set ORT_DYLIB_PATH to a library of your own" >&2; exit 1; }
mkdir -p "$folder"
work=$(mktemp -d "$folder/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM
echo "fetching ONNX Runtime $version for $machine" >&2
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp --python-version 311 --abi cp311 \
    --platform "manylinux_2_28_$machine" --require-hashes --requirement "$here/onnxruntime.txt" --dest "$work"
python3 - "$work" "$version" <<'PYTHON'
import glob, sys, zipfile
work, version = sys.argv[1:]
[wheel] = glob.glob(f"{work}/*.whl")
with zipfile.ZipFile(wheel) as z, open(f"{work}/library", "wb") as out:
    out.write(z.read(f"onnxruntime/capi/libonnxruntime.so.{version}"))
PYTHON
chmod 755 "$work/library"
mv "$work/library" "$library"
ln -sf "libonnxruntime.so.$version" "$folder/libonnxruntime.so"
