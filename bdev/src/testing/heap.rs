//! The allocator of tests: thousands of pools are opened one after the other, each with megabytes of buffers, and memory that
//! goes back to the kernel in between costs more than all the rest.

#![allow(unsafe_code)]

/// Has the allocator keep what is freed, for the rest of this process.
#[cfg(target_env = "gnu")]
pub(super) fn keep_freed_memory() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: the parameters say when memory goes back to the kernel; they touch no memory that anybody has.
        unsafe {
            libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
            libc::mallopt(libc::M_MMAP_THRESHOLD, 16 << 20);
        }
    });
}

/// Other allocators are as they are.
#[cfg(not(target_env = "gnu"))]
pub(super) fn keep_freed_memory() {}
