//! Opens one connection, and carries one request and its reply at a time on it.

use std::future::poll_fn;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, USER_AGENT,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::address::is_public;
use super::reply::{self, Framing, Head};
use super::{Broken, CERTIFICATE, HttpReply, Origin, PRIVATE_ADDRESS, Request, Secure};

mod stream;

use stream::{Counted, Stream};

/// A body up to this size leaves in the same write as the head; a longer one is not copied.
const COPIED_BODY_MAX: usize = 8 * 1024;
/// Size of the read buffer; most replies fit in one read.
const READ_BYTES: usize = 4 * 1024;
/// Longest head of a reply, and longest line between chunks.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most lines after the last chunk.
const TRAILERS_MAX: usize = 64;

pub(super) struct Connection {
    stream: Stream,
    /// The head of the request, and its body if that is small.
    output: Vec<u8>,
    input: Input,
    idle_since: Instant,
    usable_until: Instant,
}

/// A reply, and how long the connection may then idle; `None` if it must not be used again.
pub(super) struct Exchanged {
    pub(super) reply: HttpReply,
    pub(super) reuse: Option<Duration>,
}

/// What is left of a body that is read in pieces.
pub(super) enum Left {
    Length(u64),
    /// The size of the next chunk comes first.
    ChunkStart,
    Chunk(u64),
    /// The end of a line comes first.
    ChunkEnd,
    Nothing,
}

/// Resolves a name and connects to the first of its addresses that answers.
pub(super) async fn open(
    origin: Origin<'_>,
    tls: Option<Secure>,
    public_only: bool,
    deadline: Instant,
) -> Result<Connection, Broken> {
    let at = origin.host_and_port();
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((origin.host(), origin.port()))
        .await
        .map_err(|error| Broken::new("dns", format!("cannot resolve {at}: {error}")))?
        .collect();
    let inside = addresses.iter().find(|it| !is_public(it.ip()));
    if let Some(inside) = inside.filter(|_| public_only) {
        let what = format!("{at} is at {}, which is not a public address", inside.ip());
        return Err(Broken::new(PRIVATE_ADDRESS, what));
    }
    let stream = connect(&addresses, deadline).await.map_err(|error| {
        let code = match error.kind() {
            io::ErrorKind::ConnectionRefused => "refused",
            io::ErrorKind::TimedOut => "connect_timeout",
            _ => "connect",
        };
        Broken::new(code, format!("cannot connect to {at}: {error}"))
    })?;
    let stream = Counted { stream, written: 0 };
    let stream = match tls {
        None => Stream::Plain(stream),
        Some(tls) => {
            let broken = |error: io::Error| {
                let refused = error
                    .get_ref()
                    .and_then(|source| source.downcast_ref::<rustls::Error>());
                let code = match refused {
                    Some(rustls::Error::InvalidCertificate(_)) => CERTIFICATE,
                    _ => "tls",
                };
                let own = tls.own.as_ref();
                let what = own.and_then(|tls| tls.explain(&error, origin.host(), "http://"));
                let what = what.unwrap_or_else(|| error.to_string());
                Broken::new(code, format!("no TLS with {at}: {what}"))
            };
            let connecting = tls.connector.connect(tls.name.clone(), stream);
            Stream::Tls(Box::new(connecting.await.map_err(broken)?))
        }
    };
    Ok(Connection::new(stream))
}

/// Tries the addresses in order, each with its share of the time that is left.
async fn connect(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for (index, address) in addresses.iter().enumerate() {
        let now = Instant::now();
        let share = deadline.saturating_duration_since(now) / (addresses.len() - index) as u32;
        match timeout_at(now + share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, "no answer in time"),
        }
    }
    Err(last)
}

impl Connection {
    fn new(stream: Stream) -> Self {
        let now = Instant::now();
        Self {
            stream,
            output: Vec::with_capacity(1024),
            input: Input {
                bytes: vec![0; READ_BYTES],
                start: 0,
                end: 0,
            },
            idle_since: now,
            usable_until: now,
        }
    }

    /// Bytes that the kernel has taken from this connection so far.
    pub(super) fn written(&self) -> u64 {
        self.stream.written()
    }

    pub(super) fn rest(&mut self, now: Instant, idle_max: Duration) {
        self.idle_since = now;
        self.usable_until = now + idle_max;
    }

    pub(super) fn idle_since(&self) -> Instant {
        self.idle_since
    }

    pub(super) fn usable_until(&self) -> Instant {
        self.usable_until
    }

    /// Whether the server has neither closed the connection nor sent anything since the last reply.
    /// Costs no system call unless there is something to read.
    pub(super) async fn is_quiet(&mut self) -> bool {
        let look = poll_fn(|cx| {
            let mut byte = [0];
            let read =
                Pin::new(&mut self.stream).poll_read(cx, &mut ReadBuf::new(byte.as_mut_slice()));
            Poll::Ready(read.is_pending())
        });
        // Without the task's budget left, the runtime would report every socket as pending.
        tokio::task::unconstrained(look).await
    }

    /// Sends one request and reads its reply. After an error, or without `reuse`, the connection
    /// must not be used again.
    pub(super) async fn exchange(
        &mut self,
        request: &Request,
        reply_bytes_max: usize,
    ) -> Result<Exchanged, Broken> {
        let before = self.written();
        let rest = self.render(request);
        let written = match self.write(rest).await {
            Ok(whole) => Ok(whole),
            Err(error) if self.written() == before => return Err(broken(&error)),
            // A server that refuses a request before it has read all of it may have sent the
            // reason.
            Err(error) => Err(broken(&error)),
        };
        let has_body = request.method != http::Method::HEAD;
        let exchanged = self.read(has_body, reply_bytes_max).await;
        match (written, exchanged) {
            (Ok(true), exchanged) => exchanged,
            (Ok(false) | Err(_), Ok(exchanged)) => Ok(Exchanged {
                reuse: None,
                ..exchanged
            }),
            (Ok(false), Err(broken)) | (Err(broken), Err(_)) => Err(broken),
        }
    }

    /// Sends one request and reads the head of its reply. The body of a 200 is left to be read in
    /// pieces; that of any other reply is read too. The connection must not be used again.
    pub(super) async fn ask(
        &mut self,
        request: &Request,
        patience: Duration,
    ) -> Result<(HttpReply, Left), Broken> {
        let answered = async {
            let rest = self.render(request);
            self.write(rest).await.map_err(|error| broken(&error))?;
            self.read_head().await
        };
        let late = |_| Broken::new("timeout", format!("no reply within {patience:?}"));
        let head = timeout(patience, answered).await.map_err(late)??;
        if !matches!(head.status, 200 | 206) {
            let rest = timeout(patience, self.read_reply(head, true, HEAD_BYTES_MAX));
            return Ok((rest.await.map_err(late)??.reply, Left::Nothing));
        }
        let left = match head.framing {
            Framing::Length(length) => Left::Length(length),
            Framing::Chunked => Left::ChunkStart,
            Framing::Empty => Left::Nothing,
            Framing::UntilClose => {
                let what = "the server does not say where its reply ends";
                return Err(Broken::new("bad_reply", what));
            }
        };
        let reply = HttpReply {
            status: head.status,
            headers: head.headers,
            body: Bytes::new(),
        };
        Ok((reply, left))
    }

    /// The next piece of a body; empty at its end.
    pub(super) async fn piece(&mut self, left: &mut Left) -> Result<&[u8], Broken> {
        let piece = timeout(PIECE_PATIENCE, self.next_piece(left)).await;
        let (start, end) = piece.map_err(|_| {
            let what = format!("nothing came for {PIECE_PATIENCE:?}");
            Broken::new("timeout", what)
        })??;
        Ok(&self.input.bytes[start..end])
    }

    /// Where the next piece is in the input.
    async fn next_piece(&mut self, left: &mut Left) -> Result<(usize, usize), Broken> {
        if matches!(left, Left::ChunkEnd) {
            self.end_chunk().await?;
            *left = Left::ChunkStart;
        }
        if matches!(left, Left::ChunkStart) {
            *left = match self.chunk_size().await? {
                0 => {
                    self.skip_trailers().await?;
                    Left::Nothing
                }
                size => Left::Chunk(size),
            };
        }
        let (Left::Length(rest) | Left::Chunk(rest)) = left else {
            return Ok((0, 0));
        };
        if *rest > 0 && self.input.is_empty() {
            self.input.widen();
            self.fill().await?;
        }
        let count = self.input.filled().len();
        let count = count.min((*rest).try_into().unwrap_or(usize::MAX));
        let start = self.input.start;
        self.input.start += count;
        *rest -= count as u64;
        match left {
            Left::Chunk(0) => *left = Left::ChunkEnd,
            Left::Length(0) => *left = Left::Nothing,
            _ => {}
        }
        Ok((start, start + count))
    }

    /// Sends one request whose body is read from `body` to its end, and reads its reply. Each piece
    /// of the body, and the reply after the last one, must come on within `patience`. The connection
    /// must not be used again.
    pub(super) async fn upload(
        &mut self,
        request: &Request,
        mut body: impl AsyncRead + Unpin,
        patience: Duration,
        reply_bytes_max: usize,
    ) -> Result<HttpReply, Broken> {
        let late = |_| Broken::new("timeout", format!("nothing went on within {patience:?}"));
        self.render_head(request);
        self.output
            .extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
        let mut ended = false;
        let written = loop {
            // A server that refuses a request before it has read all of it has sent the reason.
            match timeout(patience, self.write(&[])).await.map_err(late)? {
                Ok(true) if !ended => ended = self.render_piece(&mut body, patience).await?,
                written => break written,
            }
        };
        let has_body = request.method != http::Method::HEAD;
        let reply = timeout(patience, self.read(has_body, reply_bytes_max));
        match (written, reply.await.map_err(late)?) {
            (_, Ok(exchanged)) => Ok(exchanged.reply),
            (Err(error), Err(_)) => Err(broken(&error)),
            (Ok(_), Err(broken)) => Err(broken),
        }
    }

    /// Fills the output with the next piece of a body; `true` if it was the end.
    async fn render_piece(
        &mut self,
        body: &mut (impl AsyncRead + Unpin),
        patience: Duration,
    ) -> Result<bool, Broken> {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        while piece.len() < PIECE_BYTES {
            let mut room = body.take((PIECE_BYTES - piece.len()) as u64);
            let read = timeout(patience, room.read_buf(&mut piece)).await;
            let late = |_| Broken::new("body", "the body of the request does not come on");
            let read = read.map_err(late)?;
            let unreadable = |error: io::Error| {
                Broken::new(
                    "body",
                    format!("cannot read the body of the request: {error}"),
                )
            };
            if read.map_err(unreadable)? == 0 {
                break;
            }
        }
        self.output.clear();
        if !piece.is_empty() {
            // Writing to a Vec cannot fail.
            let _ = write!(self.output, "{:x}\r\n", piece.len());
            self.output.extend_from_slice(&piece);
            self.output.extend_from_slice(b"\r\n");
        }
        let ended = piece.len() < PIECE_BYTES;
        if ended {
            self.output.extend_from_slice(b"0\r\n\r\n");
        }
        Ok(ended)
    }

    /// Fills the output; returns the bytes to write after it.
    fn render<'r>(&mut self, request: &'r Request) -> &'r [u8] {
        self.render_head(request);
        let output = &mut self.output;
        // Writing to a Vec cannot fail.
        let _ = write!(output, "content-length: {}\r\n\r\n", request.body.len());
        if request.body.len() <= COPIED_BODY_MAX {
            output.extend_from_slice(&request.body);
            &[]
        } else {
            &request.body
        }
    }

    /// Fills the output with the head, but for the header that frames the body.
    fn render_head(&mut self, request: &Request) {
        let output = &mut self.output;
        output.clear();
        let target = request
            .uri
            .path_and_query()
            .map_or("/", |path| path.as_str());
        output.extend_from_slice(request.method.as_str().as_bytes());
        output.extend_from_slice(b" ");
        output.extend_from_slice(target.as_bytes());
        output.extend_from_slice(b" HTTP/1.1\r\n");
        let mut line = |name: &[u8], value: &[u8]| {
            output.extend_from_slice(name);
            output.extend_from_slice(b": ");
            output.extend_from_slice(value);
            output.extend_from_slice(b"\r\n");
        };
        if !request.headers.contains_key(HOST)
            && let Ok(origin) = Origin::of(&request.uri)
        {
            line(b"host", origin.host_and_port().as_bytes());
        }
        if !request.headers.contains_key(USER_AGENT) {
            line(b"user-agent", USER_AGENT_VALUE.as_bytes());
        }
        if !request.headers.contains_key(ACCEPT_ENCODING) {
            // Without this header a server may compress, and then we cannot read which recipients
            // failed.
            line(b"accept-encoding", b"identity");
        }
        for (name, value) in &request.headers {
            // These three headers frame the request, which this function does itself.
            if ![CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION].contains(name) {
                line(name.as_str().as_bytes(), value.as_bytes());
            }
        }
    }

    /// Writes the output and `rest`. `Ok(false)` if the server answered or closed the connection
    /// before all of it was written.
    async fn write(&mut self, rest: &[u8]) -> io::Result<bool> {
        for mut bytes in [self.output.as_slice(), rest] {
            while !bytes.is_empty() {
                let (stream, input) = (&mut self.stream, &mut self.input);
                let written = poll_fn(|cx| match Pin::new(&mut *stream).poll_write(cx, bytes) {
                    Poll::Ready(written) => Poll::Ready(written.map(Some)),
                    // Read while waiting, so that the two sides do not wait for each other.
                    Poll::Pending => input.poll_fill(cx, stream).map_ok(|_| None),
                });
                match written.await? {
                    Some(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Some(written) => bytes = &bytes[written..],
                    None => return Ok(false),
                }
            }
        }
        // Only TLS buffers anything.
        self.stream.flush().await?;
        Ok(true)
    }

    async fn read(&mut self, has_body: bool, bytes_max: usize) -> Result<Exchanged, Broken> {
        let head = self.read_head().await?;
        self.read_reply(head, has_body, bytes_max).await
    }

    /// Reads the reply after its head.
    async fn read_reply(
        &mut self,
        head: Head,
        has_body: bool,
        bytes_max: usize,
    ) -> Result<Exchanged, Broken> {
        let body = match head.framing {
            _ if !has_body => Bytes::new(),
            Framing::Empty => Bytes::new(),
            Framing::Length(length) if length > bytes_max as u64 => {
                return Err(too_long(bytes_max));
            }
            Framing::Length(length) => self.read_body(length as usize).await?,
            Framing::Chunked => self.read_chunks(bytes_max).await?,
            Framing::UntilClose => self.read_to_end(bytes_max).await?,
        };
        let reuse = head
            .reuse
            // Bytes after the reply were not requested.
            .filter(|_| self.input.is_empty());
        self.input.shrink();
        Ok(Exchanged {
            reply: HttpReply {
                status: head.status,
                headers: head.headers,
                body: reply::unmarked(body),
            },
            reuse,
        })
    }

    /// Reads the head of the final reply; skips interim ones (1xx).
    async fn read_head(&mut self) -> Result<Head, Broken> {
        loop {
            match reply::parse(self.input.filled())? {
                Some(head) => {
                    self.input.start += head.bytes;
                    if head.status >= 200 {
                        return Ok(head);
                    }
                }
                None if self.input.filled().len() >= HEAD_BYTES_MAX => {
                    return Err(Broken::new(
                        "bad_reply",
                        "the head of the reply is too long",
                    ));
                }
                None => self.fill().await?,
            }
        }
    }

    async fn read_body(&mut self, length: usize) -> Result<Bytes, Broken> {
        let here = self.input.filled();
        if here.len() >= length {
            let body = Bytes::copy_from_slice(&here[..length]);
            self.input.start += length;
            return Ok(body);
        }
        let mut body = Vec::with_capacity(length);
        self.read_exact(length, &mut body).await?;
        Ok(body.into())
    }

    /// Moves `length` bytes of the reply to `body`.
    async fn read_exact(&mut self, length: usize, body: &mut Vec<u8>) -> Result<(), Broken> {
        let end = body.len() + length;
        let here = length.min(self.input.filled().len());
        body.extend_from_slice(&self.input.filled()[..here]);
        self.input.start += here;
        while body.len() < end {
            let mut rest = (&mut self.stream).take((end - body.len()) as u64);
            let read = rest.read_buf(body).await.map_err(|error| broken(&error))?;
            if read == 0 {
                return Err(closed());
            }
        }
        Ok(())
    }

    async fn read_chunks(&mut self, bytes_max: usize) -> Result<Bytes, Broken> {
        let mut body = Vec::new();
        loop {
            let size = self.chunk_size().await?;
            if size > (bytes_max - body.len()) as u64 {
                return Err(too_long(bytes_max));
            }
            if size == 0 {
                break;
            }
            self.read_exact(size as usize, &mut body).await?;
            self.end_chunk().await?;
        }
        self.skip_trailers().await?;
        Ok(body.into())
    }

    async fn chunk_size(&mut self) -> Result<u64, Broken> {
        let size = self.read_line(reply::chunk_size).await?;
        size.ok_or_else(|| Broken::new("bad_reply", "a chunk has no size"))
    }

    async fn end_chunk(&mut self) -> Result<(), Broken> {
        match self.read_line(<[u8]>::is_empty).await? {
            true => Ok(()),
            false => Err(Broken::new("bad_reply", "a chunk is longer than it says")),
        }
    }

    async fn skip_trailers(&mut self) -> Result<(), Broken> {
        for _ in 0..TRAILERS_MAX {
            if self.read_line(<[u8]>::is_empty).await? {
                return Ok(());
            }
        }
        Err(Broken::new("bad_reply", "too many trailers"))
    }

    async fn read_to_end(&mut self, bytes_max: usize) -> Result<Bytes, Broken> {
        let mut body = Vec::new();
        loop {
            body.extend_from_slice(self.input.filled());
            self.input.start = self.input.end;
            if body.len() > bytes_max {
                return Err(too_long(bytes_max));
            }
            if self.input.fill(&mut self.stream).await? == 0 {
                return Ok(body.into());
            }
        }
    }

    /// Takes a line from the input and parses it, without its end.
    async fn read_line<T>(&mut self, read: impl Fn(&[u8]) -> T) -> Result<T, Broken> {
        loop {
            let here = self.input.filled();
            if let Some(end) = here.iter().position(|byte| *byte == b'\n') {
                let line = here[..end].strip_suffix(b"\r").unwrap_or(&here[..end]);
                let value = read(line);
                self.input.start += end + 1;
                return Ok(value);
            }
            if here.len() >= HEAD_BYTES_MAX {
                return Err(Broken::new("bad_reply", "a line of the reply is too long"));
            }
            self.fill().await?;
        }
    }

    /// Reads more input; here, the end of the stream is an error.
    async fn fill(&mut self) -> Result<(), Broken> {
        match self.input.fill(&mut self.stream).await? {
            0 => Err(closed()),
            _ => Ok(()),
        }
    }
}

/// Bytes of one piece of an upload, and of the read buffer during a download.
const PIECE_BYTES: usize = 64 * 1024;

/// Longest wait for the next piece of a download.
const PIECE_PATIENCE: Duration = Duration::from_secs(60);

const USER_AGENT_VALUE: &str = concat!("fanwise/", env!("CARGO_PKG_VERSION"));

fn broken(error: &io::Error) -> Broken {
    let code = match error.kind() {
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => "reset",
        io::ErrorKind::UnexpectedEof => "closed",
        _ => "io",
    };
    Broken::new(code, format!("the connection broke: {error}"))
}

fn closed() -> Broken {
    Broken::new(
        "closed",
        "the server closed the connection before its reply was complete",
    )
}

fn too_long(bytes_max: usize) -> Broken {
    let what = format!("the reply is longer than {bytes_max} bytes");
    Broken::new("reply_too_long", what)
}

/// Bytes that were read and not used yet: `bytes[start..end]`.
struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    async fn fill(&mut self, stream: &mut Stream) -> Result<usize, Broken> {
        poll_fn(|cx| self.poll_fill(cx, stream))
            .await
            .map_err(|error| broken(&error))
    }

    /// Makes room and reads once; 0 is the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<io::Result<usize>> {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.bytes.len() {
            if self.start > 0 {
                self.bytes.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            } else {
                self.bytes.resize(self.end + self.end.max(READ_BYTES), 0);
            }
        }
        let mut buffer = ReadBuf::new(&mut self.bytes[self.end..]);
        ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
        let read = buffer.filled().len();
        self.end += read;
        Poll::Ready(Ok(read))
    }

    /// Makes an empty buffer large enough for the pieces of a long body.
    fn widen(&mut self) {
        if self.is_empty() && self.bytes.len() < PIECE_BYTES {
            self.bytes.resize(PIECE_BYTES, 0);
        }
    }

    /// Frees the memory that an unusually long head took.
    fn shrink(&mut self) {
        if self.is_empty() && self.bytes.len() > READ_BYTES {
            (self.start, self.end) = (0, 0);
            self.bytes.truncate(READ_BYTES);
            self.bytes.shrink_to_fit();
        }
    }
}
