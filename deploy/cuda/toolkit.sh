#!/usr/bin/env bash
# usage: toolkit.sh FOLDER, then `. FOLDER/env`, then build:
#   deploy/cuda/toolkit.sh target/cuda && . target/cuda/env
#   cargo build --release --locked --features gigasmith-worker/cudnn
# Makes a CUDA toolkit with cuDNN out of PyPI's packages, for machines that have none: 2 GB, no root, no GPU, no driver.
# CUDA_COMPUTE_CAP is the GPU to build for: 80 (A100) unless it is set when `env` is read.
# Needs python3 with venv, a C compiler, git.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
[ $# = 1 ] || { echo "usage: toolkit.sh FOLDER" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)

python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" "cuda-toolkit[nvcc,crt,nvvm,cccl,cudart,nvrtc,cublas,curand]==13.0.2" nvidia-cudnn-cu13==9.19.0.56
# Only its headers are of use: without what they depend on in Python.
"${pip[@]}" --no-deps nvidia-cutlass==3.5.0.0

packages=$(echo "$folder"/venv/lib/python3*/site-packages)
cuda=$packages/nvidia/cu13
stubs=$cuda/lib/stubs

# The packages have libraries under the names that programs load; the linker looks for others.
ln -sfn lib "$cuda/lib64"
for library in cublas.so.13 cublasLt.so.13 cudart.so.13 curand.so.10 nvrtc.so.13; do
    ln -sfn "lib$library" "$cuda/lib/lib${library%.*}"
done
ln -sfn ../../cudnn/lib/libcudnn.so.9 "$cuda/lib/libcudnn.so"

# The driver's library comes with the driver. To link it takes one with the same names in it: all of the header's.
mkdir -p "$stubs"
grep -ohE '\bcu[A-Z][A-Za-z0-9_]*\b' "$cuda"/include/cuda*.h | sort -u | sed 's/.*/void &(void) {}/' |
    cc -shared -fPIC -w -Wl,-soname,libcuda.so.1 -x c -o "$stubs/libcuda.so" -

checkout=$("$here/cutlass.sh" "$folder/cudaforge")
for headers in include tools/util/include; do
    rm -rf "${checkout:?}/$headers"
    mkdir -p "$(dirname "$checkout/$headers")"
    ln -s "$packages/cutlass_library/source/$headers" "$checkout/$headers"
done

cat >"$folder/env" <<EOF
export CUDA_HOME='$cuda' CUDA_PATH='$cuda' CUDNN_LIB='$cuda' CUDAFORGE_HOME='$folder/cudaforge'
export PATH="\$CUDA_HOME/bin:\$PATH" CUDARC_CUDA_VERSION=13000 CUDA_COMPUTE_CAP="\${CUDA_COMPUTE_CAP:-80}"
# What flash attention can do and is never asked for here would be most of its build.
export NVCC_APPEND_FLAGS='$(printf -- '-DFLASHATTENTION_DISABLE_%s ' DROPOUT ALIBI SOFTCAP LOCAL)'
EOF
echo "made; now: . $1/env" >&2
