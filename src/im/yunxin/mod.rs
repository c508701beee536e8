//! NetEase Yunxin, version 2 of its server API.

/// What existing callers say, and what they hear.
pub(in crate::im) mod ingress;
