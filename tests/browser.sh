#!/bin/sh
# Sees to it that the tests of the page have a browser: Chromium and its driver, which Debian packages.
set -eu

if command -v chromedriver >/dev/null && { command -v chromium || command -v google-chrome || command -v chrome; } >/dev/null; then
    exit 0
fi

missing() {
    echo "The tests of the page need Chromium and its driver (chromedriver) in PATH, and $1." >&2
    echo "On Debian and its like: apt-get install chromium chromium-driver. Then run this again." >&2
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
echo "Installing Chromium and its driver for the tests of the page" >&2
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq || missing "the package lists cannot be fetched"
$as_root apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core >/dev/null || missing "they cannot be installed"
