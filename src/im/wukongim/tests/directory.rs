//! Checks the list of all users: requests byte for byte, pages, and errors.

use super::{Manager, Version, build_it, settings};
use crate::domain::outcome::Class;
use crate::im::fixture::{reply, text};
use crate::im::wukongim::Settings;
use crate::ports::{Page, Target};
use crate::secret::Secret;

fn listing(version: Version, manager: Option<Manager>) -> Box<dyn Target> {
    build_it(Settings {
        manager_url: Some("http://im:5300/".into()),
        manager,
        ..settings(version)
    })
}

fn admin() -> Option<Manager> {
    Some(Manager {
        user: "admin".into(),
        password: Secret::new("a\"b"),
    })
}

fn read(version: Version, cursor: Option<&str>, body: &str) -> Result<Page, Class> {
    let target = listing(version, None);
    let page = target
        .directory()
        .unwrap()
        .read_page(cursor, &reply(200, body.to_owned()));
    page.map_err(|answer| answer.class)
}

fn page(users: &[&str], next: Option<&str>) -> Result<Page, Class> {
    Ok(Page {
        users: users.iter().map(|user| (*user).to_owned()).collect(),
        total: None,
        next: next.map(ToOwned::to_owned),
    })
}

#[test]
fn pages_are_asked_for_with_the_cursor_of_the_last_one() {
    let asked = |version, cursor| text(&listing(version, None).directory().unwrap().page(cursor));
    assert_eq!(
        asked(Version::V2, None),
        "GET http://im:5300/cluster/users?limit=1000\n\n"
    );
    assert_eq!(
        asked(Version::V2, Some("1700000000000000001")),
        "GET http://im:5300/cluster/users?limit=1000&offset_created_at=1700000000000000001\n\n"
    );
    assert_eq!(
        asked(Version::V3, None),
        "GET http://im:5300/manager/users?limit=200\n\n"
    );
    assert_eq!(
        asked(Version::V3, Some("a+b/c=&d")),
        "GET http://im:5300/manager/users?limit=200&cursor=a%2Bb%2Fc%3D%26d\n\n"
    );
    let with_token = build_it(Settings {
        token: Some(Secret::new("s3cret")),
        manager_url: Some("http://im:5300".into()),
        ..settings(Version::V2)
    });
    assert_eq!(
        text(&with_token.directory().unwrap().page(None)),
        "GET http://im:5300/cluster/users?limit=1000\ntoken: s3cret\n\n"
    );
}

#[test]
fn pages_of_version_2() {
    let user = |uid: &str, at: i64| {
        format!(r#"{{"id":1,"uid":"{uid}","device_count":0,"created_at":{at},"slot":3}}"#)
    };
    let (a, b) = (
        user("a", 1_700_000_000_000_000_009),
        user("b", 1_700_000_000_000_000_001),
    );
    let body = |more, data: &str| format!(r#"{{"total":2,"more":{more},"data":[{data}]}}"#);
    let both = format!("{a},{b}");
    let cursor = Some("1700000000000000001");
    assert_eq!(
        read(Version::V2, None, &body(1, &both)),
        page(&["a", "b"], cursor)
    );
    assert_eq!(
        read(Version::V2, cursor, &body(0, &both)),
        page(&["a", "b"], None)
    );
    assert_eq!(read(Version::V2, None, &body(0, "")), page(&[], None));
    // A list that promises more but does not move on would never end.
    for odd in [body(1, ""), body(1, &b)] {
        assert_eq!(read(Version::V2, cursor, &odd), Err(Class::Transient));
    }
}

#[test]
fn pages_of_version_3() {
    let more =
        r#"{"items":[{"uid":"a","online":false},{"uid":"b"}],"has_more":true,"next_cursor":"x"}"#;
    assert_eq!(read(Version::V3, None, more), page(&["a", "b"], Some("x")));
    assert_eq!(read(Version::V3, Some("x"), more), Err(Class::Transient));
    let last = r#"{"items":[{"uid":"c"}],"has_more":false}"#;
    assert_eq!(read(Version::V3, Some("x"), last), page(&["c"], None));
    let nobody = r#"{"items":[],"has_more":false}"#;
    assert_eq!(read(Version::V3, None, nobody), page(&[], None));
    let long = "x".repeat(5000);
    let long = format!(r#"{{"items":[],"has_more":true,"next_cursor":"{long}"}}"#);
    for odd in [r#"{"items":[],"has_more":true}"#, &*long] {
        assert_eq!(read(Version::V3, None, odd), Err(Class::Transient), "{odd}");
    }
}

#[test]
fn a_list_that_cannot_be_read_is_never_taken_for_an_empty_one() {
    for version in [Version::V2, Version::V3] {
        for odd in [
            "",
            "{}",
            "[]",
            "null",
            "<html>",
            r#"{"status":200}"#,
            r#"{"total":0,"more":0}"#,
            r#"{"has_more":false}"#,
            r#"{"data":[{}],"items":[{}],"has_more":false}"#,
        ] {
            assert_eq!(read(version, None, odd), Err(Class::Transient), "{odd}");
        }
    }
}

#[test]
fn refusals_of_the_manager() {
    let check = |status, v2: Class, v3: Class| {
        for (version, class) in [(Version::V2, v2), (Version::V3, v3)] {
            let target = listing(version, admin());
            let directory = target.directory().unwrap();
            let answer = directory.read_page(None, &reply(status, "no")).unwrap_err();
            assert_eq!(
                (answer.class, answer.stale),
                (class, status == 401),
                "{status}"
            );
            let login = directory.login().unwrap();
            assert_eq!(
                login
                    .read_credential(&reply(status, "no"))
                    .unwrap_err()
                    .class,
                class
            );
        }
    };
    for (status, class) in [
        (400, Class::Permanent),
        (401, Class::Config),
        (403, Class::Config),
        (404, Class::Config),
        (408, Class::Transient),
        (429, Class::Throttled),
        (500, Class::Transient),
        (502, Class::Transient),
        (503, Class::Transient),
        (204, Class::Transient),
    ] {
        check(status, class, class);
    }
}

#[test]
fn the_manager_is_logged_in_to() {
    for version in [Version::V2, Version::V3] {
        let target = listing(version, admin());
        let login = target.directory().unwrap().login().unwrap();
        assert_eq!(
            text(&login.request()),
            "POST http://im:5300/manager/login\ncontent-type: application/json\n\n\
             {\"username\":\"admin\",\"password\":\"a\\\"b\"}"
        );
        let v3 = r#"{"username":"admin","token_type":"Bearer","access_token":"j.w.t","expires_in":86400,"permissions":[]}"#;
        let v2 = r#"{"username":"admin","token":"j.w.t","exp":1700000000,"permissions":"*:*"}"#;
        for (body, seconds) in [(v3, 86_400), (v2, 3600)] {
            let credential = login.read_credential(&reply(200, body)).unwrap();
            assert_eq!(credential.secret.expose(), "j.w.t");
            assert_eq!(credential.lives.as_secs(), seconds);
        }
        for odd in ["", "{}", r#"{"expires_in":1}"#] {
            assert_eq!(
                login.read_credential(&reply(200, odd)).unwrap_err().class,
                Class::Transient
            );
        }
        let mut request = target.directory().unwrap().page(None);
        login.apply(&mut request, "j.w.t");
        assert!(text(&request).ends_with("\nauthorization: Bearer j.w.t\n\n"));
    }
    let target = listing(Version::V3, None);
    assert!(target.directory().unwrap().login().is_none());
}
