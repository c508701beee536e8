//! Parses heads of replies and sizes of chunks. It accepts what RFC 9110 and 9112 ask a client to
//! accept: folded lines, a repeated length, `identity`. It refuses everything that is not clearly
//! HTTP/1.1, since a reply that is read wrongly would be worse than none.

use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use httparse::{ParserConfig, Status};

use super::Broken;

/// Most header lines of a reply; their bytes are bounded too.
const HEADERS_MAX: usize = 256;

/// The head of a reply.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) framing: Framing,
    /// How long the connection may idle; `None` if it must not be used again.
    pub(super) reuse: Option<Duration>,
    /// Length of the head.
    pub(super) bytes: usize,
}

/// Where the body of a reply ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Empty,
    Length(u64),
    Chunked,
    UntilClose,
}

/// Parses the head at the start of `bytes`, if it is complete.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<Head>, Broken> {
    let bad = |what: &'static str| Broken::new("bad_reply", what);
    let mut lines = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut []);
    let mut config = ParserConfig::default();
    config
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true);
    let parsed = config.parse_response_with_uninit_headers(&mut response, bytes, &mut lines);
    let length = match parsed {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(error) => return Err(Broken::new("bad_reply", format!("not HTTP: {error}"))),
    };
    let status = response
        .code
        .ok_or_else(|| bad("a reply without a status"))?;
    if status == 101 {
        return Err(bad("the server changed the protocol unasked"));
    }
    let mut headers = HeaderMap::with_capacity(response.headers.len());
    let mut content_length = None;
    let mut chunked = false;
    let mut keep_alive = response.version == Some(1);
    let mut reuse = Duration::MAX;
    for line in response.headers.iter() {
        let unfolded = unfold(line.value);
        let name = HeaderName::from_bytes(line.name.as_bytes());
        let value = HeaderValue::from_bytes(&unfolded);
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(bad("a header of the reply is not valid"));
        };
        match name {
            header::CONTENT_LENGTH => {
                // The same length repeated is one length.
                for length in tokens(&unfolded) {
                    let length = number(length).ok_or_else(|| bad("an odd content-length"))?;
                    if content_length.is_some_and(|other| other != length) {
                        return Err(bad("two lengths for one body"));
                    }
                    content_length = Some(length);
                }
            }
            header::TRANSFER_ENCODING => {
                for coding in tokens(&unfolded) {
                    match coding {
                        // An old name for no coding at all.
                        coding if coding.eq_ignore_ascii_case(b"identity") && !chunked => {}
                        coding if coding.eq_ignore_ascii_case(b"chunked") && !chunked => {
                            chunked = true;
                        }
                        _ => return Err(bad("an unknown transfer coding")),
                    }
                }
            }
            header::CONNECTION => {
                for token in tokens(&unfolded) {
                    if token.eq_ignore_ascii_case(b"close") {
                        keep_alive = false;
                    } else if token.eq_ignore_ascii_case(b"keep-alive") {
                        keep_alive = true;
                    }
                }
            }
            _ if name.as_str() == "keep-alive" => {
                let timeout = tokens(&unfolded).find_map(|token| token.strip_prefix(b"timeout="));
                if let Some(seconds) = timeout.and_then(number) {
                    // One second less, so that the server does not close it just when we use it.
                    reuse = Duration::from_secs(seconds.saturating_sub(1));
                }
            }
            _ => {}
        }
        headers.append(name, value);
    }
    let framing = match content_length {
        _ if matches!(status, 100..=199 | 204 | 304) => Framing::Empty,
        _ if chunked => Framing::Chunked,
        Some(length) => Framing::Length(length),
        None => Framing::UntilClose,
    };
    // If both are given, the chunks tell the end of the body, and bytes after it cannot be trusted.
    let clear = framing != Framing::UntilClose && !(chunked && content_length.is_some());
    Ok(Some(Head {
        status,
        headers,
        framing,
        reuse: (keep_alive && clear).then_some(reuse),
        bytes: length,
    }))
}

/// A folded value, joined to one line.
fn unfold(value: &[u8]) -> Cow<'_, [u8]> {
    if !value.contains(&b'\n') {
        return Cow::Borrowed(value);
    }
    let lines = value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let lines: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
    Cow::Owned(lines.join(&b' '))
}

/// Removes the byte order mark that some servers put before their JSON.
pub(super) fn unmarked(body: Bytes) -> Bytes {
    const MARK: &[u8] = b"\xef\xbb\xbf";
    match body.strip_prefix(MARK) {
        Some(_) => body.slice(MARK.len()..),
        None => body,
    }
}

/// The size at the start of a chunk's line; extensions are ignored.
pub(super) fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';').next()?.trim_ascii();
    let hex = digits.iter().all(u8::is_ascii_hexdigit);
    // More than sixteen digits do not fit in 64 bits.
    if !hex || digits.is_empty() || digits.len() > 16 {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// A decimal number and nothing else, not even a sign.
fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(lines: &str) -> Head {
        let text = format!("{lines}\r\n\r\n").replace("\n\r", "\n");
        parse(text.as_bytes()).unwrap().expect("a whole head")
    }

    fn refused(lines: &str) -> Broken {
        parse(format!("{lines}\r\n\r\n").as_bytes()).expect_err("an error")
    }

    #[test]
    fn the_end_of_a_body_is_found_by_the_rules_of_http() {
        let check = |lines: &str, framing, reusable: bool| {
            let head = head(lines);
            assert_eq!(head.framing, framing, "{lines}");
            assert_eq!(head.reuse.is_some(), reusable, "{lines}");
        };
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 5",
            Framing::Length(5),
            true,
        );
        check(
            "HTTP/1.1 200\r\ncontent-length: 0",
            Framing::Length(0),
            true,
        );
        check("HTTP/1.1 204 No Content", Framing::Empty, true);
        check("HTTP/1.1 304 x\r\nContent-Length: 5", Framing::Empty, true);
        check("HTTP/1.1 200 OK", Framing::UntilClose, false);
        check(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked",
            Framing::Chunked,
            true,
        );
        check(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
            Framing::Chunked,
            false,
        );
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5",
            Framing::Length(5),
            true,
        );
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x, Close",
            Framing::Length(5),
            false,
        );
        check(
            "HTTP/1.0 200 OK\r\nContent-Length: 5",
            Framing::Length(5),
            false,
        );
        check(
            "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive",
            Framing::Length(5),
            true,
        );
    }

    /// A reply that the rules of HTTP accept settles the call and leaves no recipient in doubt.
    #[test]
    fn odd_replies_are_read_as_the_rules_of_http_have_it() {
        let length = |lines: &str| {
            let head = head(lines);
            (head.framing, head.reuse.is_some())
        };
        let five = (Framing::Length(5), true);
        for lines in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 5",
            "HTTP/1.1 200 OK\r\nContent-Length: 5,5\r\nContent-Length: 5",
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n 5",
            "HTTP/1.1 200 OK\r\nContent-Length : 5",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 5",
            "HTTP/1.1 200 OK\r\nX: a\r\n\tb\r\n   c\r\nContent-Length: 5",
        ] {
            assert_eq!(length(lines), five, "{lines}");
        }
        let chunked = (Framing::Chunked, true);
        for lines in [
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity, chunked",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        ] {
            assert_eq!(length(lines), chunked, "{lines}");
        }
        let folded = head("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: a\r\n\tb\r\n   c");
        assert_eq!(folded.headers["x"], "a b c");
        let many = format!(
            "HTTP/1.1 200 OK{}",
            "\r\nset-cookie: a=b".repeat(HEADERS_MAX)
        );
        assert_eq!(head(&many).headers.len(), HEADERS_MAX);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_body() {
        let of = |body: &'static [u8]| unmarked(Bytes::from_static(body));
        assert_eq!(of(b"\xef\xbb\xbf{}"), "{}");
        assert_eq!(of(b"\xef\xbb\xbf"), "");
        assert_eq!(of(b"{}"), "{}");
        assert_eq!(of(b""), "");
    }

    #[test]
    fn what_is_not_clearly_http_is_refused() {
        for lines in [
            "SSH-2.0-OpenSSH_9.2",
            "HTTP/2 200 OK",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6",
            "HTTP/1.1 200 OK\r\nContent-Length: +5",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 6",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n 6",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x",
        ] {
            assert_eq!(refused(lines).code, "bad_reply", "{lines}");
        }
        let many = format!("HTTP/1.1 200 OK{}", "\r\na: b".repeat(HEADERS_MAX + 1));
        assert_eq!(refused(&many).code, "bad_reply");
    }

    #[test]
    fn a_head_that_is_not_all_there_is_waited_for() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).unwrap().is_none(), "{end}");
        }
        assert_eq!(parse(whole).unwrap().unwrap().bytes, whole.len());
    }

    #[test]
    fn the_server_may_ask_for_a_shorter_idle_time() {
        let reuse = |value: &str| {
            head(&format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeep-Alive: {value}"
            ))
            .reuse
        };
        assert_eq!(reuse("timeout=5, max=100"), Some(Duration::from_secs(4)));
        assert_eq!(reuse("max=100,timeout=0"), Some(Duration::ZERO));
        assert_eq!(reuse("nonsense"), Some(Duration::MAX));
    }

    #[test]
    fn sizes_of_chunks() {
        assert_eq!(chunk_size(b"1a"), Some(26));
        assert_eq!(chunk_size(b"0;name=value"), Some(0));
        assert_eq!(chunk_size(b"ffffffffffffffff"), Some(u64::MAX));
        for line in ["", "x", "-1", "+1", "1ffffffffffffffff", ";a"] {
            assert_eq!(chunk_size(line.as_bytes()), None, "{line:?}");
        }
    }
}
