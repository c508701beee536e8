//! Makes glibc return freed memory to the system.
//!
//! By default glibc learns from the first large buffer that is freed to keep such buffers for later
//! ones. It also gives threads up to eight heaps per core, and each heap keeps what its threads
//! have freed. Here lists of several megabytes pass through several threads, so glibc kept more
//! than was in use. With a list of a million recipients `fanwise serve` uses 13 MiB at most, and
//! these settings lowered its peak from 63 to 36 MiB; with 100,000 recipients the peak is 30 MiB
//! (glibc 2.36, two cores; `tests/bench flat` measures it).

/// Buffers of this size and above get a mapping of their own. This is glibc's default before it
/// learns.
#[cfg(target_env = "gnu")]
const MAPPED_FROM: libc::c_int = 128 * 1024;

/// Heaps per core. Threads that share a heap wait for each other only when their own small caches
/// are empty.
#[cfg(target_env = "gnu")]
const HEAPS_PER_CORE: usize = 2;

/// Call it before any thread starts. Other allocators need no such settings.
pub fn return_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let heaps = (HEAPS_PER_CORE * cores).min(64) as libc::c_int;
        for (setting, value) in [
            (libc::M_MMAP_THRESHOLD, MAPPED_FROM),
            (libc::M_ARENA_MAX, heaps),
        ] {
            #[allow(unsafe_code, reason = "a call into C with two integers")]
            // The call changes a number in the allocator and hands over no memory. If glibc refuses
            // the value, the old one stays.
            unsafe {
                libc::mallopt(setting, value);
            }
        }
    }
}
