//! Tests the client against real sockets on the loopback interface. Every server here is a script
//! that runs on each connection. The tests are about the line between `NotSent` and `Unknown`.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::*;

mod replies;

const PATIENCE: Duration = Duration::from_secs(10);
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Starts a server that runs `script` on every connection, with the number of the connection.
async fn serve<F>(script: impl Fn(usize, TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(script(number, stream));
        }
    });
    address
}

/// A server that answers every request on a connection with these bytes.
async fn answering(reply: impl Into<Vec<u8>>) -> SocketAddr {
    let reply = Arc::new(reply.into());
    serve(move |_, mut stream| {
        let reply = Arc::clone(&reply);
        async move {
            while read_request(&mut stream).await.is_some() {
                if stream.write_all(&reply).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// The head and the body of the next request; `None` if the client closed.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let (_, length) = head.split_once("content-length: ").unwrap();
    let mut body = vec![0; length.split("\r\n").next().unwrap().parse().unwrap()];
    stream.read_exact(&mut body).await.ok()?;
    Some((head, body))
}

fn client() -> Client {
    Client::new(ClientSettings::defaults())
}

fn post(address: SocketAddr, body: impl Into<Bytes>) -> Request {
    Request {
        method: Method::POST,
        uri: format!("http://{address}/send?a=b").parse().unwrap(),
        headers: HeaderMap::new(),
        body: body.into(),
    }
}

async fn send(client: &Client, address: SocketAddr) -> Result<HttpReply, SendError> {
    client.send(post(address, "hello"), PATIENCE).await
}

fn not_sent(result: Result<HttpReply, SendError>) -> &'static str {
    match result {
        Err(SendError::NotSent { code, .. }) => code,
        other => panic!("not sent was expected, not {other:?}"),
    }
}

fn unknown(result: Result<HttpReply, SendError>) -> &'static str {
    match result {
        Err(SendError::Unknown { code, .. }) => code,
        other => panic!("unknown was expected, not {other:?}"),
    }
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[tokio::test]
async fn the_request_as_it_is_written() {
    let (heads, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let address = serve(move |_, mut stream| {
        let heads = heads.clone();
        async move {
            while let Some(request) = read_request(&mut stream).await {
                heads.send(request).unwrap();
                stream.write_all(OK).await.unwrap();
            }
        }
    })
    .await;
    let client = client();
    let mut request = post(address, "hello");
    request
        .headers
        .insert("token", HeaderValue::from_static("t"));
    // A request cannot change its own framing.
    request
        .headers
        .insert("content-length", HeaderValue::from_static("99"));
    request
        .headers
        .insert("transfer-encoding", HeaderValue::from_static("chunked"));
    request
        .headers
        .insert("connection", HeaderValue::from_static("close"));
    client.send(request, PATIENCE).await.unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        seen.recv().await.unwrap(),
        (
            format!(
                "POST /send?a=b HTTP/1.1\r\nhost: {address}\r\nuser-agent: fanwise/{version}\r\n\
                 accept-encoding: identity\r\ntoken: t\r\ncontent-length: 5\r\n\r\n"
            ),
            b"hello".to_vec()
        )
    );
    // The credentials of a URL are not part of the host; a request may set host and agent; an empty
    // path is `/`.
    let mut request = post(address, "");
    request.uri = format!("http://user:pass@{address}").parse().unwrap();
    request
        .headers
        .insert("user-agent", HeaderValue::from_static("x"));
    client.send(request.clone(), PATIENCE).await.unwrap();
    assert_eq!(
        seen.recv().await.unwrap().0,
        format!(
            "POST / HTTP/1.1\r\nhost: {address}\r\naccept-encoding: identity\r\nuser-agent: x\r\ncontent-length: 0\r\n\r\n"
        )
    );
    request
        .headers
        .insert("host", HeaderValue::from_static("h"));
    client.send(request, PATIENCE).await.unwrap();
    assert_eq!(
        seen.recv().await.unwrap().0,
        "POST / HTTP/1.1\r\naccept-encoding: identity\r\nuser-agent: x\r\nhost: h\r\ncontent-length: 0\r\n\r\n"
    );
}

#[tokio::test]
async fn replies_in_every_form() {
    let long = "x".repeat(20_000);
    let chunks: String = long
        .as_bytes()
        .chunks(777)
        .map(|chunk| {
            format!(
                "{:x};ext=1\r\n{}\r\n",
                chunk.len(),
                str::from_utf8(chunk).unwrap()
            )
        })
        .collect();
    let check = async |reply: &str, status: u16, body: &str| {
        let address = answering(reply.as_bytes()).await;
        let client = client();
        for _ in 0..2 {
            let got = send(&client, address).await.unwrap();
            assert_eq!((got.status, &got.body[..]), (status, body.as_bytes()));
        }
        assert_eq!(count(&client.counts().opened), 1);
    };
    check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, "ok").await;
    check("HTTP/1.1 204 No Content\r\n\r\n", 204, "").await;
    let redirect = "HTTP/1.1 307 x\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
    check(redirect, 307, "").await;
    let with_length = format!("HTTP/1.1 500 x\r\ncontent-length: 20000\r\n\r\n{long}");
    check(&with_length, 500, &long).await;
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    check(
        &format!("{head}{chunks}0\r\ntrailer: x\r\n\r\n"),
        200,
        &long,
    )
    .await;
    check(&format!("{head}0\r\n\r\n"), 200, "").await;
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
    check(
        &format!("{interim}HTTP/1.1 201 x\r\ncontent-length: 1\r\n\r\n1"),
        201,
        "1",
    )
    .await;
    let wide = format!(
        "HTTP/1.1 200 x\r\na: {}\r\ncontent-length: 1\r\n\r\n1",
        "b".repeat(30_000)
    );
    check(&wide, 200, "1").await;
}

#[tokio::test]
async fn a_reply_may_come_byte_by_byte() {
    let address = serve(|_, mut stream| async move {
        while read_request(&mut stream).await.is_some() {
            let reply =
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
            for byte in reply {
                stream.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
    let client = client();
    for _ in 0..3 {
        assert_eq!(send(&client, address).await.unwrap().body, "ok");
    }
    assert_eq!(count(&client.counts().reused), 2);
}

#[tokio::test]
async fn a_body_that_ends_with_the_connection_is_taken_and_the_connection_is_not_used_again() {
    let address = serve(|_, mut stream| async move {
        read_request(&mut stream).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
            .await
            .unwrap();
    })
    .await;
    let client = client();
    for _ in 0..2 {
        assert_eq!(send(&client, address).await.unwrap().body, "until the end");
    }
    assert_eq!(count(&client.counts().opened), 2);
}

#[tokio::test]
async fn without_a_connection_nothing_was_sent() {
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let client = client();
    let error = send(&client, free).await;
    assert_eq!(not_sent(error), "refused");

    let mut request = post(free, "");
    request.uri = "http://name.invalid/".parse().unwrap();
    let error = client.send(request.clone(), PATIENCE).await;
    assert!(["dns", "connect_timeout"].contains(&not_sent(error)));

    for url in ["ftp://host/", "/path", "host:1"] {
        request.uri = url.parse().unwrap();
        let error = client.send(request.clone(), PATIENCE).await;
        assert_eq!(not_sent(error), "bad_url");
    }
    assert_eq!(count(&client.counts().opened), 0);
}

#[tokio::test]
async fn once_the_request_left_every_accident_is_unknown() {
    let check = async |reply: &'static [u8], hold: bool, code: &str| {
        let address = serve(move |_, mut stream| async move {
            read_request(&mut stream).await.unwrap();
            stream.write_all(reply).await.unwrap();
            if hold {
                std::future::pending::<()>().await;
            }
        })
        .await;
        let timeout = if hold {
            Duration::from_millis(50)
        } else {
            PATIENCE
        };
        let client = client();
        let error = client.send(post(address, "hello"), timeout).await;
        assert_eq!(unknown(error), code, "{}", String::from_utf8_lossy(reply));
    };
    check(b"", false, "closed").await;
    check(b"HTTP/1.1 200 O", false, "closed").await;
    check(b"HTTP/1.1 100 Continue\r\n\r\n", false, "closed").await;
    check(
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhal",
        false,
        "closed",
    )
    .await;
    check(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhal",
        false,
        "closed",
    )
    .await;
    check(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nhal\r\n",
        false,
        "bad_reply",
    )
    .await;
    check(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxx\r\n",
        false,
        "bad_reply",
    )
    .await;
    check(b"nonsense\r\n\r\n", false, "bad_reply").await;
    check(b"", true, "timeout").await;
    check(
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhal",
        true,
        "timeout",
    )
    .await;
}

#[tokio::test]
async fn a_reset_after_the_request_is_unknown() {
    let address = serve(|_, mut stream| async move {
        // Closing with unread bytes makes the kernel reset.
        stream.read_u8().await.unwrap();
    })
    .await;
    for _ in 0..20 {
        let code = unknown(send(&client(), address).await);
        assert!(["reset", "closed"].contains(&code), "{code}");
    }
}

#[tokio::test]
async fn a_reply_longer_than_the_limit_is_unknown() {
    let settings = ClientSettings {
        reply_bytes_max: 10,
        ..ClientSettings::defaults()
    };
    let client = Client::new(settings);
    for reply in [
        "HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n12345678901",
        "HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551615\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n12345\r\n6\r\n123456\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        "HTTP/1.1 200 OK\r\n\r\n12345678901",
    ] {
        let address = answering(reply).await;
        assert_eq!(
            unknown(send(&client, address).await),
            "reply_too_long",
            "{reply}"
        );
    }
    let address = answering("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n1234567890").await;
    assert_eq!(send(&client, address).await.unwrap().body.len(), 10);
    let head = "x".repeat(100_000);
    let address = answering(format!("HTTP/1.1 200 OK\r\na: {head}")).await;
    assert_eq!(unknown(send(&client, address).await), "bad_reply");
}

#[tokio::test]
async fn connections_are_used_again_and_few_of_them_idle() {
    let address = answering(OK).await;
    let settings = ClientSettings {
        idle_max: 2,
        ..ClientSettings::defaults()
    };
    let client = Client::new(settings);
    let calls = (0..5).map(|_| send(&client, address));
    for result in futures_util::future::join_all(calls).await {
        result.unwrap();
    }
    let counts = client.counts();
    assert_eq!((count(&counts.opened), count(&counts.stale)), (5, 3));
    for _ in 0..10 {
        send(&client, address).await.unwrap();
    }
    assert_eq!((count(&counts.opened), count(&counts.reused)), (5, 10));
}

#[tokio::test]
async fn a_connection_that_idled_too_long_is_not_used_again() {
    let address =
        answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nkeep-alive: timeout=1\r\n\r\n");
    let address = address.await;
    let client = client();
    for _ in 0..3 {
        send(&client, address).await.unwrap();
    }
    let counts = client.counts();
    assert_eq!((count(&counts.opened), count(&counts.stale)), (3, 3));
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_noticed() {
    let address = serve(|_, mut stream| async move {
        read_request(&mut stream).await.unwrap();
        stream.write_all(OK).await.unwrap();
        stream.shutdown().await.unwrap();
        // Anything else sent here would be lost.
        assert_eq!(
            stream.read(&mut [0]).await.unwrap(),
            0,
            "written into a closed connection"
        );
    })
    .await;
    let client = client();
    for _ in 0..5 {
        send(&client, address).await.unwrap();
        // Let the close arrive before the next call.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let counts = client.counts();
    assert_eq!((count(&counts.opened), count(&counts.stale)), (5, 4));
}

#[tokio::test]
async fn words_unasked_for_end_a_connection() {
    let both = [
        OK,
        b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n",
    ]
    .concat();
    let address = answering(both).await;
    let client = client();
    for _ in 0..3 {
        assert_eq!(send(&client, address).await.unwrap().status, 200);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(count(&client.counts().reused), 0);
}

/// The server closes after every reply, unannounced, so that calls keep meeting connections that
/// are about to close. The client never reports a request as not sent that the server read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_was_read_is_never_called_not_sent() {
    let read = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&read);
    let address = serve(move |number, mut stream| {
        let seen = Arc::clone(&seen);
        async move {
            for turn in 0..1 + number % 3 {
                let Some((_, body)) = read_request(&mut stream).await else {
                    return;
                };
                seen.lock()
                    .unwrap()
                    .insert(String::from_utf8(body).unwrap());
                if number % 7 == 3 && turn == 1 {
                    return;
                }
                if stream.write_all(OK).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let client = client();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8 {
        let (client, read) = (client.clone(), Arc::clone(&read));
        tasks.spawn(async move {
            let mut in_doubt = 0;
            for call in 0..300 {
                let id = format!("{task}-{call}");
                let result = client.send(post(address, id.clone()), PATIENCE).await;
                let was_read = read.lock().unwrap().contains(&id);
                match result {
                    Ok(_) => assert!(was_read),
                    Err(SendError::NotSent { what, .. }) => assert!(!was_read, "{id}: {what}"),
                    Err(SendError::Unknown { .. }) => in_doubt += 1,
                }
            }
            in_doubt
        });
    }
    let in_doubt: u32 = tasks.join_all().await.into_iter().sum();
    // The script causes both: connections closed early enough to notice, and too late.
    assert!(in_doubt > 0);
    assert!(count(&client.counts().stale) > 0);
}

#[tokio::test]
async fn a_server_may_refuse_a_body_before_it_has_read_it() {
    let address = serve(|_, mut stream| async move {
        let mut some = [0; 100];
        stream.read_exact(&mut some).await.unwrap();
        let reply = b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nno!";
        stream.write_all(reply).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let client = client();
    let body = vec![b'x'; 16 * 1024 * 1024];
    let reply = client.send(post(address, body), PATIENCE).await.unwrap();
    assert_eq!((reply.status, &reply.body[..]), (413, &b"no!"[..]));
    assert_eq!(
        client
            .shared
            .idle
            .lock()
            .iter()
            .map(|s| s.connections.len())
            .sum::<usize>(),
        0
    );
}

#[tokio::test]
async fn a_body_half_written_is_unknown() {
    let address = serve(|_, stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let body = vec![b'x'; 16 * 1024 * 1024];
    let error = client()
        .send(post(address, body), Duration::from_millis(50))
        .await;
    assert_eq!(unknown(error), "timeout");
}

#[tokio::test]
async fn long_bodies_arrive_whole() {
    let address = serve(|_, mut stream| async move {
        while let Some((_, body)) = read_request(&mut stream).await {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&body).await.unwrap();
        }
    })
    .await;
    let client = client();
    for length in [0, 1, 8 * 1024, 8 * 1024 + 1, 1024 * 1024] {
        let body: Vec<u8> = (0..length).map(|n: usize| (n % 251) as u8).collect();
        let reply = client
            .send(post(address, body.clone()), PATIENCE)
            .await
            .unwrap();
        assert!(reply.body == body, "{length}");
    }
    assert_eq!(count(&client.counts().opened), 1);
}

#[tokio::test]
async fn a_head_request_has_no_body_to_wait_for() {
    let address = answering("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n").await;
    let mut request = post(address, "");
    request.method = Method::HEAD;
    assert_eq!(client().send(request, PATIENCE).await.unwrap().body, "");
}

#[tokio::test]
async fn a_call_that_is_given_up_takes_its_connection_along() {
    let address = serve(|number, mut stream| async move {
        while read_request(&mut stream).await.is_some() {
            if number > 0 {
                stream.write_all(OK).await.unwrap();
            }
        }
    })
    .await;
    let client = client();
    let given_up = tokio::time::timeout(Duration::from_millis(50), send(&client, address)).await;
    assert!(given_up.is_err());
    assert_eq!(send(&client, address).await.unwrap().body, "ok");
    assert_eq!(count(&client.counts().opened), 2);
}

/// A certificate for `localhost` that no one trusts, and its key, which protects nothing.
const CERTIFICATE_PEM: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBYzCCAQqgAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv\n\
c3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM\n\
CWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABLX54HwvumiAQJ1p\n\
qc8zg06cY5lHwtADcBpuIYC/qGWTIMWuCN3D2OMuLR3yPDtQKNMHHXRni1E3CvjO\n\
b/K6M0yjSzBJMAwGA1UdEwEB/wQCMAAwGgYDVR0RBBMwEYIJbG9jYWxob3N0hwR/\n\
AAABMB0GA1UdDgQWBBSg8Vij6sT/cdKxOzbef8uM6FB0GDAKBggqhkjOPQQDAgNH\n\
ADBEAiB/Qc8TMQOMitJVmilwipRq1J4VQeVXPquyC8H3kPDAXwIgZ/YSWjZM7AYT\n\
AwXh8ghi36B/HeNxNgpraqLluaYRSgc=\n\
-----END CERTIFICATE-----\n\
";
const KEY_PEM: &str = "\
-----BEGIN PRIVATE KEY-----\n\
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgT7TBF4ySXV6oNg3b\n\
j/Qy5I/eOCHQjRzh0fUnPTaVrFahRANCAAS1+eB8L7pogECdaanPM4NOnGOZR8LQ\n\
A3AabiGAv6hlkyDFrgjdw9jjLi0d8jw7UCjTBx10Z4tRNwr4zm/yujNM\n\
-----END PRIVATE KEY-----\n\
";

fn ring() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A client that trusts these certificates and no others.
fn trusting(certificates: &[CertificateDer<'static>]) -> Client {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates.iter().cloned());
    let config = ClientConfig::builder_with_provider(ring())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Client::new(ClientSettings {
        tls: Some(Arc::new(config)),
        ..ClientSettings::defaults()
    })
}

async fn serve_tls<F>(
    script: impl Fn(tokio_rustls::server::TlsStream<TcpStream>) -> F + Send + Sync + 'static,
) -> (SocketAddr, CertificateDer<'static>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE_PEM.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(KEY_PEM.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(ring())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let script = Arc::new(script);
    let address = serve(move |_, stream| {
        let (acceptor, script) = (acceptor.clone(), Arc::clone(&script));
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                script(stream).await;
            }
        }
    })
    .await;
    (address, certificate)
}

async fn answer_all(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    while let Some((_, body)) = read_request(&mut stream).await {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
        stream.flush().await.unwrap();
    }
}

fn post_tls(address: SocketAddr, body: impl Into<Bytes>) -> Request {
    Request {
        uri: format!("https://localhost:{}/send", address.port())
            .parse()
            .unwrap(),
        ..post(address, body)
    }
}

#[tokio::test]
async fn tls_carries_calls_and_keeps_connections() {
    let (address, certificate) = serve_tls(answer_all).await;
    let client = trusting(&[certificate]);
    for length in [0, 5, 1024 * 1024] {
        let body = vec![b'x'; length];
        let reply = client
            .send(post_tls(address, body.clone()), PATIENCE)
            .await
            .unwrap();
        assert!(reply.body == body);
    }
    assert_eq!(
        (
            count(&client.counts().opened),
            count(&client.counts().reused)
        ),
        (1, 2)
    );
}

#[tokio::test]
async fn a_certificate_not_trusted_is_a_fault_of_configuration_and_nothing_was_sent() {
    let (address, _) = serve_tls(answer_all).await;
    let error = trusting(&[]).send(post_tls(address, "x"), PATIENCE).await;
    assert_eq!(not_sent(error), "certificate");
    // A server without TLS.
    let plain = answering(OK).await;
    let error = trusting(&[])
        .send(post_tls(plain, "x"), Duration::from_millis(300))
        .await;
    assert!(["tls", "connect_timeout"].contains(&not_sent(error)));
}

#[tokio::test]
async fn a_tls_connection_closed_while_idle_is_noticed_and_one_closed_in_a_call_is_unknown() {
    let (address, certificate) = serve_tls(|mut stream| async move {
        read_request(&mut stream).await.unwrap();
        stream.write_all(OK).await.unwrap();
        stream.shutdown().await.unwrap();
    })
    .await;
    let client = trusting(std::slice::from_ref(&certificate));
    for _ in 0..3 {
        client.send(post_tls(address, "x"), PATIENCE).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(count(&client.counts().stale), 2);

    let (address, certificate) = serve_tls(|mut stream| async move {
        read_request(&mut stream).await.unwrap();
    })
    .await;
    let error = trusting(&[certificate])
        .send(post_tls(address, "x"), PATIENCE)
        .await;
    assert_eq!(unknown(error), "closed");
}

#[test]
fn the_trust_of_the_platform_can_be_loaded_ahead() {
    // Without installed certificates it returns an error; it never panics.
    let _ = platform_tls();
}

/// Callbacks go to as many servers as producers name. None of them keeps a socket of ours.
#[tokio::test]
async fn a_server_that_is_not_called_again_holds_no_socket() {
    let client = Client::new(ClientSettings {
        idle_timeout: Duration::ZERO,
        ..ClientSettings::defaults()
    });
    let mut held = Vec::new();
    for _ in 0..20 {
        let (address, accepted) = one_reply().await;
        client.send(post(address, "x"), PATIENCE).await.unwrap();
        held.push(accepted.await.unwrap());
    }
    client.tidy();
    for mut stream in held {
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "still open");
    }
    assert!(client.shared.idle.lock().is_empty(), "no origin is kept");
    assert_eq!(count(&client.counts().stale), 20);
}

#[tokio::test]
async fn connections_that_idle_are_bounded_over_all_servers() {
    let client = Client::new(ClientSettings {
        idle_total_max: 3,
        ..ClientSettings::defaults()
    });
    let mut held = Vec::new();
    for _ in 0..10 {
        let (address, accepted) = one_reply().await;
        client.send(post(address, "x"), PATIENCE).await.unwrap();
        held.push(accepted.await.unwrap());
    }
    // The connections that idled for longest are closed.
    for stream in &mut held[..7] {
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "still open");
    }
    let idle = client.shared.idle.lock();
    let kept: usize = idle.iter().map(|stack| stack.connections.len()).sum();
    assert_eq!(kept, 3);
    drop(idle);
    assert_eq!(count(&client.counts().stale), 7);
}

/// A server that answers one request, and returns its side of the connection.
async fn one_reply() -> (SocketAddr, JoinHandle<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await.unwrap();
        let reply = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(reply).await.unwrap();
        stream
    });
    (address, accepted)
}

/// The check is on the address that a name resolves to when the client connects.
#[tokio::test]
async fn a_client_for_public_addresses_reaches_nothing_inside() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = Client::new(ClientSettings {
        public_only: true,
        ..ClientSettings::defaults()
    });
    let named = format!("http://localhost:{}/", address.port());
    for url in [format!("http://{address}/"), named] {
        let request = Request {
            method: Method::POST,
            uri: url.parse().unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        };
        let error = client.send(request, Duration::from_secs(5)).await;
        let Err(SendError::NotSent { what, code }) = error else {
            panic!("{url}: {error:?}");
        };
        assert_eq!(code, "private_address", "{what}");
    }
    let nobody = tokio::time::timeout(Duration::ZERO, listener.accept()).await;
    assert!(nobody.is_err(), "somebody connected");
}
