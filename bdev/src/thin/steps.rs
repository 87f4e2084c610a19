//! Names for the steps of a pool's work whose order matters, so that a test can leave one out and see what breaks.
//!
//! The engine says the name of a step right before it submits the request that is the step, and asks before it waits for
//! something that no request stands for. Only the engine does so: a guest's reads and writes pass no such place. A build
//! is the same with and without a listener; what the names are is for the engine to announce.

/// Listens to the engine's steps.
pub trait Steps: Send + Sync {
    /// The next request that this pool's engine submits to the base is the step `label`.
    fn step(&self, label: &'static str);

    /// Whether the engine waits at `label` until what it has to wait for has come (a quiet point, say). A listener that
    /// says no has the engine go on as if it had.
    fn waits(&self, label: &'static str) -> bool {
        let _ = label;
        true
    }
}

/// Nobody listens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unheard;

impl Steps for Unheard {
    fn step(&self, _label: &'static str) {}
}
