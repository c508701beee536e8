//! The document against the router and the readers it describes.

use super::*;

#[test]
fn x() {}
