//! NetEase Yunxin, version 1 of its server API.

/// What existing callers say, and what they hear.
pub(in crate::im) mod ingress;
