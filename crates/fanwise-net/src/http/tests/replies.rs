//! Promise 4 depends on reading a reply right: one that is cut, framed twice or damaged must never be
//! taken for another reply. Whatever bytes a server sends, the client reads what hyper reads.

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Body {
    /// As often as the length is said, and on how many lines.
    Length {
        times: usize,
    },
    /// In chunks of at most so many bytes, perhaps with extensions and trailers.
    Chunked {
        most: usize,
        extension: bool,
        trailer: bool,
    },
    UntilClose,
}

/// What happens to the bytes of a reply on their way.
#[derive(Clone, Debug)]
enum Damage {
    None,
    Cut(prop::sample::Index),
    Replaced(prop::sample::Index, u8),
    Removed(prop::sample::Index),
    Repeated(prop::sample::Index),
}

#[derive(Clone, Debug)]
struct Plan {
    interim: bool,
    status: u16,
    headers: Vec<(String, String)>,
    folded: bool,
    body: Vec<u8>,
    framing: Body,
    damage: Damage,
    /// Bytes that are written at a time.
    piece: usize,
}

fn plans() -> impl Strategy<Value = Plan> {
    let framing = prop_oneof![
        3 => (1..4usize).prop_map(|times| Body::Length { times }),
        3 => (1..40usize, any::<bool>(), any::<bool>())
            .prop_map(|(most, extension, trailer)| Body::Chunked { most, extension, trailer }),
        1 => Just(Body::UntilClose),
    ];
    let damage = prop_oneof![
        2 => Just(Damage::None),
        1 => any::<prop::sample::Index>().prop_map(Damage::Cut),
        3 => (any::<prop::sample::Index>(), prop_oneof![any::<u8>(), Just(b'\n'), Just(b':'), 48..58u8])
            .prop_map(|(at, byte)| Damage::Replaced(at, byte)),
        1 => any::<prop::sample::Index>().prop_map(Damage::Removed),
        1 => any::<prop::sample::Index>().prop_map(Damage::Repeated),
    ];
    (
        any::<bool>(),
        prop::sample::select(vec![200, 201, 400, 429, 500, 503]),
        prop::collection::vec(("x-[a-z]{1,8}", "[a-zA-Z0-9 ,;=]{0,20}"), 0..4),
        any::<bool>(),
        prop::collection::vec(any::<u8>(), 0..80),
        framing,
        damage,
        1..200usize,
    )
        .prop_map(
            |(interim, status, headers, folded, body, framing, damage, piece)| Plan {
                interim,
                status,
                headers,
                folded,
                body,
                framing,
                damage,
                piece,
            },
        )
}

impl Plan {
    fn bytes(&self) -> Vec<u8> {
        let mut head = String::new();
        if self.interim {
            head.push_str("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
        }
        head.push_str(&format!("HTTP/1.1 {} Something\r\n", self.status));
        for (name, value) in &self.headers {
            let fold = if self.folded { "\r\n " } else { "" };
            head.push_str(&format!("{name}: a{fold}{value}\r\n"));
        }
        let mut body: Vec<u8> = Vec::new();
        match self.framing {
            Body::Length { times } => {
                for _ in 0..times {
                    head.push_str(&format!("content-length: {}\r\n", self.body.len()));
                }
                body.extend(&self.body);
            }
            Body::Chunked {
                most,
                extension,
                trailer,
            } => {
                head.push_str("transfer-encoding: chunked\r\n");
                for chunk in self.body.chunks(most) {
                    let extension = if extension { ";a=b" } else { "" };
                    body.extend(format!("{:x}{extension}\r\n", chunk.len()).as_bytes());
                    body.extend(chunk);
                    body.extend(b"\r\n");
                }
                body.extend(b"0\r\n");
                if trailer {
                    body.extend(b"x-trailer: a\r\n");
                }
                body.extend(b"\r\n");
            }
            Body::UntilClose => {
                head.push_str("connection: close\r\n");
                body.extend(&self.body);
            }
        }
        let mut bytes = head.into_bytes();
        bytes.extend(b"\r\n");
        bytes.extend(body);
        let length = bytes.len();
        match &self.damage {
            Damage::None => {}
            Damage::Cut(at) => bytes.truncate(at.index(length)),
            Damage::Replaced(at, byte) => bytes[at.index(length)] = *byte,
            Damage::Removed(at) => drop(bytes.remove(at.index(length))),
            Damage::Repeated(at) => {
                let at = at.index(length);
                bytes.insert(at, bytes[at]);
            }
        }
        bytes
    }
}

/// A server that answers the first request of each connection with these bytes and closes.
async fn answering_once(bytes: Vec<u8>, piece: usize) -> SocketAddr {
    serve(move |_, mut stream| {
        let bytes = bytes.clone();
        async move {
            if read_request(&mut stream).await.is_none() {
                return;
            }
            for piece in bytes.chunks(piece) {
                // The client may have seen enough.
                if stream.write_all(piece).await.is_err() {
                    return;
                }
            }
            let _ = stream.shutdown().await;
        }
    })
    .await
}

async fn by_hyper(address: SocketAddr) -> Result<(u16, Vec<u8>), hyper::Error> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .handshake(TokioIo::new(stream))
        .await?;
    let connection = tokio::spawn(connection);
    let request = http::Request::post("/send")
        .header("host", "im")
        .header("content-length", "5")
        .body(Full::new(Bytes::from_static(b"hello")))
        .unwrap();
    let reply = sender.send_request(request).await?;
    let status = reply.status().as_u16();
    let body = reply.into_body().collect().await?.to_bytes().to_vec();
    connection.abort();
    Ok((status, body))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn replies_are_read_as_hyper_reads_them(plan in plans()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (ours, hypers) = runtime.block_on(async {
            let address = answering_once(plan.bytes(), plan.piece).await;
            let ours = send(&client(), address).await;
            let hypers = tokio::time::timeout(PATIENCE, by_hyper(address)).await.unwrap();
            (ours.map(|reply| (reply.status, reply.body.to_vec())), hypers)
        });
        match (&plan.damage, &ours, &hypers) {
            (Damage::None, Ok(ours), Ok(hypers)) => {
                prop_assert_eq!(ours, hypers);
                prop_assert_eq!(ours, &(plan.status, plan.body.clone()));
            }
            (Damage::None, ..) => prop_assert!(false, "ours {ours:?}, hyper's {hypers:?}"),
            (_, Ok(ours), Ok(hypers)) => prop_assert_eq!(ours, hypers),
            // One of them refuses: nothing is read wrongly.
            (_, Err(SendError::Unknown { .. }), _) | (_, Ok(_), Err(_)) => {}
            // The request was sent, so its effect is unknown, whatever came back.
            (_, Err(SendError::NotSent { .. }), _) => prop_assert!(false, "{ours:?}"),
        }
    }
}

/// A download passes on all bytes of a long reply, and one that breaks off is an error.
#[tokio::test]
async fn a_download_is_whole_or_an_error() {
    let whole: Vec<u8> = (0..1_000_003_u32).map(|it| it as u8).collect();
    let reply = |length: usize, body: &[u8]| {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        [head.as_bytes(), body].concat()
    };
    let client = Client::new(ClientSettings::defaults());
    let download = async |reply: Vec<u8>, most: usize| {
        let closing = Arc::new(reply);
        let address = serve(move |_, mut stream| {
            let reply = Arc::clone(&closing);
            async move {
                read_request(&mut stream).await;
                let _ = stream.write_all(&reply).await;
            }
        });
        let mut got = Vec::new();
        let each = |piece: &[u8]| {
            got.extend_from_slice(piece);
            match got.len() > most {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let request = post(address.await, "x");
        let result = client.download(request, PATIENCE, each).await;
        (result, got)
    };
    let (reply_of, got) = download(reply(whole.len(), &whole), usize::MAX).await;
    assert_eq!((reply_of.unwrap().status, got == whole), (200, true));
    let (cut, _) = download(reply(whole.len() + 1, &whole), usize::MAX).await;
    assert_eq!(unknown(cut), "closed");
    let (ended, _) = download(reply(whole.len(), &whole), 10_000).await;
    assert_eq!(unknown(ended), "not_wanted");
    let chunks = |end: &[u8]| {
        let head = &b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"[..];
        let chunks = whole.chunks(70_000).flat_map(|chunk| {
            let size = format!("{:x}\r\n", chunk.len());
            [size.as_bytes(), chunk, b"\r\n"].concat()
        });
        head.iter()
            .copied()
            .chain(chunks)
            .chain(end.iter().copied())
            .collect::<Vec<u8>>()
    };
    let (chunked, got) = download(chunks(b"0\r\nx: y\r\n\r\n"), usize::MAX).await;
    assert_eq!((chunked.unwrap().status, got == whole), (200, true));
    let (cut, _) = download(chunks(b""), usize::MAX).await;
    assert_eq!(unknown(cut), "closed");
    let (endless, _) = download(b"HTTP/1.1 200 OK\r\n\r\nab".to_vec(), usize::MAX).await;
    assert_eq!(unknown(endless), "bad_reply");
    let refused = b"HTTP/1.1 404 No\r\ncontent-length: 2\r\n\r\nno".to_vec();
    let (refused, got) = download(refused, usize::MAX).await;
    let refused = refused.unwrap();
    assert_eq!(
        (refused.status, &refused.body[..], got.len()),
        (404, &b"no"[..], 0)
    );
}
