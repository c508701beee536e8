//! Promise 11: no message from outside ends a session or a process.

use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, gen_frame, parse_frame};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use proptest::prelude::*;

use super::*;

/// Reads as the client does.
fn read(mut bytes: &[u8]) -> Vec<AMQPFrame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (rest, frame) = parse_frame(bytes).unwrap();
        frames.push(frame);
        bytes = rest;
    }
    frames
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [
        &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..],
        bytes,
    ]
    .concat()
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&[kind, 0, 1][..], &long(payload), &[END]].concat()
}

/// A content header of a message of three bytes.
fn header(flags: u16, properties: &[u8]) -> Vec<u8> {
    let fixed = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
    frame(
        HEADER,
        &[&fixed[..], &flags.to_be_bytes(), properties].concat(),
    )
}

fn flags(indexes: &[u16]) -> u16 {
    indexes
        .iter()
        .fold(0, |flags, index| flags | 1 << (15 - index))
}

const HEADERS: u16 = 2;
const DELIVERY_MODE: u16 = 3;
const CORRELATION_ID: u16 = 5;
const MESSAGE_ID: u16 = 8;

fn pass(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Frames::new(FRAME_MAX).pass(bytes, &mut out);
    out
}

/// The content header as the client reads it.
fn read_header(bytes: &[u8]) -> BasicProperties {
    let passed = pass(bytes);
    assert!(passed.len() <= FRAME_MAX as usize, "{}", passed.len());
    let AMQPFrame::Header(_, header) = read(&passed).remove(0) else {
        panic!("a content header is expected");
    };
    assert_eq!(header.body_size, 3);
    header.properties
}

fn headers_of(properties: &BasicProperties) -> &FieldTable {
    properties.headers().as_ref().unwrap()
}

fn unreadable(properties: &BasicProperties) -> String {
    match &headers_of(properties).inner()[UNREADABLE] {
        AMQPValue::LongString(names) => names.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn promise_11_an_id_of_raw_bytes_is_readable() {
    let uuid = [0x8f, b'>', 0xff, 0, 0xc3, 0x28];
    let properties = [short(&uuid), short(b"m-1")].concat();
    let read = read_header(&header(flags(&[CORRELATION_ID, MESSAGE_ID]), &properties));
    let text = read.correlation_id().as_ref().unwrap().as_str();
    assert_eq!(text, r"\x8f>\xff\x00\xc3(");
    assert_eq!(read.message_id().as_ref().unwrap().as_str(), "m-1");
    assert_eq!(unreadable(&read), "correlation_id");

    let longest = [0xff; 255];
    let read = read_header(&header(flags(&[MESSAGE_ID]), &short(&longest)));
    assert_eq!(read.message_id().as_ref().unwrap().as_str().len(), 255);
}

#[test]
fn promise_11_header_names_of_raw_bytes_are_readable() {
    let entry = [&short(&[b'a', 0xfe])[..], b"S", &long(&[0xff])].concat();
    let inner = [&short(&[0xfd])[..], b"t\x01"].concat();
    let nested = [&short(b"n")[..], b"F", &long(&inner)].concat();
    let table = long(&[entry, nested].concat());
    let read = read_header(&header(flags(&[HEADERS]), &table));
    let headers = headers_of(&read).inner();
    assert_eq!(headers[r"a\xfe"], AMQPValue::LongString(vec![0xff].into()));
    assert!(matches!(&headers["n"], AMQPValue::FieldTable(inner) if inner.contains_key(r"\xfd")));
    assert_eq!(unreadable(&read), "headers");
}

/// The client would overflow the stack of its thread if it read this unchanged.
#[test]
fn promise_11_headers_nested_without_end_are_cut() {
    for (kind, name) in [(b'A', vec![]), (b'F', short(b"k"))] {
        for depth in [17, 50, 1_500, 12_000] {
            let mut value = b"t\x01".to_vec();
            for _ in 0..depth {
                value = [&[kind][..], &long(&[&name[..], &value].concat())].concat();
            }
            let table = long(&[&short(b"deep")[..], &value, &short(b"flat"), b"t\x01"].concat());
            let header = header(flags(&[HEADERS]), &table);
            let small_stack = std::thread::Builder::new().stack_size(256 * 1024);
            let properties = small_stack.spawn(move || read_header(&header)).unwrap();
            let properties = properties.join().unwrap();
            assert_eq!(unreadable(&properties), "headers", "{depth}");
            let headers = headers_of(&properties).inner();
            assert_eq!(headers["flat"], AMQPValue::Boolean(true), "{depth}");
        }
    }
}

/// The broker adds its own headers to headers that just fitted in a frame.
#[test]
fn promise_11_headers_larger_than_a_frame_leave_what_fits() {
    for bytes in [60_000, 65_000, 66_000, 130_000, 140_000, 2_000_000] {
        let big = [&short(b"big")[..], b"S", &long(&vec![b'x'; bytes])].concat();
        let table = long(&[&big[..], &short(b"x-death"), b"A", &long(&[])].concat());
        let properties = [&table[..], &[2], &short(b"m-1")].concat();
        let flags = flags(&[HEADERS, DELIVERY_MODE, MESSAGE_ID]);
        let read = read_header(&header(flags, &properties));
        let headers = headers_of(&read).inner();
        assert_eq!(headers.contains_key("big"), bytes <= 65_000, "{bytes}");
        assert_eq!(headers.contains_key(UNREADABLE), bytes > 65_000, "{bytes}");
        // The part that was not even held is not known.
        if bytes < 1_000_000 {
            assert!(headers.contains_key("x-death"), "{bytes}");
            assert_eq!(read.message_id().as_ref().unwrap().as_str(), "m-1");
        }
    }
}

#[test]
fn promise_11_many_small_headers_are_cut() {
    let entry = [&short(b"")[..], b"V"].concat();
    let read = read_header(&header(flags(&[HEADERS]), &long(&entry.repeat(40_000))));
    assert_eq!(unreadable(&read), "headers");
    let array = [&short(b"a")[..], b"A", &long(&b"V".repeat(60_000))].concat();
    let read = read_header(&header(flags(&[HEADERS]), &long(&array)));
    let AMQPValue::FieldArray(values) = &headers_of(&read).inner()["a"] else {
        panic!("an array is expected");
    };
    assert!(values.as_slice().len() < 5_000);
}

#[test]
fn promise_11_properties_that_end_too_early_keep_what_was_before() {
    let id = short(b"c-1");
    let broken: [&[u8]; 4] = [
        &[&id[..], &[9, b'm']].concat(),
        &[&id[..], &short(b"m"), b"more"].concat(),
        &id,
        &[&id[..], &[0xff]].concat(),
    ];
    for properties in broken {
        let read = read_header(&header(flags(&[CORRELATION_ID, MESSAGE_ID]), properties));
        assert_eq!(read.correlation_id().as_ref().unwrap().as_str(), "c-1");
        assert!(unreadable(&read).ends_with("what follows"), "{read:?}");
    }
    // A type that does not exist: the end of the value is not known.
    let table = [&short(b"a")[..], b"t\x01", &short(b"b"), b"?x"].concat();
    let properties = [&long(&table)[..], &[2]].concat();
    let read = read_header(&header(flags(&[HEADERS, DELIVERY_MODE]), &properties));
    assert_eq!(headers_of(&read).inner()["a"], AMQPValue::Boolean(true));
    assert_eq!(*read.delivery_mode(), Some(2));
    // The last flag announces further flags, which no message has.
    let read = read_header(&header(flags(&[MESSAGE_ID]) | 1, &short(b"m")));
    assert_eq!(unreadable(&read), "what follows");
}

/// A producer writes the routing key too, and a reason may be cut within a character.
#[test]
fn promise_11_methods_with_texts_of_others_are_readable() {
    let deliver = [
        &[0, 60, 0, 60][..],
        &short(b"tag"),
        &[0, 0, 0, 0, 0, 0, 0, 1, 0],
        &short(b"jobs"),
        &short(&[0xff, b'k']),
    ]
    .concat();
    let close = [
        &[0, 20, 0, 40, 1, 148][..],
        &short(&[b'n', 0xe6, 0x97]),
        &[0, 0, 0, 0],
    ]
    .concat();
    let bytes = [frame(METHOD, &deliver), frame(METHOD, &close)].concat();
    let frames = format!("{:?}", read(&pass(&bytes)));
    assert!(frames.contains(r"\\xffk"), "{frames}");
    assert!(frames.contains(r"n\\xe6\\x97"), "{frames}");
}

#[test]
fn the_broker_may_ask_for_smaller_frames() {
    let tune = frame(METHOD, &[0, 10, 0, 30, 0, 0, 0, 0, 0x10, 0, 0, 60]);
    let big = [&short(b"big")[..], b"S", &long(&[b'x'; 5_000])].concat();
    let small = [&short(b"small")[..], b"t\x01"].concat();
    let ids = [short(&[b'c'; 255]), short(&[b'm'; 255])].concat();
    let properties = [&long(&[big, small].concat())[..], &ids].concat();
    let large = header(flags(&[HEADERS, CORRELATION_ID, MESSAGE_ID]), &properties);
    let passed = pass(&[tune.clone(), large].concat());
    assert_eq!(passed[..tune.len()], tune);
    assert!(passed.len() - tune.len() <= 4096);
    let AMQPFrame::Header(_, header) = read(&passed).remove(1) else {
        panic!("a content header is expected");
    };
    assert_eq!(
        headers_of(&header.properties).inner()["small"],
        AMQPValue::Boolean(true)
    );
    assert_eq!(unreadable(&header.properties), "headers");
}

#[test]
fn what_is_no_amqp_goes_through() {
    for bytes in [
        &b"AMQP\x00\x00\x09\x01"[..],
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ] {
        assert_eq!(pass(bytes), bytes);
    }
}

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..max)
}

/// A value in its wire form, sometimes a broken one.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(|it| vec![b't', it.into()]),
        any::<[u8; 8]>().prop_map(|it| [&b"l"[..], &it].concat()),
        bytes(40).prop_map(|it| [&b"S"[..], &long(&it)].concat()),
        Just(b"V".to_vec()),
        bytes(6),
    ];
    leaf.prop_recursive(20, 60, 3, |inner| {
        let entries = proptest::collection::vec((bytes(5), inner), 0..3);
        (any::<bool>(), entries).prop_map(|(named, entries)| {
            let name = |name: &[u8]| if named { short(name) } else { Vec::new() };
            let entries = entries
                .iter()
                .flat_map(|(key, it)| [name(key), it.clone()].concat());
            let kind: &[u8] = if named { b"F" } else { b"A" };
            [kind, &long(&entries.collect::<Vec<u8>>())].concat()
        })
    })
}

proptest! {
    /// Whatever a producer puts into the properties, the client reads the message and the one after
    /// it.
    #[test]
    fn promise_11_any_properties_are_readable(
        flags in any::<u16>(), name in bytes(9), value in value(), tail in bytes(300), cut in 1usize..50,
    ) {
        let table = long(&[short(&name), value].concat());
        let broken = header(flags & !flags_before_headers(), &[&table[..], &tail].concat());
        let neighbour = header(flags_of_id(), &short(b"m-1"));
        let bytes = [&broken[..], &neighbour, &frame(BODY, b"abc")].concat();
        let mut frames = Frames::new(FRAME_MAX);
        let mut out = Vec::new();
        for piece in bytes.chunks(cut) {
            frames.pass(piece, &mut out);
        }
        let read = read(&out);
        prop_assert_eq!(read.len(), 3);
        let untouched = [&neighbour[..], &frame(BODY, b"abc")].concat();
        prop_assert!(out.ends_with(&untouched));
    }

    /// Properties that the client can read stay unchanged.
    #[test]
    fn readable_properties_stay_as_they_are(
        texts in proptest::collection::vec("[a-z😀é]{0,40}", 8), value in any::<i64>(), time in any::<u64>(),
    ) {
        let mut inner = FieldTable::default();
        inner.insert("n".into(), AMQPValue::LongLongInt(value));
        let mut headers = FieldTable::default();
        headers.insert("inner".into(), AMQPValue::FieldTable(inner));
        headers.insert("text".into(), AMQPValue::LongString(texts[0].as_str().into()));
        headers.insert("list".into(), AMQPValue::FieldArray(vec![AMQPValue::Void].into()));
        let properties = BasicProperties::default()
            .with_content_type(texts[1].as_str().into())
            .with_headers(headers)
            .with_delivery_mode(2)
            .with_correlation_id(texts[2].as_str().into())
            .with_reply_to(texts[3].as_str().into())
            .with_expiration("1000".into())
            .with_message_id(texts[4].as_str().into())
            .with_timestamp(time)
            .with_type(texts[5].as_str().into())
            .with_user_id(texts[6].as_str().into())
            .with_app_id(texts[7].as_str().into());
        let content = AMQPContentHeader { class_id: 60, body_size: 3, properties };
        let frame = AMQPFrame::Header(1, content);
        let mut written = vec![0; 4096];
        let rest = gen_frame(&frame)(written.as_mut_slice().into()).unwrap();
        let length = rest.into_inner().1 as usize;
        written.truncate(length);
        prop_assert_eq!(pass(&written), written);
    }
}

fn flags_before_headers() -> u16 {
    flags(&[0, 1])
}

fn flags_of_id() -> u16 {
    flags(&[MESSAGE_ID])
}
