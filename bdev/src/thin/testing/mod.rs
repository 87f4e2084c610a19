//! Pools for tests, made by code of its own over the definitions of the format: [`image`] writes one from a description,
//! [`story`] is one that has something of everything, [`damage`] breaks it, one invariant at a time, [`mutate`] at random; [`serve`] uses what comes of
//! it;
//! [`images`] are pools of earlier versions.

pub mod damage;
pub mod image;
pub mod images;
mod memory;
pub mod mutate;
pub mod serve;
pub mod story;
mod tree;

pub use memory::Memory;
