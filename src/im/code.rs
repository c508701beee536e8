//! The codes of answers, as far as all systems have them in common.

/// Whether a code is an HTTP status, or one of the numbers of three digits that NetEase models on
/// them.
pub(super) fn is_status(code: &str) -> bool {
    code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit()) && !code.starts_with('0')
}
