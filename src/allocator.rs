//! How the memory allocator is set: so that what this program holds stays what it needs.
//!
//! glibc gives each thread a heap of its own, up to eight for each core, and what one thread has freed no other one gets.
//! An image push is a dozen threads that hand blocks to each other.

/// From here on a block is a mapping of its own, in bytes. Blocks of images are longer, and leave no holes in a heap.
const MAPPED: libc::c_int = 256 * 1024;
/// What is free at a heap's end up to this length stays there, in bytes.
const KEPT: libc::c_int = 1024 * 1024;

/// Lets all threads share two heaps, which keep short blocks only. A push of a gzip'd image of 387 MB holds 20 MB so, and 22
/// with heaps that keep long blocks, too; with a heap for each thread it held up to 27 MB and took longer. A job of a
/// million rows needs the same with either.
///
/// To be called before the first thread is started. Other libraries than glibc have no such settings.
pub fn share_heaps() {
    #[cfg(target_env = "gnu")]
    for (setting, value) in
        [(libc::M_ARENA_MAX, 2), (libc::M_MMAP_THRESHOLD, MAPPED), (libc::M_TRIM_THRESHOLD, KEPT)]
    {
        #[expect(unsafe_code, reason = "the settings are to be had as a function of the C library only")]
        // SAFETY: it takes two numbers and touches nothing of ours. It is refused for numbers that it does not know, and
        // then all is as it was.
        unsafe {
            libc::mallopt(setting, value);
        }
    }
}
