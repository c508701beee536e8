use super::*;
use crate::domain::fields::{Fields, Problem, Problems};

fn parse(json: &str) -> Result<Message, Vec<String>> {
    Message::from_json(json).map_err(|problems| problems.iter().map(Problem::to_string).collect())
}

/// One message of every type, as producers write it.
const MESSAGES: [&str; 10] = [
    r#"{"type":"text","text":"hi"}"#,
    r#"{"type":"image","url":"http://x/a.png","size":3,"format":"png","width":2,"height":1}"#,
    r#"{"type":"audio","url":"http://x/a.mp3","duration_ms":900}"#,
    r#"{"type":"video","url":"http://x/a.mp4","duration_ms":900,"cover":"http://x/a.png"}"#,
    r#"{"type":"file","url":"http://x/a.pdf","name":"a.pdf"}"#,
    r#"{"type":"location","latitude":31.2,"longitude":-121.5,"title":"here"}"#,
    r#"{"type":"notice","text":"you are friends now"}"#,
    r#"{"type":"mention","text":"@all hi","users":["u1"],"everybody":true}"#,
    r#"{"type":"custom","data":{ "n" : 1.0 }}"#,
    r#"{"type":"raw","data":[1, 2]}"#,
];

#[test]
fn every_type_survives_the_way_to_a_slice_and_back() {
    for json in MESSAGES {
        let message = parse(json).unwrap();
        let travelled = serde_json::to_string(&message.content).unwrap();
        let back: Content = serde_json::from_str(&travelled).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), travelled);
        let (a, b): (serde_json::Value, serde_json::Value) = (
            serde_json::from_str(json).unwrap(),
            serde_json::from_str(&travelled).unwrap(),
        );
        assert_eq!(a, b, "the document is the one the producer wrote");
    }
}

#[test]
fn application_data_is_passed_through_byte_for_byte() {
    let message = parse(r#"{"type":"custom","data":{ "n" : 1.0 }}"#).unwrap();
    let travelled = serde_json::to_string(&message.content).unwrap();
    assert!(travelled.contains(r#"{ "n" : 1.0 }"#), "{travelled}");
}

#[test]
fn native_fields_stand_beside_a_message_or_alone() {
    let message = parse(r#"{"native":{"bid":"x"}}"#).unwrap();
    assert!(matches!(message.content, Content::Native));
    let travelled = serde_json::to_string(&message.content).unwrap();
    assert!(matches!(
        serde_json::from_str(&travelled).unwrap(),
        Content::Native
    ));
    let message = parse(r#"{"type":"text","text":"hi","native":{"bid":"x"}}"#).unwrap();
    assert!(matches!(message.content, Content::Text(_)) && message.native.is_some());
}

#[test]
fn what_is_wrong_is_named_with_its_field() {
    let check = |json, expected: &[&str]| assert_eq!(parse(json).unwrap_err(), expected);
    check(
        r#"{"type":"text","text":"","url":"http://x"}"#,
        &[
            "message.url: has no meaning in a message of type text",
            "message.text: 0 bytes, 1 to 20000 are allowed",
        ],
    );
    check(
        r#"{"type":"image"}"#,
        &["message.url: missing; a message of type image needs it"],
    );
    check(
        r#"{"type":"location","latitude":91,"longitude":0}"#,
        &["message.latitude: is not -90 to 90 degrees"],
    );
    check(
        r#"{"template":"t","type":"text"}"#,
        &["message.template: a stored message has a type of its own; leave `type` out"],
    );
    check(
        r#"{"type":"text","text":"x","native":[]}"#,
        &["message.native: a JSON object is expected"],
    );
    check(
        r#"{"type":"txt"}"#,
        &[
            "message.type: \"txt\" is not one of text, image, audio, video, file, location, notice, mention, custom, raw",
        ],
    );
    assert!(parse("{}").unwrap_err()[0].starts_with("message.type: missing; one of text,"));
}

#[test]
fn a_field_for_text_takes_json_too() {
    let plain = |json: &str| plain_text(&RawValue::from_string(json.to_owned()).unwrap());
    assert_eq!(plain(r#""a \"b\"""#), "a \"b\"");
    assert_eq!(plain(r#"{"k":1}"#), r#"{"k":1}"#);
}

/// Promise: the size of everything that every slice of a job carries is bounded, including each
/// text.
#[test]
fn texts_of_options_are_bounded() {
    let read = |options: &str| {
        let mut problems = Problems::default();
        let fields = Fields::open("options", options, &mut problems).unwrap();
        options_from_fields(fields, &mut problems);
        Vec::from(problems)
    };
    for (options, most) in [
        (r#"{"push":{"title":"…"}}"#, LINE_BYTES_MAX),
        (r#"{"push":{"text":"…"}}"#, TEXT_BYTES_MAX),
        (r#"{"push":{"sound":"…"}}"#, NAME_BYTES_MAX),
        (r#"{"push":{"payload":"…"}}"#, DATA_BYTES_MAX - 2),
        (r#"{"route":{"environment":"…"}}"#, NAME_BYTES_MAX),
        (r#"{"moderation":{"business_id":"…"}}"#, NAME_BYTES_MAX),
        (r#"{"extension":"…"}"#, DATA_BYTES_MAX - 2),
    ] {
        let of = |size: usize| read(&options.replace('…', &"x".repeat(size)));
        assert_eq!(of(most), [], "{options}");
        assert_eq!(of(most + 1).len(), 1, "{options}");
    }
    let mention = |id: &str| format!(r#"{{"type":"mention","text":"x","users":["{id}"]}}"#);
    assert!(Message::from_json(&mention(&"u".repeat(255))).is_ok());
    assert!(Message::from_json(&mention(&"u".repeat(256))).is_err());
}
