//! Tests of what the files beside share: guests, good and bad. Names carry the numbers of the threats they stand for.

mod memory;
mod queue;
mod wire;
