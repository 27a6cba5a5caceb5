//! How the memory allocator is set: so that what this program holds stays what it needs.
//!
//! glibc gives each thread a heap of its own, up to eight for each core, and what one thread has freed no other one gets.
//! An image push is a dozen threads that hand blocks to each other.

/// Lets all threads share two heaps. With one for each thread a push of a compressed image held up to 27 MB and took longer
/// than with two, where it holds 17 MB; a job of a million rows needs the same with either.
///
/// To be called before the first thread is started. Other libraries than glibc have no such setting.
pub fn share_heaps() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "the setting is to be had as a function of the C library only")]
    // SAFETY: it takes two numbers and touches nothing of ours. It is refused for numbers that it does not know, and then
    // all is as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}
