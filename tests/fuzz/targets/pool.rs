//! A pool with something of everything, changed as the bytes say and sealed again: the checker takes it without a panic
//! and in a bounded number of reads, and what can be repaired is clean afterwards. A pool that is opened with it is refused
//! or served.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pollux_bdev::thin::testing::image::Built;
use pollux_bdev::thin::testing::mutate::{mutate, survive};
use pollux_bdev::thin::testing::serve::serve;
use pollux_bdev::thin::testing::story::story;

static STORY: LazyLock<Built> = LazyLock::new(|| story().build());

fuzz_target!(|data: &[u8]| {
    let mut built = STORY.clone();
    // More changes than that leave nothing to look at.
    mutate(&mut built, &data[..data.len().min(12 * 16)]);
    // Any error will do.
    let _refused = serve(&built.memory);
    if let Err(what) = survive(built) {
        panic!("{what}");
    }
});
