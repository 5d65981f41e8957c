//! What keeps the secrets that pass through this process to itself. Side: both.

use std::alloc::{GlobalAlloc, Layout, System};

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// To be called before anything is read: no memory image of this process or of its children is kept
/// when they crash, no other user's process may look into it, and what they make is for their own
/// user alone, whatever the caller's umask.
pub fn begin() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    // Neither can fail for what is asked here, and a reset must not stop for them.
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let _ = rustix::process::setrlimit(Resource::Core, none);
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// The system's allocator, and what is given back is overwritten first: the buffers of parsers,
/// decompressors and readers, and what a growing vector leaves behind, may hold secrets as well as what
/// is zeroized where it is dropped.
pub struct Erasing;

// SAFETY: memory comes from the system's allocator and goes back to it as it asks for; in between it is
// written to only when it is given back, within its size. The other methods, growing among them, are made
// of these two.
unsafe impl GlobalAlloc for Erasing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller gives back a block of this size that nobody uses any more. Unlike a plain
        // write, this one is never left out for that.
        unsafe { libc::explicit_bzero(memory.cast(), layout.size()) };
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(memory, layout) }
    }
}
