//! Large buffers go back to the system when they are freed.
//!
//! glibc learns from the first large buffer that is freed to keep such buffers for later ones, and each
//! thread that allocates keeps its own. Lists of megabytes pass through several threads here, so what is
//! kept was more than what is used: the peak of `fanwise serve` with a list of a million fell from 63 to
//! 41 MiB (glibc 2.36; `tests/bench flat` measures it).

/// Buffers of this size and above are mapped by themselves: glibc's own default, before it learns.
#[cfg(target_env = "gnu")]
const MAPPED_FROM: libc::c_int = 128 * 1024;

/// To be called before there are threads. Other allocators need no such setting.
pub fn give_back_large_buffers() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code, reason = "a call into C with two integers")]
    // SAFETY: it changes a number in the allocator; no memory is handed over. A refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
    }
}
