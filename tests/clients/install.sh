#!/bin/sh
# Sees to it that the tests have clients to ask the server with: curl, Python with numpy, schemathesis and OpenAI's client, Node with OpenAI's
# client, and generators of clients for Python and TypeScript.
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

# Generators of clients, apart from the others: what they depend on is pinned.
generators="$folder/generators"
mkdir -p "$generators"
if ! cmp -s "$here/generators/requirements.txt" "$generators/requirements.txt"; then
    rm -rf "$generators/python"
    python3 -m venv "$generators/python"
    "$generators/python/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/generators/requirements.txt"
    cp "$here/generators/requirements.txt" "$generators/"
fi
if ! cmp -s "$here/generators/package.json" "$generators/installed.json"; then
    rm -rf "$generators/node_modules"
    cp "$here/generators/package.json" "$generators/"
    npm install --silent --no-audit --no-fund --no-package-lock --prefix "$generators"
    cp "$here/generators/package.json" "$generators/installed.json"
fi
