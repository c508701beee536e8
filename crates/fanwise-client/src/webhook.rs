//! What Fanwise sends to your own backend: its bodies, how it is signed, and how to verify it.
//!
//! Calls of webhook targets, notices of completed jobs and the questions of `before_accept` are
//! signed alike. [`Scheme::Standard`] is the default; a target can be set to [`Scheme::Fanwise`].
//!
//! ```
//! use std::time::SystemTime;
//!
//! use fanwise_client::webhook::{Call, NotGenuine, Verifier};
//! use http::HeaderMap;
//!
//! /// Returns the id of the call and its content. Remember the id for as long as a call may be
//! /// repeated, and answer a repeat like the first one without delivering again.
//! fn receive<'h>(
//!     verifier: &Verifier,
//!     headers: &'h HeaderMap,
//!     body: &[u8],
//! ) -> Result<(&'h str, Call), Box<dyn std::error::Error>> {
//!     let id = verifier.verify(headers, body, SystemTime::now())?;
//!     Ok((id, serde_json::from_slice(body)?))
//! }
//!
//! let verifier = Verifier::new("whsec_bXkgc2VjcmV0")?;
//! let error = receive(&verifier, &HeaderMap::new(), b"{}").unwrap_err();
//! assert!(error.is::<NotGenuine>());
//! # Ok::<_, fanwise_client::webhook::BadSecret>(())
//! ```

mod documents;
mod signer;
mod verifier;

pub use self::documents::{Answer, Call, Class, Failed};
pub use self::signer::{BadSecret, ID, SIGNATURE, Scheme, Signer, TIMESTAMP};
pub use self::verifier::{NotGenuine, Verifier};
