#!/usr/bin/env bash
# usage: cutlass.sh FOLDER
# Makes FOLDER a CUDAFORGE_HOME with a checkout of CUTLASS in it, and prints where the checkout is. The build script of
# candle-flash-attn fetches CUTLASS from GitHub unless there is a checkout at the commit it names; this one says it is,
# and has no headers yet: checking types needs none, and toolkit.sh puts those of PyPI's package into it.
set -euo pipefail

# As in candle-flash-attn's build.rs. When that changes, the build script tries to fetch, and says so.
commit=7d49e6c7e2f8896c47f586706e67e1fb215529dc

checkout=$1/git/checkouts/cutlass-${commit:0:16}
# What `git rev-parse HEAD` needs to take a folder for a repository.
mkdir -p "$checkout/include" "$checkout/.git/objects" "$checkout/.git/refs"
echo "$commit" >"$checkout/.git/HEAD"
echo "$checkout"
