//! Writes a pool whose volumes are mapped from end to end and whose data are holes: `scripts/bench` measures large pools
//! on it.
//!
//! `cargo run --release -p pollux-tests --example pool_image -- PATH --volumes 8 --volume-gib 1024`

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use pollux_tests::pool_image::PoolImage;

#[derive(Parser)]
struct Args {
    /// The file; it must not exist
    path: PathBuf,
    /// Name of the pool
    #[arg(long, default_value = "pool")]
    name: String,
    /// KiB of a cluster
    #[arg(long, default_value_t = 64)]
    cluster_kib: u32,
    /// Volumes v0, v1, ...
    #[arg(long, default_value_t = 1)]
    volumes: u64,
    /// GiB of each
    #[arg(long, default_value_t = 1024)]
    volume_gib: u64,
    /// GiB that the base is larger than all volumes together
    #[arg(long, default_value_t = 64)]
    spare_gib: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let image = PoolImage {
        name: args.name,
        cluster_size: args.cluster_kib << 10,
        volumes: args.volumes,
        volume_bytes: args.volume_gib << 30,
        spare_bytes: args.spare_gib << 30,
    };
    image.write(&args.path).map(drop)
}
