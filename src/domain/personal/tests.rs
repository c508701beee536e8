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
    fn check_category(&self, app: &str, category: &str) -> Result<(), String> {
        job::known_category::<()>(app, category, None)
    }

    fn check_callback(&self, app: &str, url: &str) -> Result<(), String> {
        job::check_callback(app, None, url)
    }
    fn check_reply_to(&self, _: &str, _: &str) -> Result<(), String> {
        Ok(())
    }
}

/// The message of a job with these `vars` for all, rendered with the values of one recipient. The
/// job is a later part of a list, so accepting it does not render the message.
fn render(message: &str, options: &str, vars: &str) -> Result<Arc<Head>, String> {
    let body = format!(
        r#"{{"v":1,"client_msg_no":"k","audience":{{"users":["u1"]}},"part":{{"number":2,"of":2}},
            "message":{message},"options":{options}}}"#
    );
    let job = Job::parse(
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
    // With `literal`, braces stay braces.
    let braces = r#"{"type":"text","text":"{{ name }} {% oops","literal":true}"#;
    assert_eq!(render(braces, "{}", "{}").unwrap_err(), "not personal");
}

/// `Hi {{ name }}` is sent unchanged only if that is intended.
#[test]
fn a_placeholder_that_nobody_fills_refuses_the_job() {
    let refused = |message: &str| render(message, "{}", "{}").unwrap_err();
    let text = refused(r#"{"type":"text","text":"Hi {{ name }}"}"#);
    assert!(
        text.starts_with(
            "message.text: has the placeholder {{ name }}, and there is no value for it"
        ),
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
    /// Pieces of templates, joined at random.
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
    /// For any template and any values: a result, within the limits, always the same.
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

    /// Data stays JSON, whatever values are filled in.
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

/// Each operator and each kind of bracket or block, repeated up to `size` bytes.
fn nested(size: usize) -> Vec<(&'static str, String)> {
    let tag = |unit: &str, end: &str| {
        format!(
            "{{{{ {}{end} }}}}",
            unit.repeat(size.saturating_sub(8) / unit.len())
        )
    };
    let chain = |first: &str, unit: &str| {
        format!(
            "{{{{ {first}{} }}}}",
            unit.repeat(size.saturating_sub(8) / unit.len())
        )
    };
    let pair = |open: &str, middle: &str, close: &str| {
        let count = size.saturating_sub(8) / (open.len() + close.len());
        format!("{}{middle}{}", open.repeat(count), close.repeat(count))
    };
    let inner =
        |open: &str, middle: &str, close: &str| format!("{{{{ {} }}}}", pair(open, middle, close));
    let mut shapes = vec![
        ("minus", tag("-", "1")),
        ("not", tag("not ", "1")),
        ("plus minus", tag("+-", "1")),
        ("if else", tag("1 if a else ", "1")),
        ("if without else", chain("1", " if a")),
        ("parentheses", inner("(", "1", ")")),
        ("lists", inner("[", "1", "]")),
        ("dicts", inner("{1:", "1", "}")),
        ("subscripts", inner("a[", "0", "]")),
        ("arguments", inner("a(", "0", ")")),
        ("filter arguments", inner("a|default(", "0", ")")),
        ("keyword arguments", inner("a(b=", "0", ")")),
        ("test arguments", inner("a is eq(", "0", ")")),
        ("slices", inner("a[1:", "0", "]")),
        ("assigned", format!("{{% set {}=1 %}}", pair("(", "x", ")"))),
        (
            "looped over",
            format!("{{% for {} in a %}}{{% endfor %}}", pair("(", "x", ")")),
        ),
        (
            "dotted",
            format!("{{% set a{}=1 %}}", ".b".repeat(size / 2)),
        ),
        (
            "with",
            format!("{{% with {}=1 %}}{{% endwith %}}", pair("(", "x", ")")),
        ),
        (
            "elif",
            format!(
                "{{% if a %}}{}{{% endif %}}",
                "{% elif a %}".repeat(size / 12)
            ),
        ),
        ("unclosed", "{% if a %}".repeat(size / 10)),
        ("braces", "{{".repeat(size / 2)),
    ];
    for operator in [
        "+",
        "-",
        "*",
        "/",
        "//",
        "%",
        "**",
        "~",
        "==",
        "!=",
        "<",
        "<=",
        ">",
        ">=",
        " in ",
        " not in ",
        " and ",
        " or ",
        " is none and ",
    ] {
        shapes.push(("binary", chain("a", &format!("{operator}a"))));
        shapes.push(("binary constant", chain("1", &format!("{operator}1"))));
    }
    for unit in [
        "()", "[0]", ".b", ".0", "|upper", " is none", "\"x\"", "[1:2]", ".a()",
    ] {
        shapes.push(("postfix", chain("a", unit)));
    }
    for (open, close) in [
        ("{% if a %}", "{% endif %}"),
        ("{% if a %}{% else %}", "{% endif %}"),
        ("{% for i in a %}", "{% endfor %}"),
        ("{% for i in a %}{% else %}", "{% endfor %}"),
        ("{% with x=1 %}", "{% endwith %}"),
        ("{% set x %}", "{% endset %}"),
        ("{% set x|upper %}", "{% endset %}"),
        ("{% filter upper %}", "{% endfilter %}"),
        ("{% autoescape true %}", "{% endautoescape %}"),
        ("{% macro m() %}", "{% endmacro %}"),
        ("{% block b %}", "{% endblock %}"),
    ] {
        shapes.push(("blocks", pair(open, "x", close)));
    }
    shapes
}

/// Runs code that would end the process in an unbounded recursion.
fn on_a_small_stack<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(256 * 1024);
        thread.spawn_scoped(scope, work).unwrap().join().unwrap()
    })
}

/// Promise: no text from outside ends a process.
#[test]
fn no_operator_or_nesting_ends_the_process() {
    on_a_small_stack(|| {
        let mut deep = 0;
        for (name, shape) in nested(19_990) {
            let found = text(&shape, "{}", r#"{"a":"x"}"#);
            assert!(found.is_err(), "{name}: {:?}", &shape[..40]);
            deep += usize::from(found.unwrap_err().contains("too deep"));
        }
        assert!(deep > 50, "{deep} shapes were measured as too deep");
        for (name, shape) in nested(65_000) {
            let data = serde_json::json!({ "t": &shape });
            let message = serde_json::json!({"type": "custom", "data": data, "vars": {"a": "x"}});
            let found = render(&message.to_string(), "{}", "{}");
            assert!(found.is_err(), "{name}: {:?}", &shape[..40]);
        }
    });
}

/// Ordinary templates are far below the bounds, and templates just below them fit a small stack.
#[test]
fn what_is_within_the_bounds_is_rendered_on_a_small_stack() {
    let greetings = (0..60).map(|number| format!("\"l{number}\":\"Hello {number}\""));
    let greetings = greetings.collect::<Vec<_>>().join(",");
    let vars = r#"{"lang":"l7","a":0}"#;
    on_a_small_stack(|| {
        check(
            &format!("{{{{ {{{greetings}}}[lang] }}}}"),
            "{}",
            vars,
            Ok("Hello 7"),
        );
        let elifs = (0..28).map(|number| format!("{{% elif a == {number} %}}{number}"));
        let chain = format!(
            "{{% if a == 99 %}}{}{{% endif %}}",
            elifs.collect::<String>()
        );
        check(&chain, "{}", vars, Ok("0"));
        let ifs = format!(
            "{}x{}",
            "{% if a == 0 %}".repeat(32),
            "{% endif %}".repeat(32)
        );
        check(&ifs, "{}", vars, Ok("x"));
        let brackets = format!("{{{{ {}1{} }}}}", "(-".repeat(16), ")".repeat(16));
        check(&brackets, "{}", vars, Ok("1"));
        check(
            &format!("{{{{ {}1 }}}}", "-".repeat(298)),
            "{}",
            vars,
            Ok("1"),
        );
        check(
            &format!("{{{{ a{} }}}}", "+1".repeat(149)),
            "{}",
            vars,
            Ok("149"),
        );
        // A text may be long with few placeholders.
        check(
            &format!("{}{{{{ a }}}}", "-".repeat(15_000)),
            "{}",
            vars,
            Ok(&format!("{}0", "-".repeat(15_000))),
        );
    });
}

/// A loop can nest as many values as its fuel pays for.
#[test]
fn values_within_values_do_not_end_the_process() {
    let within = |open: &str, close: &str| format!("{}ns.x{}", open.repeat(15), close.repeat(15));
    on_a_small_stack(|| {
        for deeper in [
            within("[", "]"),
            within("{1:", "}"),
            within("(", ",)"),
            "dict(a=ns.x)".to_owned(),
        ] {
            for end in [
                "ok",
                "{{ ns.x }}",
                "{{ ns.x|string|length }}",
                "{{ ns.x == ns.x }}",
                "{{ [ns.x, ns.x]|sort|length }}",
                "{{ [ns.x, ns.x]|unique|list|length }}",
                "{{ {ns.x: 1} }}",
                "{{ nope }}",
                "{{ ns.x in [ns.x] }}",
            ] {
                for times in [300, 500, 5000] {
                    let template = format!(
                        "{{% set ns = namespace(x=[]) %}}{{% for i in range({times}) %}}{{% set ns.x = {deeper} %}}\
                         {{% endfor %}}{end}"
                    );
                    // Any result will do.
                    let _ = text(&template, "{}", "{}");
                }
            }
        }
        let deep = "{% set x = [[[[[[[[[[x]]]]]]]]]] %}".repeat(570);
        let _ = text(&format!("{{% set x = 1 %}}{deep}{{{{ x }}}}"), "{}", "{}");
    });
}

#[test]
fn a_mistake_of_the_engine_is_outlived() {
    let broken = guarded(Depth::Deep, || -> u8 { panic!("divides by zero") });
    assert!(
        broken
            .unwrap_err()
            .contains("the engine for placeholders failed")
    );
}

/// A fault that fails all recipients refuses the job.
#[test]
fn what_is_called_and_not_there_refuses_the_job() {
    for (template, part) in [
        (
            "Hi {{ n|capitalise }}",
            "there is no filter `capitalise` (line 1)",
        ),
        (
            "Hi\n{{ n.upper() }}",
            "there is no method `upper`; values have filters instead, such as `name|upper` (line 2)",
        ),
        (
            "{% if n is prime %}x{% endif %}",
            "there is no test `prime`",
        ),
        ("{{ now() }}", "there is no function `now`"),
        ("{{ n|pprint }}", "there is no filter `pprint`"),
        (
            "{% filter shout %}x{% endfilter %}",
            "there is no filter `shout`",
        ),
        (
            "{% for i in [1] %}{{ loop.cycle() }}{% endfor %}",
            "`cycle` needs something",
        ),
        (
            "{% for i in [1] %}{{ loop.cycle(*[]) }}{% endfor %}",
            "`cycle` needs something",
        ),
    ] {
        let what = text(template, "{}", r#"{"n":"ana"}"#).unwrap_err();
        assert!(
            what.starts_with("message.text: not a template: ") && what.contains(part),
            "{what}"
        );
    }
    for (template, expected) in [
        (
            "{% for i in range(2) %}{{ loop.cycle('a', 'b') }}{% endfor %}",
            "ab",
        ),
        (
            "{% for i in [1, [2]] recursive %}{{ loop(i) if i is sequence else i }}{% endfor %}",
            "12",
        ),
        ("{% set f = range %}{{ f(3)|list }}", "[0, 1, 2]"),
        (
            "{{ dict(a=1).a }}{{ n|default('x') }}{{ n is defined }}",
            "1anaTrue",
        ),
    ] {
        check(template, "{}", r#"{"n":"ana"}"#, Ok(expected));
    }
}

#[test]
fn names_of_values_may_be_in_any_script() {
    check(
        "你好 {{ 姓名 }}",
        "{}",
        r#"{"姓名":"安娜"}"#,
        Ok("你好 安娜"),
    );
    check(
        "{{ Straße }} {{ имя|upper }}",
        "{}",
        r#"{"Straße":"Allee","имя":"я"}"#,
        Ok("Allee Я"),
    );
    check(
        "{{ 姓名 }}",
        "{}",
        "{}",
        Err("message.text: undefined variable \"姓名\""),
    );
    let long = format!("{{{{ {} }}}}", "姓+".repeat(4000));
    assert!(text(&long, "{}", "{}").unwrap_err().contains("too deep"));
}

/// A job of these recipients, as it is accepted.
fn accept(message: &str, users: &str) -> Result<(), String> {
    let body = format!(
        r#"{{"v":1,"client_msg_no":"k","audience":{{"users":{users}}},"message":{message}}}"#
    );
    let job = Job::parse(
        body.as_bytes(),
        None,
        &Anything,
        jiff::Timestamp::UNIX_EPOCH,
    );
    job.map(drop).map_err(|problems| summary(&problems))
}

#[test]
fn a_job_that_nobody_can_get_is_refused() {
    let hyphen = r#"{"type":"text","text":"Hi {{ first-name }}"}"#;
    let ana = r#"{"id":"u1","vars":{"n":"a","first-name":"Ana"}}"#;
    let what = accept(hyphen, &format!("[{ana}]")).unwrap_err();
    assert!(what.starts_with("message.text: no recipient could get this: undefined variable \"first\"; there is a value \"first-name\""), "{what}");
    let many = vec![ana; 5000].join(",");
    assert!(accept(hyphen, &format!("[{many}]")).is_err());

    let hi = r#"{"type":"text","text":"Hi {{ n }}{% set x = n %}{{ x.y }}"}"#;
    let lacks = r#"{"id":"u1","vars":{"m":1}}"#;
    let has = r#"{"id":"u2","vars":{"n":{"y":1}}}"#;
    assert!(accept(hi, &format!("[{lacks}]")).is_err());
    assert!(accept(hi, &format!("[{lacks},{has}]")).is_ok());
    // A later recipient may have the value.
    let some = vec![lacks; 50].join(",");
    assert!(accept(hi, &format!("[{some},{has}]")).is_ok());
    assert!(accept(hi, &format!("[{some}]")).is_err());
    let deeper = vec![r#"{"id":"u1","vars":{"n":{"z":1}}}"#; 50].join(",");
    assert!(
        accept(hi, &format!("[{deeper}]")).is_ok(),
        "what the others have within `n` is not known"
    );
}
