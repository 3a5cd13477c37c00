#!/bin/sh
# Sees to it that the tests of the page have a browser: Chromium and its driver, which Debian packages.
set -eu
if command -v chromedriver >/dev/null && { command -v chromium || command -v google-chrome || command -v chrome; } >/dev/null; then
    exit 0
fi
exec "$(dirname "$0")/packages.sh" "The tests of the page need Chromium and its driver (chromedriver) in PATH" chromium chromium-driver fonts-dejavu-core
