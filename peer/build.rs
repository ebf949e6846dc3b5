//! Generates the gRPC stubs; the messages themselves are `proto::wire`'s.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["cluster", "daemon"].map(|name| format!("../proto/proto/skimmer/v1/{name}.proto"));
    println!("cargo:rerun-if-changed=../proto/proto");
    let descriptors = protox::compile(&files, ["../proto/proto"])?;
    tonic_prost_build::configure().extern_path(".skimmer.v1", "::proto::wire").compile_fds(descriptors)?;
    Ok(())
}
