//! Compiles the protobuf files with protox, a protobuf compiler in Rust, so that no `protoc` is needed.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=gigasmith");
    println!("cargo::rerun-if-changed=keda");
    let ours = protox::Compiler::new(["."])?
        .include_imports(true)
        .include_source_info(false)
        .open_file("gigasmith/v1/control.proto")?
        .encode_file_descriptor_set();
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // Served by reflection, so that tools such as grpcurl need no files.
    std::fs::write(out.join("gigasmith.bin"), &ours)?;
    let files = protox::compile(["gigasmith/v1/control.proto", "keda/externalscaler.proto"], ["."])?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}
