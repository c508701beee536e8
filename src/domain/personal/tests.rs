use proptest::prelude::*;

use super::*;
use crate::domain::fields::summary;
use crate::domain::job::{self, Job};

struct Anything;

impl job::Context for Anything {
    fn default_target(&self, _app: &str) -> Result<String, String> {
        Ok("im".to_owned())
    }
    fn check_target(&self, _target: &str) -> Result<(), String> {
        Ok(())
    }
    fn folds_case(&self, _target: &str) -> bool {
        false
    }
    fn check_callback(&self, app: &str, url: &str) -> Result<(), String> {
        job::check_callback(app, None, url)
    }
    fn check_reply_to(&self, queue: &str) -> Result<(), String> {
        job::check_reply_to(Some("fanwise"), queue)
    }
}

/// The message of a job with these `vars` for all, rendered with these of a recipient.
fn render(message: &str, options: &str, vars: &str) -> Result<Arc<Head>, String> {
    let body = format!(
        r#"{{"v":1,"client_msg_no":"k","audience":{{"users":["u1"]}},"message":{message},"options":{options}}}"#
    );
    let job = Job::read(
        body.as_bytes(),
        None,
        &Anything,
        jiff::Timestamp::UNIX_EPOCH,
    )
    .map_err(|problems| summary(&problems))?;
    let personal = Personal::of(&Arc::new(job.head)).map_err(|problems| summary(&problems))?;
    let vars = RawValue::from_string(vars.to_owned()).unwrap();
    let personal = personal.ok_or("not personal")?;
    personal.render(Some(&vars)).map_err(|it| it.to_string())
}

fn text(text: &str, defaults: &str, vars: &str) -> Result<String, String> {
    let text = serde_json::Value::from(text);
    let message = format!(r#"{{"type":"text","text":{text},"vars":{defaults}}}"#);
    let head = render(&message, "{}", vars)?;
    assert!(head.vars.is_none(), "rendered once is rendered for good");
    match &head.content {
        Content::Text(text) => Ok(text.clone()),
        other => panic!("{other:?}"),
    }
}

fn check(template: &str, defaults: &str, vars: &str, expected: Result<&str, &str>) {
    let found = text(template, defaults, vars);
    let found = found.as_ref().map(String::as_str).map_err(String::as_str);
    assert_eq!(found, expected, "{template} with {defaults} and {vars}");
}

#[test]
fn a_recipients_values_win_over_those_of_the_message() {
    let hello = "Hello {{ name }}, {{ shop }}\n";
    let shop = r#"{"name":"friend","shop":"Fan & Co"}"#;
    check(
        hello,
        shop,
        r#"{"name":"<Ana>"}"#,
        Ok("Hello <Ana>, Fan & Co\n"),
    );
    check(hello, shop, "{}", Ok("Hello friend, Fan & Co\n"));
    check(
        hello,
        shop,
        r#"{"name":null}"#,
        Ok("Hello friend, Fan & Co\n"),
    );
}

#[test]
fn a_missing_value_is_named_unless_there_is_a_default() {
    let missing = Err(r#"message.text: undefined variable "name""#);
    check("Hi {{ name }}", "{}", "{}", missing);
    check("Hi {{ name }}", "{}", r#"{"name":null}"#, missing);
    check("Hi {{ name|upper }}", "{}", "{}", missing);
    check("{% if name %}Hi{% endif %}", "{}", "{}", missing);
    check("{% for it in name %}Hi{% endfor %}", "{}", "{}", missing);
    check(
        "Hi {{ user.name }}",
        "{}",
        r#"{"user":{}}"#,
        Err(r#"message.text: undefined variable "user.name""#),
    );
    check(
        r#"Hi {{ name|default("friend") }}"#,
        "{}",
        "{}",
        Ok("Hi friend"),
    );
    check(
        "{% if name is defined %}Hi {{ name }}{% else %}Hello{% endif %}",
        "{}",
        "{}",
        Ok("Hello"),
    );
}

#[test]
fn every_text_is_rendered_and_nothing_else() {
    let vars = r#"{"name":"A \"B\" \\ C","n":3}"#;
    let options =
        r#"{"push":{"title":"For {{ name }}","text":"{{ n }} left"},"extension":"x-{{ n }}"}"#;
    let head = render(
        r#"{"type":"file","url":"https://x/{{ n }}","name":"{{ n }}.pdf","vars":{}}"#,
        options,
        vars,
    )
    .unwrap();
    let push = head.options.push.clone().unwrap();
    assert_eq!(push.title.as_deref(), Some(r#"For A "B" \ C"#));
    assert_eq!(push.text.as_deref(), Some("3 left"));
    assert_eq!(head.options.extension.as_ref().unwrap().get(), r#""x-3""#);
    match &head.content {
        Content::File(file) => {
            assert_eq!(file.name.as_deref(), Some("3.pdf"));
            assert_eq!(file.url, "https://x/{{ n }}");
        }
        other => panic!("{other:?}"),
    }

    let data =
        r#"{ "{{ n }}" : "{{ n }}", "list":[1.50, "a","\u007b{ name }}"], "k":"{{ 'x' }}" }"#;
    let message = format!(r#"{{"type":"custom","data":{data},"vars":{{}}}}"#);
    match &render(&message, "{}", vars).unwrap().content {
        Content::Custom(data) => assert_eq!(
            data.get(),
            r#"{ "{{ n }}" : "3", "list":[1.50, "a","A \"B\" \\ C"], "k":"x" }"#
        ),
        other => panic!("{other:?}"),
    }

    let place = r#"{"type":"location","latitude":1,"longitude":2,"title":"{{ name }}","vars":{}}"#;
    match &render(place, "{}", vars).unwrap().content {
        Content::Location { title, .. } => assert_eq!(title, r#"A "B" \ C"#),
        other => panic!("{other:?}"),
    }
    let mention = r#"{"type":"mention","everybody":true,"text":"{{ n }}","vars":{}}"#;
    match &render(mention, "{}", vars).unwrap().content {
        Content::Mention { text, .. } => assert_eq!(text, "3"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_job_without_placeholders_is_not_personal() {
    let plain = r#"{"type":"text","text":"no { placeholders }","vars":{"name":"x"}}"#;
    assert_eq!(render(plain, "{}", "{}").unwrap_err(), "not personal");
    let raw = r#"{"type":"raw","data":{"a":"{{ name }}"},"vars":{"name":"x"}}"#;
    assert_eq!(render(raw, "{}", "{}").unwrap_err(), "not personal");
    // Braces are braces where the job says so.
    let braces = r#"{"type":"text","text":"{{ name }} {% oops","literal":true}"#;
    assert_eq!(render(braces, "{}", "{}").unwrap_err(), "not personal");
}

/// `Hi {{ name }}` goes to nobody as it stands, unless that is what is meant.
#[test]
fn a_placeholder_that_nobody_fills_refuses_the_job() {
    let refused = |message: &str| render(message, "{}", "{}").unwrap_err();
    let text = refused(r#"{"type":"text","text":"Hi {{ name }}"}"#);
    assert!(
        text.starts_with("message.text: has the placeholder {{ name }}, and nobody brings a value"),
        "{text}"
    );
    let both = refused(r#"{"type":"text","text":"Hi {{ name }}","vars":{},"literal":true}"#);
    assert!(
        both.starts_with("message.literal: has no meaning beside `vars`"),
        "{both}"
    );
}

#[test]
fn what_does_not_compile_refuses_the_job_with_field_and_line() {
    let refused = |message: &str, options: &str| render(message, options, "{}").unwrap_err();
    let text = refused(r#"{"type":"text","text":"a\nb {{ name","vars":{}}"#, "{}");
    assert!(
        text.starts_with("message.text: not a template: syntax error: "),
        "{text}"
    );
    assert!(text.ends_with("(line 2)"), "{text}");
    let both = refused(
        r#"{"type":"custom","data":["{% include 'x' %}","{% macro m() %}"],"vars":{}}"#,
        r#"{"push":{"text":"{{ }}"}}"#,
    );
    assert_eq!(
        both.matches("message.data: not a template").count(),
        2,
        "{both}"
    );
    assert!(both.contains("options.push.text: not a template"), "{both}");
    let many = vec!["\"{{ x }}\""; TEXTS_MAX + 5].join(",");
    let many = refused(
        &format!(r#"{{"type":"custom","data":[{many}],"vars":{{}}}}"#),
        "{}",
    );
    assert_eq!(many, "message.data: more than 100 texts with placeholders");
}

#[test]
fn a_rendering_that_takes_too_much_fails_its_recipient() {
    let doubled = format!(
        "{{% set x = 'x' %}}{}{{{{ x|length }}}}",
        "{% set x = x ~ x %}".repeat(40)
    );
    for template in [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 90000000 }}",
        "{{ ('x' * 90000000)|length }}",
        "{{ range(100000)|join('xxxxxxxx') }}",
        &doubled,
    ] {
        let what = text(template, "{}", "{}").unwrap_err();
        assert_eq!(
            what,
            "message.text: takes too much work, or makes too long a text"
        );
    }
    let long = text("{{ 'x' * 20001 }}", "{}", "{}").unwrap_err();
    assert_eq!(
        long,
        "message.text: more than 20000 bytes once it is filled in"
    );
    let empty = text("{{ name }}", "{}", r#"{"name":""}"#).unwrap_err();
    assert_eq!(empty, "message.text: is empty once it is filled in");
}

#[test]
fn null_is_never_written_out() {
    let what = text("{{ user.name }}", "{}", r#"{"user":{"name":null}}"#).unwrap_err();
    assert!(what.contains("null"), "{what}");
}

prop_compose! {
    /// Pieces of templates, put together without sense.
    fn scraps()(scraps in prop::collection::vec(prop::sample::select(vec![
        "{{ ", " }}", "{% ", " %}", "name", "list", "deep.x", "|", "for a in ", "endfor", "if ", "else",
        "endif", "set x = ", " ~ ", " * ", "99999", "-1", "'", "\"", "(", ")", "[", "]", ":", "join",
        "(list)", "replace('a', name)", "default('é')", "batch(3)", "range(9999)", "{#", "#}", "\n", "é",
        "raw", "endraw", "loop.index", "loop(list)", "namespace()", "format", "indent(99999)", "tojson",
    ]), 0..24)) -> String {
        scraps.concat()
    }
}

proptest! {
    /// Whatever a template says, and whatever the values: an answer, within the limits, always the same.
    #[test]
    fn rendering_never_panics_and_is_bounded(
        template in prop_oneof![scraps(), scraps().prop_map(|it| format!("{{{{ {it} }}}}")), ".{0,40}"],
        name in ".{0,20}", depth in 0usize..60,
    ) {
        let deep = format!("{}\"x\"{}", r#"{"x":"#.repeat(depth), "}".repeat(depth));
        let vars = format!(
            r#"{{"name":{},"list":["a",1,-2.5,true,null,[]],"deep":{deep}}}"#, serde_json::Value::from(name),
        );
        // The reader of jobs refuses an empty text.
        let template = format!("-{template}");
        let first = text(&template, "{}", &vars);
        if let Ok(text) = &first {
            prop_assert!(text.len() <= TEXT_BYTES_MAX);
        }
        prop_assert_eq!(first, text(&template, "{}", &vars));
    }

    /// Data stays JSON, whatever is filled in.
    #[test]
    fn data_stays_json(name in ".{0,30}", key in "[a-z{}\"\\\\é]{0,8}") {
        // As a value it would be a template, and a broken one.
        prop_assume!(!key.contains("{{"));
        let data = serde_json::json!({ &key: "{{ name }}", "b": [&key, "-{{ name }}-"] });
        let message = serde_json::json!({"type": "custom", "data": data, "vars": {"name": &name}});
        let Content::Custom(data) = render(&message.to_string(), "{}", "{}").unwrap().content.clone() else {
            panic!("not custom");
        };
        let found: serde_json::Value = serde_json::from_str(data.get()).unwrap();
        prop_assert_eq!(&found["b"][1], &format!("-{name}-"));
        if key != "b" {
            prop_assert_eq!(&found[&key], &name);
        }
    }
}
