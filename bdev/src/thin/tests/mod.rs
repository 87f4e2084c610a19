//! A pool on a simulated medium: channels on several reactors and the engine, in one thread.

mod plain;
mod world;
