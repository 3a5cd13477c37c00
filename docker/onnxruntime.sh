#!/bin/sh
# Fetches the ONNX Runtime library into a folder: a pinned version, its checksum verified by pip.
#   docker/onnxruntime.sh FOLDER [onnxruntime-gpu]
set -eu
# A library of the user's own is used as it is.
[ -z "${ORT_DYLIB_PATH:-}" ] || exit 0
folder=$1
package=${2:-onnxruntime}
here=$(dirname "$0")
machine=$(uname -m)
version=$(sed -n "s/^$package==\([0-9.]*\).*/\1/p" "$here/$package.txt")
library=$folder/libonnxruntime.so.$version
if [ -s "$library" ]; then
    ln -sf "libonnxruntime.so.$version" "$folder/libonnxruntime.so"
    exit 0
fi
command -v python3 >/dev/null || { echo "python3 with pip is needed to fetch ONNX Runtime: install it, or set ORT_DYLIB_PATH to a library of your own" >&2; exit 1; }
mkdir -p "$folder"
work=$(mktemp -d -p "$folder")
trap 'rm -rf "$work"' EXIT INT TERM
echo "fetching $package $version for $machine" >&2
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp --python-version 311 --abi cp311 \
    --platform "manylinux_2_28_$machine" --require-hashes --requirement "$here/$package.txt" --dest "$work"
# The library itself comes last: where it is, what it loads is there too.
python3 - "$work" "$version" <<'PYTHON'
import glob, os, shutil, sys, zipfile
work, version = sys.argv[1:]
[wheel] = glob.glob(f"{work}/*.whl")
os.mkdir(f"{work}/lib")
with zipfile.ZipFile(wheel) as z:
    for name in z.namelist():
        if name == f"onnxruntime/capi/libonnxruntime.so.{version}" or name.startswith("onnxruntime/capi/libonnxruntime_providers_"):
            with z.open(name) as source, open(f"{work}/lib/{os.path.basename(name)}", "wb") as out:
                shutil.copyfileobj(source, out)
PYTHON
chmod 755 "$work"/lib/*
for provider in "$work"/lib/libonnxruntime_providers_*; do
    [ ! -e "$provider" ] || mv "$provider" "$folder"
done
mv "$work/lib/libonnxruntime.so.$version" "$library"
ln -sf "libonnxruntime.so.$version" "$folder/libonnxruntime.so"
