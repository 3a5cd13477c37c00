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
# python_environment REQUIREMENTS FOLDER: an environment of its own with these packages; one that has them already stays.
python_environment() {
    cmp -s "$1" "$2/requirements.txt" && return
    rm -rf "$2/python"
    python3 -m venv "$2/python"
    "$2/python/bin/pip" install --quiet --disable-pip-version-check --requirement "$1"
    cp "$1" "$2/"
}

python_environment "$here/requirements.txt" "$folder"
if ! cmp -s "$here/package.json" "$folder/package.json"; then
    cp "$here/package.json" "$folder/installing.json"
    rm -rf "$folder/node_modules"
    npm install --silent --no-audit --no-fund --no-save --prefix "$folder" "openai@$(node -p "require('$here/package.json').dependencies.openai")"
    mv "$folder/installing.json" "$folder/package.json"
fi

# Generators of clients, apart from the others: what they depend on is pinned.
generators="$folder/generators"
mkdir -p "$generators"
python_environment "$here/generators/requirements.txt" "$generators"
if ! cmp -s "$here/generators/package.json" "$generators/installed.json"; then
    rm -rf "$generators/node_modules"
    cp "$here/generators/package.json" "$generators/"
    npm install --silent --no-audit --no-fund --no-package-lock --prefix "$generators"
    cp "$here/generators/package.json" "$generators/installed.json"
fi
