#!/usr/bin/env bash
# usage: typecheck.sh COMMAND..., for instance
#   deploy/cuda/typecheck.sh cargo check -p gigasmith-worker --features flash-attn
# Runs `cargo check` or `cargo clippy` on what is built for NVIDIA GPUs, without CUDA and without a network: kernels are
# not compiled. It is no use for `cargo build`.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
"$here/cutlass.sh" "$home" >/dev/null

export CUDAFORGE_HOME=$home NVCC=$here/nvcc-typecheck CUDARC_CUDA_VERSION=13000
# No GPU's: compiled kernels are kept by source and capability, and these must never be taken for real ones.
export CUDA_COMPUTE_CAP=999
"$@"
