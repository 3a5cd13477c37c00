#!/bin/sh
# Installs packages of Debian that tests need, or says how to.
#   tests/packages.sh "The tests of … need …" PACKAGE…
set -eu
needs=$1
shift
packages=$*

missing() {
    echo "$needs, and $1." >&2
    echo "On Debian and its like: apt-get install $packages. Then run this again." >&2
    exit 1
}

command -v apt-get >/dev/null || missing "this machine has no apt-get to install them with"
if [ "$(id -u)" -eq 0 ]; then
    as_root=
elif command -v sudo >/dev/null; then
    as_root=sudo
else
    missing "installing them takes root or sudo"
fi
echo "Installing $packages for the tests" >&2
$as_root apt-get update -qq || missing "the package lists cannot be fetched"
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null || missing "they cannot be installed"
