#!/bin/sh
# Builds the trainer for CUDA, on a machine that needs neither a GPU nor CUDA: the compiler comes from PyPI, the driver's library is a stub.
#   docker/cuda-check.sh FOLDER
# CUDA_COMPUTE_CAP names the GPUs to build for (90: H100). What is built runs where the driver and CUDA 13 are installed.
set -eu
mkdir -p "$1"
folder=$(cd "$1" && pwd)
here=$(dirname "$0")
command -v python3 >/dev/null || { echo "python3 with pip is needed to fetch the CUDA compiler" >&2; exit 1; }
if ! cmp -s "$here/cuda.txt" "$folder/fetched.txt"; then
    echo "fetching the CUDA compiler" >&2
    rm -rf "$folder/wheels"
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --target "$folder/wheels" --requirement "$here/cuda.txt"
    cp "$here/cuda.txt" "$folder/fetched.txt"
fi
cuda=$folder/wheels/nvidia/cu13
home=$folder/home
rm -rf "$home"
mkdir -p "$home/lib64/stubs"
ln -s "$cuda/bin" "$cuda/include" "$cuda/nvvm" "$home/"
for library in "$cuda"/lib/*; do
    name=$(basename "$library")
    ln -s "$library" "$home/lib64/$name"
    # The linker wants names without versions.
    case $name in *.so.*) ln -sf "$library" "$home/lib64/${name%%.so.*}.so" ;; esac
done
ln -s "$folder/wheels/nvidia/nccl/lib/libnccl.so.2" "$home/lib64/libnccl.so"
# The driver's functions, by the names that the bindings declare; none of them is called here.
cargo metadata --format-version 1 --features dino-train/nccl | python3 -c '
import json, pathlib, re, sys
[manifest] = [p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "cudarc"]
bindings = pathlib.Path(manifest).parent / "src" / "driver" / "sys"
names = {name for file in bindings.rglob("*.rs") for name in re.findall(r"\bfn (cu[A-Z]\w*)", file.read_text())}
print("\n".join(f"void {name}(void) {{}}" for name in sorted(names)))' >"$home/stub.c"
cc -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$home/lib64/stubs/libcuda.so" "$home/stub.c"
ln -s libcuda.so "$home/lib64/stubs/libcuda.so.1"
# Kernels that are compiled where they run: by the same library, without headers. It looks for its builtins along the path.
LD_LIBRARY_PATH="$home/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" python3 - "$home/lib64/libnvrtc.so" training/src/kernels/cuda/block.cu <<'END'
import ctypes, pathlib, sys
nvrtc, program = ctypes.CDLL(sys.argv[1]), ctypes.c_void_p()
assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), pathlib.Path(sys.argv[2]).read_bytes(), sys.argv[2].encode(), 0, None, None) == 0
if nvrtc.nvrtcCompileProgram(program, 0, None) != 0:
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    sys.exit(log.value.decode())
END
export CUDA_HOME="$home" CUDA_PATH="$home" CUDA_ROOT="$home" CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-90}"
export PATH="$home/bin:$PATH" LIBRARY_PATH="$home/lib64:$home/lib64/stubs${LIBRARY_PATH:+:$LIBRARY_PATH}"
# Not where tests look for programs: this one does not start without a driver.
cargo build --workspace --features dino-train/nccl --bin dino-train --target-dir "$folder/target"
echo "dino-train builds with --features nccl, which includes cuda, for compute capability $CUDA_COMPUTE_CAP; nothing was run on a GPU" >&2
