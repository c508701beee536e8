//! Implements a producer that puts arbitrary bytes into the properties of a message, which client
//! libraries do not.

use lapin::uri::AMQPUri;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Properties by their bit on the wire.
pub(crate) const HEADERS: u16 = 2;
pub(crate) const CORRELATION_ID: u16 = 5;
pub(crate) const EXPIRATION: u16 = 7;
pub(crate) const MESSAGE_ID: u16 = 8;
pub(crate) const TYPE: u16 = 10;
pub(crate) const APP_ID: u16 = 12;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const BODY_FRAME: usize = 100_000;

pub(crate) struct Producer(TcpStream);

impl Producer {
    pub(crate) async fn connect(url: &str) -> Self {
        let uri: AMQPUri = url.parse().unwrap();
        let address = (uri.authority.host.as_str(), uri.authority.port);
        let mut it = Self(TcpStream::connect(address).await.unwrap());
        it.0.write_all(b"AMQP\x00\x00\x09\x01").await.unwrap();
        it.until([0, 10, 0, 10]).await;
        let user = uri.authority.userinfo;
        let login = format!("\0{}\0{}", user.username, user.password);
        let login = [
            &long(b"")[..],
            &short(b"PLAIN"),
            &long(login.as_bytes()),
            &short(b"en_US"),
        ];
        it.method(0, [0, 10, 0, 11], &login.concat()).await;
        let tune = it.until([0, 10, 0, 30]).await;
        it.method(
            0,
            [0, 10, 0, 31],
            &tune[..6].iter().copied().chain([0, 0]).collect::<Vec<_>>(),
        )
        .await;
        let vhost = if uri.vhost.is_empty() {
            "/"
        } else {
            &uri.vhost
        };
        it.method(
            0,
            [0, 10, 0, 40],
            &[&short(vhost.as_bytes())[..], b"\0\0"].concat(),
        )
        .await;
        it.until([0, 10, 0, 41]).await;
        it.method(1, [0, 20, 0, 10], b"\0").await;
        it.until([0, 20, 0, 11]).await;
        it.method(1, [0, 85, 0, 10], b"\0").await;
        it.until([0, 85, 0, 11]).await;
        it
    }

    /// Publishes, and waits until the broker has confirmed it.
    pub(crate) async fn publish(
        &mut self,
        exchange: &str,
        routing_key: &[u8],
        body: &[u8],
        properties: &[(u16, Vec<u8>)],
    ) {
        let to = [
            b"\0\0",
            &short(exchange.as_bytes())[..],
            &short(routing_key),
            b"\0",
        ]
        .concat();
        self.method(1, [0, 60, 0, 40], &to).await;
        let flags = properties
            .iter()
            .fold(0, |all, (place, _)| all | 1u16 << (15 - place));
        let mut header = [0, 60, 0, 0].to_vec();
        header.extend((body.len() as u64).to_be_bytes());
        header.extend(flags.to_be_bytes());
        header.extend(properties.iter().flat_map(|(_, value)| value));
        self.frame(HEADER, 1, &header).await;
        for part in body.chunks(BODY_FRAME) {
            self.frame(BODY, 1, part).await;
        }
        self.until([0, 60, 0, 80]).await;
    }

    async fn method(&mut self, channel: u8, method: [u8; 4], arguments: &[u8]) {
        self.frame(METHOD, channel, &[&method, arguments].concat())
            .await;
    }

    async fn frame(&mut self, kind: u8, channel: u8, payload: &[u8]) {
        let frame = [&[kind, 0, channel][..], &long(payload), &[0xCE]].concat();
        self.0.write_all(&frame).await.unwrap();
    }

    /// The arguments of the next method of this kind; any close is a failure.
    async fn until(&mut self, method: [u8; 4]) -> Vec<u8> {
        loop {
            let mut head = [0; 7];
            self.0.read_exact(&mut head).await.unwrap();
            let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
            let mut payload = vec![0; size as usize + 1];
            self.0.read_exact(&mut payload).await.unwrap();
            payload.pop();
            if head[0] != METHOD {
                continue;
            }
            let rest = payload.split_off(4);
            if payload == method {
                return rest;
            }
            let text = String::from_utf8_lossy(&rest);
            assert!(
                !matches!(payload[..], [0, 10, 0, 50] | [0, 20, 0, 40]),
                "{text}"
            );
        }
    }
}

pub(crate) fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

pub(crate) fn long(bytes: &[u8]) -> Vec<u8> {
    [
        &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..],
        bytes,
    ]
    .concat()
}

/// Headers with one text.
pub(crate) fn header(name: &[u8], text: &[u8]) -> Vec<u8> {
    long(&[&short(name)[..], b"S", &long(text)].concat())
}
