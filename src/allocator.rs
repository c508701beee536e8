//! What is freed goes back to the system.
//!
//! glibc learns from the first large buffer that is freed to keep such buffers for later ones, and gives
//! threads up to eight heaps per core, each of which keeps what its threads have freed. Lists of megabytes
//! pass through several threads here, so what was kept was more than what was used: with a list of a million
//! `fanwise serve` uses 13 MiB at most, and its peak fell from 63 to 36 MiB; with 100,000 it is 30 (glibc
//! 2.36, two cores; `tests/bench flat` measures it).

/// Buffers of this size and above are mapped by themselves: glibc's own default, before it learns.
#[cfg(target_env = "gnu")]
const MAPPED_FROM: libc::c_int = 128 * 1024;

/// Heaps per core. Threads that share one wait for each other only where their own small caches are empty.
#[cfg(target_env = "gnu")]
const HEAPS_PER_CORE: usize = 2;

/// To be called before there are threads. Other allocators need no such settings.
pub fn give_back_what_is_freed() {
    #[cfg(target_env = "gnu")]
    {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let heaps = (HEAPS_PER_CORE * cores).min(64) as libc::c_int;
        for (setting, value) in [
            (libc::M_MMAP_THRESHOLD, MAPPED_FROM),
            (libc::M_ARENA_MAX, heaps),
        ] {
            #[allow(unsafe_code, reason = "a call into C with two integers")]
            // SAFETY: it changes a number in the allocator, and hands over no memory. One that is refused
            // stays as it was.
            unsafe {
                libc::mallopt(setting, value);
            }
        }
    }
}
