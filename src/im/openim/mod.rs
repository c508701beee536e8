//! OpenIM 3.x.

/// What existing callers say, and what they hear.
pub(in crate::im) mod ingress;
