//! Compiles the protobuf files with protox, a protobuf compiler in Rust, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=gigasmith");
    let files = protox::compile(["gigasmith/v1/farm.proto"], ["."])?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}
