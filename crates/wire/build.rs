//! Compiles the `.proto` files with a compiler written in Rust, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/ping/v1/ping.proto", "proto/runner/v1/runner.proto"];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    let mut config = prost_build::Config::new();
    // Secrets and tokens travel in these messages: their `Debug` is written by hand.
    config.skip_debug([
        ".runner.v1.Task",
        ".runner.v1.Runner",
        ".runner.v1.RegisterRequest",
        ".runner.v1.UpdateLogRequest",
        ".runner.v1.LogRow",
    ]);
    config.btree_map(["."]);
    config.compile_fds(descriptors)?;
    Ok(())
}
