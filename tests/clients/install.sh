#!/bin/sh
# Sees to it that the tests have clients to ask the server with: curl, Python with numpy, schemathesis and OpenAI's client, Node with OpenAI's client.
#   tests/clients/install.sh FOLDER
set -eu
mkdir -p "$1"
folder=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)

wanted=
command -v curl >/dev/null || wanted="$wanted curl"
python3 -c 'import ensurepip, venv' 2>/dev/null || wanted="$wanted python3-venv"
{ command -v node && command -v npm; } >/dev/null || wanted="$wanted nodejs npm"
python3 -m pip --version >/dev/null 2>&1 || wanted="$wanted python3-pip"
if [ -n "$wanted" ]; then
    # shellcheck disable=SC2086
    "$here/../packages.sh" "The tests of the API guide and of OpenAI's clients need curl, Python 3 with pip and venv, and Node 18 or newer with npm" $wanted
fi
if ! cmp -s "$here/requirements.txt" "$folder/requirements.txt"; then
    rm -rf "$folder/python"
    python3 -m venv "$folder/python"
    "$folder/python/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
    cp "$here/requirements.txt" "$folder/"
fi
if ! cmp -s "$here/package.json" "$folder/package.json"; then
    cp "$here/package.json" "$folder/installing.json"
    rm -rf "$folder/node_modules"
    npm install --silent --no-audit --no-fund --no-save --prefix "$folder" "openai@$(node -p "require('$here/package.json').dependencies.openai")"
    mv "$folder/installing.json" "$folder/package.json"
fi
