#!/bin/sh
# Builds the server's image for CPUs, starts it as its own user on a root that is mounted read-only, asks it, and stops it.
#   docker/image-test.sh FOLDER
# It needs no container engine and no registry of images, only root on a Debian machine: buildah builds the Dockerfile on base images
# made of Debian's packages and of this machine's Rust toolchain. CARGO_INDEX and PIP_INDEX_URL are handed into the build.
set -eu
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "image-test mounts file systems and changes users: run it as root" >&2; exit 1; }
if ! command -v buildah >/dev/null || ! command -v debootstrap >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends buildah debootstrap >/dev/null
fi
buildah() {
    command buildah --root "$folder/storage" --runroot "$folder/run" --storage-driver vfs "$@"
}
# An image of a folder, under a name.
import() {
    container=$(buildah from scratch)
    buildah copy --quiet "$container" "$1" / >/dev/null
    shift
    name=$1
    shift
    buildah config "$@" "$container"
    buildah commit --quiet --rm "$container" "$name" >/dev/null
}
runtime=localhost/dino-base/debian
build=localhost/dino-base/rust
if ! buildah inspect --type image $runtime >/dev/null 2>&1; then
    echo "making a base image of Debian's packages" >&2
    rm -rf "$folder/debian"
    debootstrap --variant=minbase bookworm "$folder/debian" >"$folder/debootstrap.log"
    import "$folder/debian" $runtime --cmd bash
fi
if ! buildah inspect --type image $build >/dev/null 2>&1; then
    echo "making a base image with the Rust toolchain of this machine" >&2
    rm -rf "$folder/rust"
    debootstrap --variant=minbase --include=gcc,libc6-dev,ca-certificates bookworm "$folder/rust" >"$folder/debootstrap.log"
    # Where the public image has them, so that the stage for CUDA finds them too.
    mkdir -p "$folder/rust/usr/local/cargo/bin" "$folder/rust/usr/local/rustup/toolchains"
    cp -a "$(rustc --print sysroot)" "$folder/rust/usr/local/rustup/toolchains/here"
    rm -rf "$folder/rust/usr/local/rustup/toolchains/here/share/doc"
    for program in cargo rustc; do ln -s "../../rustup/toolchains/here/bin/$program" "$folder/rust/usr/local/cargo/bin/$program"; done
    import "$folder/rust" $build --env CARGO_HOME=/usr/local/cargo --env RUSTUP_HOME=/usr/local/rustup \
        --env PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
fi
rm -rf "$folder/debian" "$folder/rust"
# Certificates of this machine: a mirror may have its own.
# No layers: with this driver each would be a copy of all that is below it, 50 GB in the end.
buildah bud --format docker --isolation chroot --pull-never --layers=false --volume /etc/ssl/certs:/etc/ssl/certs:ro \
    --build-arg BUILD=$build --build-arg RUNTIME=$runtime --build-arg CARGO_INDEX="${CARGO_INDEX-}" --build-arg PIP_INDEX_URL="${PIP_INDEX_URL-}" \
    --build-arg DINO_COMMIT="$(git rev-parse --short HEAD 2>/dev/null || true)" --file docker/Dockerfile --target server --tag localhost/dino-server .
container=$(buildah from --pull-never localhost/dino-server)
trap 'buildah umount "$container" >/dev/null; buildah rm "$container" >/dev/null' EXIT
buildah inspect "$container" >"$folder/config.json"
python3 docker/image_test.py --root "$(buildah mount "$container")" --config "$folder/config.json" --folder "$folder"
