//! Compiles the kernels for NVIDIA GPUs, where they are wanted.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    kernels();
}

/// `kernels.ptx`, which `kernels::cuda` includes.
#[cfg(feature = "cuda")]
fn kernels() {
    println!("cargo::rerun-if-env-changed=NVCC");
    cudaforge::KernelBuilder::new()
        .source_files(["src/model/kernels/cuda/kernels.cu"])
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()
        .expect("nvcc compiles the kernels");
}
