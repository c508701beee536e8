//! Rewrites the frames of the broker so that the client library can read them.
//!
//! A producer may put anything into the properties of a message, and the broker passes it on
//! unchanged: texts that are not UTF-8, header tables within header tables, headers that fill a
//! whole frame, to which the broker then adds its own. The client library reads strictly. It ends
//! the connection over invalid UTF-8 and over a frame larger than agreed, and a table nested some
//! thousand deep overflows the stack of its thread. Any of these would end the session of all
//! lanes, or the process, again and again, since the message is handed out again each time.
//!
//! So every byte of the broker first goes through this module. It rebuilds frames with properties,
//! and the few methods that carry texts of others. A text that is not UTF-8 becomes its escaped
//! form (`\x8f>`), values that are nested too deep or do not fit are left out, and the header
//! [`UNREADABLE`] names the changed properties. Everything else passes unchanged; bodies are never
//! changed.
//!
//! Why a filter and not a patched library: the filter needs only the stream that the library takes
//! anyway, it is independent of the library's versions, and it is small enough to be tested with
//! every kind of damage.

mod method;
mod properties;

#[cfg(test)]
mod tests;

/// The header that names the properties of a message that were changed because they could not be
/// read.
pub(super) const UNREADABLE: &str = "fanwise-unreadable";

/// The largest frame that Fanwise agrees to: the broker's own default.
pub(super) const FRAME_MAX: u32 = 128 * 1024;

/// Held payloads are kept up to this size. The rest of a longer one cannot be read either.
const HELD_MAX: usize = 1024 * 1024;

/// Type, channel and size of the payload.
const HEAD_BYTES: usize = 7;

/// The head and the end of a frame.
const FRAME_OVERHEAD: usize = HEAD_BYTES + 1;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const END: u8 = 0xCE;

/// Follows the frames of one connection.
pub(super) struct Frames {
    /// The largest frame that the client takes.
    frame_max: usize,
    phase: Phase,
}

enum Phase {
    /// The beginning of a frame, as far as it has arrived.
    Head(Vec<u8>),
    /// This many further bytes of the frame pass unchanged.
    Through(usize),
    /// A payload that is held until it is complete.
    Held {
        head: [u8; HEAD_BYTES],
        payload: Vec<u8>,
        /// Bytes that have not arrived, including the end of the frame.
        left: usize,
    },
    /// The bytes are not frames. They pass, and the client finds out itself.
    Alien,
}

impl Frames {
    pub(super) fn new(frame_max: u32) -> Self {
        Self {
            frame_max: usize::try_from(frame_max).unwrap_or(usize::MAX),
            phase: Phase::Head(Vec::with_capacity(HEAD_BYTES)),
        }
    }

    /// Takes the bytes that have arrived and appends those that the client may read.
    pub(super) fn pass(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            bytes = self.step(bytes, out);
        }
    }

    /// Takes some of the bytes and returns the others.
    fn step<'a>(&mut self, bytes: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        match &mut self.phase {
            Phase::Head(head) => {
                let (taken, rest) = split(bytes, HEAD_BYTES - head.len());
                head.extend_from_slice(taken);
                if let Ok(head) = <[u8; HEAD_BYTES]>::try_from(head.as_slice()) {
                    self.phase = begin(head, out);
                }
                rest
            }
            Phase::Through(left) => {
                let (taken, rest) = split(bytes, *left);
                out.extend_from_slice(taken);
                *left -= taken.len();
                if *left == 0 {
                    self.phase = Phase::Head(Vec::with_capacity(HEAD_BYTES));
                }
                rest
            }
            Phase::Held {
                head,
                payload,
                left,
            } => {
                let (taken, rest) = split(bytes, *left);
                let room = HELD_MAX.saturating_sub(payload.len());
                payload.extend_from_slice(split(taken, room).0);
                *left -= taken.len();
                if *left == 0 {
                    let (head, mut payload) = (*head, std::mem::take(payload));
                    // The end of the frame; it was not held if the payload is longer.
                    if payload.len() < HELD_MAX {
                        payload.pop();
                    }
                    self.phase = Phase::Head(Vec::with_capacity(HEAD_BYTES));
                    self.rebuild(head, &payload, out);
                }
                rest
            }
            Phase::Alien => {
                out.extend_from_slice(bytes);
                &[]
            }
        }
    }

    fn rebuild(&mut self, head: [u8; HEAD_BYTES], payload: &[u8], out: &mut Vec<u8>) {
        let readable = if head[0] == HEADER {
            properties::readable(payload, self.frame_max.saturating_sub(FRAME_OVERHEAD))
        } else {
            if let Some(agreed) = method::frame_max(payload) {
                self.frame_max = self.frame_max.min(agreed);
            }
            method::readable(payload)
        };
        let size = u32::try_from(readable.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&head[..HEAD_BYTES - 4]);
        out.extend_from_slice(&size.to_be_bytes());
        out.extend_from_slice(&readable);
        out.push(END);
    }
}

/// The phase that follows the head of a frame.
fn begin(head: [u8; HEAD_BYTES], out: &mut Vec<u8>) -> Phase {
    let [kind, _, _, size @ ..] = head;
    // On a 64-bit machine it always fits.
    let left = usize::try_from(u32::from_be_bytes(size)).map_or(usize::MAX, |size| size + 1);
    match kind {
        HEADER => {}
        METHOD if left < HELD_MAX => {}
        METHOD | BODY | HEARTBEAT => {
            out.extend_from_slice(&head);
            return Phase::Through(left);
        }
        _ => {
            out.extend_from_slice(&head);
            return Phase::Alien;
        }
    }
    Phase::Held {
        head,
        payload: Vec::with_capacity(left.min(HELD_MAX)),
        left,
    }
}

fn split(bytes: &[u8], at: usize) -> (&[u8], &[u8]) {
    bytes.split_at(at.min(bytes.len()))
}

/// Reads from the beginning of a byte slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// The bytes of a short string.
    fn short(&mut self) -> Option<&'a [u8]> {
        let [length] = self.array()?;
        self.take(length.into())
    }

    /// The bytes of a long string, a table or an array.
    fn long(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_be_bytes(self.array()?);
        self.take(usize::try_from(length).ok()?)
    }
}

/// The longest text of a short string.
const SHORT_MAX: usize = u8::MAX as usize;

/// Writes a short string, as text. Returns whether it is unchanged.
fn put_short(bytes: &[u8], out: &mut Vec<u8>) -> bool {
    let intact = std::str::from_utf8(bytes).is_ok();
    if intact {
        // It comes from a short string, so its length fits.
        out.push(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(bytes);
    } else {
        let length = bytes.escape_ascii().take(SHORT_MAX).count();
        out.push(u8::try_from(length).unwrap_or(u8::MAX));
        out.extend(bytes.escape_ascii().take(SHORT_MAX));
    }
    intact
}
