#!/bin/sh
# Sees to it that the tests have Ray, Spark and pyarrow, in a Python environment of their own, and Java for Spark.
#   tests/cluster/engines.sh FOLDER
set -eu
folder=$1
here=$(dirname "$0")

wanted=
command -v java >/dev/null || wanted="$wanted default-jre-headless"
python3 -c 'import ensurepip, venv' 2>/dev/null || wanted="$wanted python3-venv"
if [ -n "$wanted" ]; then
    # shellcheck disable=SC2086
    "$here/../packages.sh" "The tests of Ray and Spark need Java 17 or newer, and Python 3 with venv" $wanted
fi
cmp -s "$here/requirements.txt" "$folder/requirements.txt" && exit 0
rm -rf "$folder"
python3 -m venv "$folder"
echo "Installing Ray and Spark for the tests" >&2
"$folder/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
# Last: where it is, all is there.
cp "$here/requirements.txt" "$folder/"
